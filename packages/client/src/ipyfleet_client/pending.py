"""The results of one call, as compact columns.

What lives here: `Segment`, one slice of results as received, and `Work`, all that is known of the
tasks of one call. What must not: sockets, locks, the API that users see (`asyncresult.py`).

Theory of operation
-------------------
A call of `count` tasks keeps one byte of status and four bytes of "in which segment" per task. What
arrives is stored as it came, whole frames; a value is unpickled only when a user asks for it, in
the user's thread. Metadata are read from the received columns on demand. So a result costs no
Python object before somebody wants it.

`Work.add` is called by whichever thread receives, one at a time (the link's lock); `grow` and
`close` by the thread that submits. The two meet in two counters of their own, so neither waits for
the other.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from ipyfleet_protocol.codec import decode_part
from ipyfleet_protocol.columns import Frame, Payloads, read_float64, read_uint32
from ipyfleet_protocol.errors import error_from_info
from ipyfleet_protocol.messages import (
    ABORTED,
    FAILED,
    OK,
    BlobHandle,
    Dependency,
    ErrorInfo,
    ExecuteInfo,
    ResultSlice,
)
from ipyfleet_protocol.serialize import unpack, unpack_many

if TYPE_CHECKING:
    from ipyfleet_client.outputs import TaskOutput

PENDING = 255
"""A task's status before its result is here."""


class PayloadDropped(RuntimeError):
    """The payload of these results was dropped: somebody keeps the values unpickled."""


STATUS_NAMES = {OK: "ok", FAILED: "error", ABORTED: "aborted"}


class Segment(msgspec.Struct, eq=False):
    """One slice of results as received.

    Attributes:
        piece: the slice's header.
        engine: the engine that ran the tasks, -1 for none.
        received: when it arrived, seconds since the epoch.
    """

    piece: ResultSlice
    _frames: Sequence[Frame] | None
    engine: int
    received: float
    _payloads: Payloads | None = None
    _buffers: dict[int, list[memoryview] | Exception] | None = None

    def adopt_blobs(self, map_blob: Callable[[BlobHandle], memoryview]) -> None:
        """Map the blobs of the slice, now, so that their files need not stay.

        Args:
            map_blob: maps a blob and removes its name; what it raises is raised again when the
                value is asked for.
        """
        payloads = self._load()
        self._buffers = {}
        for index in range(self.piece.count):
            flags = payloads.buffer_blobs(index)
            if 1 not in flags:
                continue
            views: list[memoryview] = []
            try:
                for frame, is_blob in zip(payloads.buffer_frames(index), flags, strict=True):
                    if is_blob:
                        views.append(map_blob(decode_part(frame, BlobHandle)))
                    else:
                        views.append(memoryview(frame))
            except Exception as error:  # noqa: BLE001 - raised again later
                # Told to whoever asks for this value; the other tasks' values are fine.
                self._buffers[index] = error
            else:
                self._buffers[index] = views

    def value(self, index: int) -> Any:
        """Unpickle the value of one task of the slice."""
        payloads = self._load()
        if payloads.columns.buffer_counts:
            return unpack(payloads.pickle(index), self._views(payloads, index))
        return unpack(payloads.pickle(index), ())

    def values(self) -> list[Any]:
        """Unpickle all values; all statuses must be `OK`."""
        frames = self._frames
        if frames is not None and len(frames) == 1 and self.piece.count == 1:
            return [unpack(memoryview(frames[0]), ())]
        payloads = self._load()
        if payloads.columns.buffer_counts:
            return [self.value(index) for index in range(self.piece.count)]
        return unpack_many(payloads.packed, payloads.ends)

    def error(self, index: int) -> ErrorInfo:
        """Return the error of one failed task of the slice."""
        return decode_part(self._load().pickle(index), ErrorInfo)

    def execute_info(self, index: int) -> ExecuteInfo:
        """Return the result of one `execute` of the slice."""
        return decode_part(self._load().pickle(index), ExecuteInfo)

    def times(self, index: int) -> tuple[float | None, float | None]:
        """Return when a task started and completed (engine's clock); None where it never ran."""
        started = read_float64(self.piece.started)[index]
        completed = read_float64(self.piece.completed)[index]
        return _known(started), _known(completed)

    def _load(self) -> Payloads:
        payloads = self._payloads
        if payloads is None:
            # Two threads may both do this; the outcomes are alike.
            frames = self._frames
            if frames is None:
                raise PayloadDropped("the payload of these results has been dropped")
            payloads = self._payloads = Payloads(self.piece.columns, frames)
        return payloads

    def _views(self, payloads: Payloads, index: int) -> list[memoryview]:
        buffers = self._buffers
        if buffers is None and payloads.columns.blobs:
            # By another thread, since this one loaded it.
            raise PayloadDropped("the payload of these results has been dropped")
        mapped = buffers.get(index) if buffers is not None else None
        if isinstance(mapped, Exception):
            raise mapped
        if mapped is not None:
            return mapped
        return [memoryview(frame) for frame in payloads.buffer_frames(index)]


