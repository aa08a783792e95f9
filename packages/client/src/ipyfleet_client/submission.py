"""From calls to messages: groups, sequence numbers, what the controller has already.

What lives here: `Submitter`. What must not: the meaning of results, the API that users see.

Theory of operation
-------------------
A call is packed in the caller's thread and appended to a queue as one tuple, which is atomic: a
Ctrl-C leaves either the whole call there or nothing. `flush` takes the queue, puts neighbours with
the same function and options into one group, gives out sequence numbers, notes the tasks in the
ledger and sends. It runs at once when nothing is outstanding; else by the I/O thread within a
millisecond, by the next wait, or when enough has come together. So a single call goes out without
delay and a loop of thousands goes out in a few messages.

Seqs are given out and messages sent under one lock, so the seqs on the wire only grow.

What was sent is kept until its tasks have ended (`retention`): a controller that was started again
is sent it once more.
"""

from __future__ import annotations

import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.io import Wire
from ipyfleet_client.link import ClientLink
from ipyfleet_client.pending import Work
from ipyfleet_client.repeated import RepeatedBuffers
from ipyfleet_client.retention import Retained, submit_again
from ipyfleet_protocol.blobs import BLOB_MIN_BYTES, BlobStore
from ipyfleet_protocol.codec import encode, encode_part
from ipyfleet_protocol.columns import Frame, PayloadWriter
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_protocol.ids import PeerId, format_msg_id
from ipyfleet_protocol.messages import (
    Cancel,
    Columns,
    Dependency,
    Function,
    Group,
    Method,
    Options,
    Placement,
    SeqRange,
    Submit,
    TaskRange,
)
from ipyfleet_protocol.serialize import (
    ClassTable,
    Packed,
    PackedFunction,
    equip_function,
    pack_items,
)

FLUSH_TASKS = 256
FLUSH_BYTES = 256 * 1024
"""What is buffered is sent at once when it is more than this."""

GROUP_MAX_BYTES = 1024 * 1024
"""Packed bytes in one group of a long map."""

MAX_SENT_DIGESTS = 4096
"""Functions of which it is remembered that the controller has them; others are sent again."""

GIVE_UP_S = 1.0
"""Who ends the session waits so long at most for a thread that sends."""

FIRST_GROUP_TASKS, LAST_GROUP_TASKS = 64, 4096
"""A long map goes out in groups that grow from the first size to the last."""

_UINT32 = struct.Struct("<I")

Payload = tuple[bytes | memoryview, Sequence[tuple[Frame, bool]]]


class Spec(NamedTuple):
    """What a group's tasks have in common besides the function; see `messages.Options`."""

    method: Method
    placement: Placement
    targets: tuple[int, ...] | None = None
    shared: bool = False
    retries: int = 0
    silent: bool = False
    label: str = ""
    after: Dependency | None = None
    follow: Dependency | None = None
    timeout_s: float = 0.0
    priority: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    resubmits: TaskRange | None = None