def _known(stamp: float) -> float | None:
    return None if math.isnan(stamp) else stamp


class Work(msgspec.Struct, eq=False, weakref=True):
    """The tasks of one call: their seqs, where they are, how they ended.

    Attributes:
        method: as in `messages.Options`.
        name: the function's name, for errors and reprs.
        total: tasks submitted so far.
        closed: no more will be added.
        code: what an `execute` runs.
        arrived: tasks that have ended.
        failures: tasks that ended without a value.
        status: one byte per task, `PENDING` or the wire's status.
        ranges: ``(index, first seq, count)`` of what has been sent, ascending.
        arrivals: ``(index, count, segment, start in segment)`` in the order of arrival.
        targets: engine per task of a direct call; None for balanced ones.
        submitted: when the call was made, seconds since the epoch.
        blobs: handles of the blobs that carry arguments; freed when the work is done.
        owner: who is told when all tasks have ended; held until then.
        sinks: called with ``(index, output)`` whenever output of a task has arrived.
        followers: per task the works that show its result too, and where (`derive`).
        shares: segments of this work are those of others, too.
        foreign_ids: the msg_ids of tasks that this client did not submit; None for its own.
        after, follow: what the tasks were submitted to wait for.
    """

    total: int
    method: str
    name: str
    submitted: float
    targets: Sequence[int] | None = None
    label: str = ""
    closed: bool = True
    code: str | None = None
    arrived: int = 0
    failures: int = 0
    status: bytearray = msgspec.field(default_factory=bytearray)
    ranges: list[tuple[int, int, int]] = []
    arrivals: list[tuple[int, int, Segment, int]] = []
    blobs: list[BlobHandle] = []
    owner: Any = None
    outputs: dict[int, TaskOutput] | None = None
    uncounted_outputs: int = 0
    sinks: list[Callable[[int, TaskOutput], None]] | None = None
    followers: dict[int, list[tuple[Work, int]]] | None = None
    shares: bool = False
    foreign_ids: list[str] | None = None
    after: Dependency | None = None
    follow: Dependency | None = None
    _where: array[int] | None = None

    def __post_init__(self) -> None:
        total = self.total
        self.status = bytearray(b"\xff") * total
        if total > 1:
            self._where = array("I", bytes(4 * total))

    # -- the submitting thread ----------------------------------------------------------------

    def grow(self, count: int) -> int:
        """Make room for more tasks; return the index of the first."""
        first = self.total
        if self._where is None:
            self._where = array("I", bytes(4 * first))
        self._where.extend(array("I", bytes(4 * count)))
        self.status.extend(b"\xff" * count)
        self.total = first + count
        return first

    def sent(self, index: int, first: int, count: int) -> None:
        """Note the seqs that tasks ``index … index+count-1`` got."""
        if self.ranges:
            last_index, last_first, last_count = self.ranges[-1]
            if last_index + last_count == index and last_first + last_count == first:
                self.ranges[-1] = (last_index, last_first, last_count + count)
                return
        self.ranges.append((index, first, count))

    @property
    def done(self) -> bool:
        """Whether all tasks have ended and no more will come."""
        return self.closed and self.arrived == self.total

    # -- the receiving thread -----------------------------------------------------------------

    def add(self, index: int, count: int, segment: Segment, start: int) -> bool:
        """Store results; return whether any of them was new."""
        status = self.status
        if count == 1:
            if status[index] != PENDING:
                return False
        elif status.count(PENDING, index, index + count) != count:
            return self._add_each(index, count, segment, start)
        # A reader that sees a status finds the rest: the status is written last.
        if self._where is not None:
            number = len(self.arrivals)
            if count == 1:
                self._where[index] = number
            else:
                self._where[index : index + count] = array("I", (number,)) * count
        self.arrivals.append((index, count, segment, start))
        column = segment.piece.status[start : start + count]
        self.failures += count - column.count(OK)
        status[index : index + count] = column
        self.arrived += count
        return True

    def _add_each(self, index: int, count: int, segment: Segment, start: int) -> bool:
        # Some of these have a result already: a late one of an attempt that was given up.
        fresh = [k for k in range(count) if self.status[index + k] == PENDING]
        for k in fresh:
            self.add(index + k, 1, segment, start + k)
        return bool(fresh)

    def feed_followers(self, index: int, count: int) -> list[Work]:
        """Hand new results on to the works that follow; return those that are done by it."""
        done: list[Work] = []
        if self.followers is None:
            return done
        for task in range(index, index + count):
            place = self.locate(task)
            if place is None:
                continue
            for work, position in self.followers.pop(task, ()):
                work.add(position, 1, place[0], place[1])
                done += work.feed_followers(position, 1)
                if work.done:
                    done.append(work)
        return done

    # -- whoever asks -------------------------------------------------------------------------

    def locate(self, index: int) -> tuple[Segment, int] | None:
        """Return the segment that has a task's result, and where in it; None if it is not here."""
        if self.status[index] == PENDING:
            return None
        number = self._where[index] if self._where is not None else 0
        first, _, segment, start = self.arrivals[number]
        return segment, start + index - first

    def value(self, index: int) -> Any:
        """Return the value of a task that has ended, or its error as an exception object."""
        place = self.locate(index)
        if place is None:
            raise LookupError(f"task {index} has not ended")
        segment, position = place
        if self.status[index] == OK:
            if self.method == "execute":
                return segment.execute_info(position)
            return segment.value(position)
        return error_from_info(segment.error(position))

    def values(self) -> list[Any]:
        """Return all values, or errors as exception objects, in the order of the tasks."""
        if self.failures or self.method == "execute":
            return [self.value(index) for index in range(self.total)]
        arrivals = list(self.arrivals)
        if len(arrivals) > 1:
            arrivals.sort(key=itemgetter(0))
        out: list[Any] = []
        for _, count, segment, start in arrivals:
            if count == segment.piece.count:
                out += segment.values()
            else:
                out += [segment.value(k) for k in range(start, start + count)]
        return out

    def seq(self, index: int) -> int | None:
        """Return a task's seq; None if it has not been sent."""
        for start, first, count in reversed(self.ranges):
            if start <= index < start + count:
                return first + index - start
        return None

    def seqs(self) -> Iterator[int]:
        """Iterate over the seqs of all tasks that were sent, in their order."""
        for _, first, count in self.ranges:
            yield from range(first, first + count)

    def engine(self, index: int) -> int | None:
        """Return the engine that ran a task, or will for a direct one; None if not known."""
        place = self.locate(index)
        if place is not None and place[0].engine >= 0:
            return place[0].engine
        return self.targets[index] if self.targets is not None else None

    def expected_outputs(self, index: int) -> int:
        """Return how many items of output a task that has ended has published."""
        place = self.locate(index)
        if place is None:
            return 0
        segment, position = place
        column = segment.piece.outputs
        return read_uint32(column)[position] if column else 0

    @property
    def has_all_output(self) -> bool:
        """Whether all tasks have ended and all that they printed and displayed is here."""
        if not self.done:
            return False
        if not self.shares:
            return not self.uncounted_outputs
        outputs = self.outputs or {}
        return all(
            not (expected := self.expected_outputs(index))
            or (index in outputs and outputs[index].received >= expected)
            for index in range(self.total)
        )

    def drop_payload(self) -> None:
        """Forget the values, where nobody shares them: somebody keeps them unpickled."""
        if self.shares or self.failures:
            return
        for _, count, segment, _ in self.arrivals:
            if segment.piece.count == count:
                segment._frames = segment._payloads = segment._buffers = None