class History:
    """The seqs that were given out, as ranges."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, first: int, count: int) -> None:
        """Note tasks ``first … first+count-1``."""
        if self.ranges:
            start, before = self.ranges[-1]
            if start + before == first:
                self.ranges[-1] = (start, before + count)
                return
        self.ranges.append((first, count))


class _Job(msgspec.Struct, eq=False):
    """Tasks ``start … start+tasks-1`` of a work, ready to be sent."""

    work: Work
    start: int
    tasks: int
    spec: Spec
    function: PackedFunction | None
    targets: list[int] | None
    payloads: Sequence[Payload] | Sequence[Packed]
    history: History | None


class Submitter:
    """Sends the calls of one client.

    Attributes:
        peer: the client.
        host: the client's host id.
        blobs: where large arguments go, or None for "nowhere"; set when the client has joined.
        repeated: those that loops pass again and again.
    """

    def __init__(self, peer: PeerId, host: str, link: ClientLink) -> None:
        self.peer = peer
        self.host = host
        self.blobs: BlobStore | None = None
        self.repeated = RepeatedBuffers()
        self.wire: Wire | None = None
        self._link = link
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._buffered_tasks = 0
        self._outbox: deque[list[Frame]] = deque()
        # By digest: the header of a function that the controller has.
        self._sent_digests: dict[bytes, Function] = {}
        # The options of the call before, which are often those of the next, too.
        self._spec: Spec | None = None
        self._options = Options()
        self._cancelled: list[tuple[weakref.ref[Work], Cancel]] = []
        self._next_seq = 0

    @property
    def next_seq(self) -> int:
        """The seq that the next task will get; all below have been given out."""
        return self._next_seq

    def msg_id(self, seq: int) -> str:
        """Return the public id of one of this client's tasks."""
        return format_msg_id(self.peer, seq)

    # -- calls --------------------------------------------------------------------------------

    def submit(
        self,
        work: Work,
        spec: Spec,
        function: PackedFunction | None,
        payload: Packed,
        *,
        targets: list[int] | None = None,
        history: History | None = None,
    ) -> None:
        """Send a call with one payload: one task, or the same on several engines (``spec.shared``).

        Raises:
            ClientClosed: the client is closed; nothing was sent.
        """
        if self.wire is None or self.wire.closed_reason:
            self._check_open()
        pickle, buffers = payload
        large = bool(buffers) or len(pickle) >= FLUSH_BYTES
        placed: Payload = (pickle, self._place(work, buffers, targets, spec) if buffers else ())
        job = _Job(work, 0, work.total, spec, function, targets, (placed,), history)
        self._jobs.append(job)
        if large or not self._link.ledger.outstanding:
            self.flush()
        else:
            self._after_append(work.total, at_once=False)

    def submit_each(
        self,
        work: Work,
        spec: Spec,
        function: PackedFunction | None,
        payloads: Sequence[Packed],
        *,
        targets: list[int] | None = None,
        index: int = 0,
        history: History | None = None,
    ) -> None:
        """Send several tasks with a payload each, at once.

        Raises:
            ClientClosed: the client is closed; nothing was sent.
        """
        self._check_open()
        ready: Sequence[Payload] | Sequence[Packed] = payloads
        if any(map(_buffers_of, payloads)):
            ready = [
                (
                    pickle,
                    self._place(work, buffers, [targets[k]] if targets is not None else None, spec),
                )
                for k, (pickle, buffers) in enumerate(payloads)
            ]
        self._jobs.append(_Job(work, index, len(ready), spec, function, targets, ready, history))
        self._after_append(len(ready), at_once=True)

    def submit_items(
        self,
        work: Work,
        spec: Spec,
        function: PackedFunction,
        items: Iterable[tuple[object, ...]],
        *,
        history: History | None = None,
    ) -> None:
        """Send one task per item, in groups that grow, each sent while the next is packed.

        Works whose number of tasks was not known before grow and are closed at the end.

        Raises:
            PackError: an item cannot be pickled. What was sent before is cancelled.
            ValueError: there are fewer items than tasks in the work; likewise.
            ClientClosed: the client is closed.
        """
        index = 0
        try:
            for packed, classes in pack_in_groups(items):
                if not work.closed:
                    work.grow(len(packed))
                equipped = equip_function(function, classes)
                self.submit_each(work, spec, equipped, packed, index=index, history=history)
                index += len(packed)
            if index < work.total:
                raise ValueError(f"a sequence announced {work.total} items and has {index}")
        except BaseException:
            # The caller never sees this work.
            self.cancel(work)
            raise

    def cancel(
        self, work: Work, *, interrupt: bool = False, force: bool = False, grace_s: float = 1.0
    ) -> None:
        """Ask that the tasks of a work that have not started are not started.

        For the options, and what happens to tasks that run, see `messages.Cancel`.
        """
        self.cancel_all([work], interrupt=interrupt, force=force, grace_s=grace_s)

    def cancel_all(
        self,
        works: Iterable[Work],
        *,
        interrupt: bool = False,
        force: bool = False,
        grace_s: float = 1.0,
    ) -> None:
        """As `cancel`, of several works at once: none of them starts because another ends."""
        self.flush()
        chosen = [work for work in works if work.ranges]
        if chosen:
            cancel = Cancel(_ranges(chosen), interrupt, force, grace_s)
            # To be said again to a controller that has forgotten it.
            self._cancelled = [entry for entry in self._cancelled if _open(entry)]
            self._cancelled += [(weakref.ref(work), cancel) for work in chosen]
            self._send([encode(cancel)])

    def _check_open(self) -> None:
        if self.wire is None:
            raise ClientClosed("this client is not connected")
        self.wire.check_open()

    def _place(
        self,
        work: Work,
        buffers: Sequence[Frame],
        targets: Sequence[int] | None,
        spec: Spec,
    ) -> list[tuple[Frame, bool]]:
        out: list[tuple[Frame, bool]] = []
        local: bool | None = None
        for buffer in buffers:
            view = memoryview(buffer)
            if view.nbytes >= BLOB_MIN_BYTES and self.blobs is not None:
                if local is None:
                    engines = self._link.engines
                    local = engines.are_on_host(self.host, targets or spec.targets)
                handle = self.repeated.find(view, self.blobs.put) if local else None
                if handle is not None:
                    out.append((encode_part(handle), True))
                    continue
                handle = self.blobs.put(view) if local else None
                if handle is not None:
                    work.blobs.append(handle)
                    out.append((encode_part(handle), True))
                    continue
            out.append((view, False))
        return out

    # -- sending ------------------------------------------------------------------------------

    def _after_append(self, count: int, *, at_once: bool) -> None:
        self._buffered_tasks += count
        if at_once or not self._link.ledger.outstanding or self._buffered_tasks >= FLUSH_TASKS:
            self.flush()
        elif self.wire is not None:
            self.wire.flush_soon()

    def flush(self, wait: bool = True) -> bool:
        """Send what is buffered; return whether that was done.

        Args:
            wait: for a thread that sends just now. The I/O thread must not, since that thread may
                wait for it.

        Raises:
            ClientClosed: the client is closed.
        """
        if not self._jobs and not self._outbox:
            return True
        with hold_interrupts() as interrupt:
            patience_s = 0.05 if wait else 0
            while not self._lock.acquire(timeout=patience_s):
                if interrupt.noted or not wait:
                    return False
                if self.wire is not None and self.wire.receive_if_leading(0.005):
                    # What is received may be what the other thread waits for.
                    patience_s = 0.001
            try:
                self._collect()
                self._send_outbox(interrupt)
            finally:
                self._lock.release()
        return True

    def give_up(self) -> None:
        """Note as outstanding what is buffered, which will never be sent: the wire is closed."""
        # Whoever sends leaves soon, now that it is closed.
        if self._lock.acquire(timeout=GIVE_UP_S):
            try:
                self._collect()
                self._outbox.clear()
            finally:
                self._lock.release()

    def _send(self, frames: list[Frame], before: Callable[[], None] | None = None) -> None:
        with hold_interrupts() as interrupt, self._lock:
            if before is not None:
                before()
            self._outbox.append(frames)
            self._send_outbox(interrupt)

    def send_message(
        self,
        header: bytes,
        frames: Sequence[Frame] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        """Send a message that is no submission, after what was submitted before.

        Args:
            header, frames: the message.
            before: called right before it is sent; `start_anew` comes either before or after both.

        Raises:
            ClientClosed: the client is closed.
        """
        self.flush()
        self._send([header, *frames], before)

    def start_anew(self, questions: Callable[[], Iterable[bytes]]) -> None:
        """Tell a controller that knows nothing of this client all that is open. I/O thread.

        Args:
            questions: returns further messages to be sent after the groups.
        """
        assert self.wire is not None
        with self._lock:
            # What is in there comes again.
            self._outbox.clear()
            self._sent_digests.clear()
            with self._link.lock:
                groups = list(submit_again(self._link.ledger, self._attach, time.monotonic()))
            others = [[encode(cancel)] for cancel in self._open_cancels()]
            others += [[header] for header in questions()]
            self.wire.restart(groups, others)

    def _open_cancels(self) -> Iterator[Cancel]:
        for entry in self._cancelled:
            work = entry[0]()
            if work is not None and _open(entry):
                cancel = entry[1]
                yield Cancel(_ranges([work]), cancel.interrupt, cancel.force, cancel.grace_s)

    def _send_outbox(self, interrupt: hold_interrupts) -> None:
        assert self.wire is not None
        while self._outbox:
            if not self.wire.send(self._outbox[0], interrupt):
                self.wire.flush_soon()
                return
            self._outbox.popleft()

    def _collect(self) -> None:
        """Turn the queued jobs into messages; the lock is held."""
        self._buffered_tasks = 0
        jobs = self._jobs
        if len(jobs) == 1 and len(jobs[0].payloads) == 1 and not jobs[0].payloads[0][1]:
            # A lone call without large arguments, 5 µs sooner than below.
            pickle = jobs[0].payloads[0][0]
            columns = Columns(_UINT32.pack(len(pickle)))
            group, frames = self._make_group([jobs.popleft()], columns, [pickle])
            self._outbox.append([encode(Submit([group])), *frames])
            return
        groups: list[Group] = []
        frames = []
        while jobs:
            neighbours, writer = self._take_neighbours()
            group, group_frames = self._make_group(neighbours, *writer.finish())
            groups.append(group)
            frames += group_frames
            if writer.n_bytes > GROUP_MAX_BYTES:
                self._outbox.append([encode(Submit(groups)), *frames])
                groups, frames = [], []
        if groups:
            self._outbox.append([encode(Submit(groups)), *frames])

    def _take_neighbours(self) -> tuple[list[_Job], PayloadWriter]:
        """Take the next jobs that may be one group; return them and their payloads."""
        first = self._jobs.popleft()
        jobs = [first]
        writer = PayloadWriter()
        _write(writer, first.payloads)
        function, spec = first.function, first.spec
        while (
            self._jobs
            and not spec.shared
            and spec == self._jobs[0].spec
            and _same(function, self._jobs[0].function)
            and writer.n_bytes < GROUP_MAX_BYTES
            and len(writer) < LAST_GROUP_TASKS
        ):
            job = self._jobs.popleft()
            jobs.append(job)
            _write(writer, job.payloads)
        return jobs, writer

    def _make_group(
        self, jobs: list[_Job], columns: Columns, frames: list[Frame]
    ) -> tuple[Group, list[Frame]]:
        spec, function = jobs[0].spec, jobs[0].function
        first = self._next_seq
        options = self._options
        if spec is not self._spec or jobs[0].targets != options.targets or len(jobs) > 1:
            options = self._make_options(spec, jobs)
        retained = Retained(first, options, function, columns, frames)
        if spec.timeout_s:
            retained.since = time.monotonic()
        ledger = self._link.ledger
        with self._link.lock:
            seq = first
            for job in jobs:
                work, tasks = job.work, job.tasks
                ledger.add(seq, tasks, work, job.start, retained)
                work.sent(job.start, seq, tasks)
                work.after, work.follow = spec.after, spec.follow
                if job.history is not None:
                    job.history.add(seq, tasks)
                seq += tasks
            self._next_seq = seq
        header: Function | None = None
        if function is not None:
            header = self._sent_digests.get(function.function.digest)
            if header is None:
                header, body = self._attach(function)
                frames = [*body, *frames]
        return Group(first, seq - first, options, header, columns), frames

    def _make_options(self, spec: Spec, jobs: list[_Job]) -> Options:
        targets: list[int] | None
        if spec.placement != "direct":
            targets = None if spec.targets is None else list(spec.targets)
        elif len(jobs) == 1:
            targets = jobs[0].targets
        else:
            targets = [target for job in jobs for target in job.targets or ()]
        self._spec = spec
        self._options = Options(
            method=spec.method,
            placement=spec.placement,
            targets=targets,
            shared=spec.shared,
            retries=spec.retries,
            silent=spec.silent,
            label=spec.label,
            host=self.host,
            after=spec.after,
            follow=spec.follow,
            timeout_s=spec.timeout_s,
            priority=spec.priority,
            resources=dict(spec.resources),
            resubmits=spec.resubmits,
        )
        return self._options

    def _attach(self, function: PackedFunction) -> tuple[Function, Sequence[Frame]]:
        """Return a function's header, and its frames if the controller does not have them."""
        header = function.function
        sent = self._sent_digests.get(header.digest)
        if sent is not None:
            return sent, ()
        self._sent_digests[header.digest] = Function(
            header.digest, header.name, header.reusable, header.self_name, frames=0
        )
        if len(self._sent_digests) > MAX_SENT_DIGESTS:
            del self._sent_digests[next(iter(self._sent_digests))]
        return header, function.frames


_pickle_of: Callable[[Any], Any] = itemgetter(0)
_buffers_of: Callable[[Any], Any] = itemgetter(1)


def _ranges(works: Iterable[Work]) -> list[SeqRange]:
    return [SeqRange(first, count) for work in works for _, first, count in work.ranges]


def _open(entry: tuple[weakref.ref[Work], Cancel]) -> bool:
    work = entry[0]()
    return work is not None and work.arrived < work.total


def _same(one: PackedFunction | None, other: PackedFunction | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.function.digest == other.function.digest


def _write(writer: PayloadWriter, payloads: Sequence[Payload] | Sequence[Packed]) -> None:
    if any(map(_buffers_of, payloads)):
        for pickle, buffers in payloads:
            writer.append(pickle, buffers)  # type: ignore[arg-type]
    elif len(payloads) == 1:
        writer.append(payloads[0][0])
    else:
        writer.extend(list(map(_pickle_of, payloads)))


def pack_in_groups(
    items: Iterable[tuple[object, ...]], size: int = FIRST_GROUP_TASKS
) -> Iterator[tuple[list[Packed], ClassTable]]:
    """Pack the calls of a map, group by group, each with the classes of its items.

    The groups grow by a factor of 4, and stay below `GROUP_MAX_BYTES` as well as a look at the
    group before can tell.

    Raises:
        PackError: an item cannot be pickled.
    """
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        classes = ClassTable()
        packed = pack_items(chunk, classes)
        n_bytes = sum(map(len, map(_pickle_of, packed)))
        n_bytes += sum(
            memoryview(b).nbytes for buffers in map(_buffers_of, packed) for b in buffers
        )
        yield packed, classes
        per_task = max(1, n_bytes // len(packed))
        size = max(1, min(4 * size, LAST_GROUP_TASKS, GROUP_MAX_BYTES // per_task))
