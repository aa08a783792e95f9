"""What tasks print and display, on its way from user code to the controller.

What lives here: `OutputCollector`, which attributes output to the task that runs and holds a
bounded amount of it until it is sent. What must not: sockets, IPython, streams (`streams`) and
file descriptors (`capture`).

Any thread may write. The second thread drains the collector while a task runs (`drain`); the main
thread takes what is left of a task when it ends (`finish`). Items get their index when they
leave, so both may travel over different sockets, and what is dropped leaves no gap.

Output belongs to the task that the code belongs to which writes it (`ownership`): that of a thread,
or of a coroutine, that outlives its task is still that task's. Where nobody knows (file
descriptors), it belongs to the task that runs, or to the last one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import OutputItem, OutputKind

from .ownership import claim, owner

OUTPUT_MAX_BYTES = 8 * 1024 * 1024
"""Output that may wait to be sent; beyond it the oldest is dropped."""

TEXT_CHUNK_CHARS = 64 * 1024
"""About the size at which further text begins a new item."""

COMM_KINDS = frozenset({"comm_open", "comm_msg", "comm_close"})

_ITEM_OVERHEAD_BYTES = 256
_DROPPABLE = frozenset(
    {"stdout", "stderr", "display_data", "update_display_data", "data", "clear_output"}
)

_encode_content = msgspec.msgpack.Encoder(enc_hook=str).encode


class Sink(Protocol):
    """Where output goes that is not a task's."""

    def write(self, name: str, text: str) -> None:
        """Take text of "stdout" or "stderr"."""

    def publish(
        self,
        kind: str,
        content: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[Any] = (),
    ) -> None:
        """Take a Jupyter message."""


class TaskOutput:
    """A task as the collector sees it.

    Attributes:
        client, seq, attempt: the task.
        n_items: output items that have left.
        dropped_bytes: dropped since the last item that left.
        sink: where output goes instead; None for all tasks (`frontends` has what is none).
        behind: the task in whose place this stands; None for all tasks (see `outputwidget`).
    """

    __slots__ = ("attempt", "client", "dropped_bytes", "n_items", "seq")

    sink: Sink | None = None
    behind: TaskOutput | None = None

    def __init__(self, client: bytes, seq: int) -> None:
        self.client = client
        self.seq = seq
        self.attempt = 0
        self.n_items = 0
        self.dropped_bytes = 0


class OutputBatch(NamedTuple):
    """Items for one client, with their buffer frames; the makings of a `messages.Output`."""

    client: bytes
    items: list[OutputItem]
    frames: list[Frame]


class _Pending:
    """An item that has not left: text in parts, or content."""

    __slots__ = ("buffers", "content", "kind", "n_bytes", "parts", "task")

    def __init__(self, task: TaskOutput, kind: OutputKind) -> None:
        self.task = task
        self.kind = kind
        self.parts: list[str] = []
        self.content = b""
        self.buffers: Sequence[Frame] = ()
        self.n_bytes = _ITEM_OVERHEAD_BYTES


class OutputCollector:
    """Output waiting to be sent; see the module docstring."""

    def __init__(self, max_bytes: int = OUTPUT_MAX_BYTES) -> None:
        """Make an empty collector that holds at most about `max_bytes`."""
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.settle: Callable[[], None] = _nothing
        """Called before a task's output is complete: what is on its way is to be written now."""
        self.settle_before_text: Callable[[], None] = _nothing
        """Called before Python-level text is added, for the sake of order."""
        self._task: TaskOutput | None = None
        self.is_detached = False
        self.on_first: Callable[[], None] | None = None
        """Called, in the writing thread, when output begins to wait."""
        # Re-entrant, because a destructor that prints may run while the lock is held.
        self._lock = threading.RLock()
        self._pending: deque[_Pending] = deque()

    @property
    def task(self) -> TaskOutput | None:
        """The running task, or the last; None before the first. Assigned by the main thread."""
        return self._task

    @task.setter
    def task(self, task: TaskOutput | None) -> None:
        self._task = task
        claim(task)

    @property
    def current(self) -> TaskOutput | None:
        """The task that gets what the calling code publishes; None if there has been none yet."""
        return None if self.is_detached else owner() or self._task

    def begin(self, client: bytes, seq: int) -> TaskOutput:
        """Attribute what is published from now on to this task."""
        task = self.task = TaskOutput(client, seq)
        return task

    def write(self, kind: OutputKind, text: str) -> bool:
        """Add text to a stream of the current task; False if there has been no task yet."""
        task = self.current
        if task is None:
            return False
        if not text:
            return True
        if task.sink is not None:
            task.sink.write(kind, text)
            return True
        if len(text) > self.max_bytes // 2:
            kept = self.max_bytes // 2
            with self._lock:
                task.dropped_bytes += len(text) - kept
            text = text[-kept:]
        with self._lock:
            pending = self._pending
            last = pending[-1] if pending else None
            first = last is None
            if (
                last is None
                or last.task is not task
                or last.kind != kind
                or last.n_bytes > TEXT_CHUNK_CHARS
            ):
                last = _Pending(task, kind)
                pending.append(last)
                self.n_bytes += _ITEM_OVERHEAD_BYTES
            last.parts.append(text)
            last.n_bytes += len(text)
            self.n_bytes += len(text)
            self._bound()
        if first and self.on_first is not None:
            self.on_first()
        return True

    def note_dropped(self, n_bytes: int) -> None:
        """Note that output of the current task was dropped before it came here."""
        task = self.current
        if task is not None:
            with self._lock:
                task.dropped_bytes += n_bytes

    def publish(
        self,
        kind: OutputKind,
        content: Any,
        buffers: Sequence[Frame] = (),
        task: TaskOutput | None = None,
    ) -> bool:
        """Add an item of a task; False if there has been no task yet.

        Args:
            kind: what it is.
            content: the content of the Jupyter message, of plain types.
            buffers: its binary buffers.
            task: which task's; by default that of the calling code.
        """
        task = task or self.current
        if task is None or self.is_detached:
            return False
        if task.sink is not None:
            # What only tasks have (`data`); the rest came through `FleetSession`.
            if task.behind is None:
                return True
            task = task.behind
        item = _Pending(task, kind)
        item.content = _encode_content(content)
        item.buffers = [bytes(memoryview(buffer)) for buffer in buffers]
        item.n_bytes += len(item.content) + sum(map(len, item.buffers))
        with self._lock:
            self._pending.append(item)
            self.n_bytes += item.n_bytes
            self._bound()
            first = len(self._pending) == 1
        if first and self.on_first is not None:
            self.on_first()
        return True

    def __bool__(self) -> bool:
        return bool(self._pending)

    def drain(self, max_bytes: int) -> list[OutputBatch]:
        """Take the oldest items, about `max_bytes` of them; the second thread calls it."""
        with self._lock:
            taken = []
            budget = max_bytes
            while self._pending and budget > 0:
                item = self._pending.popleft()
                budget -= item.n_bytes
                self.n_bytes -= item.n_bytes
                taken.append(item)
            return _batches(taken)

    def finish(self, task: TaskOutput) -> list[OutputBatch]:
        """Take what is left of a task that has ended; its `n_items` is final for its result.

        And what it has said over comms that earlier tasks of its client have opened: who has the
        result shall see the widgets as the task has left them.
        """
        self.settle()
        if not self._pending and not task.dropped_bytes:
            return []
        with self._lock:
            taken: list[_Pending] = []
            left = deque[_Pending]()
            for item in self._pending:
                is_comm = item.kind in COMM_KINDS and item.task.client == task.client
                (taken if item.task is task or is_comm else left).append(item)
            self._pending = left
            self.n_bytes -= sum(item.n_bytes for item in taken)
            batches = _batches(taken)
            if task.dropped_bytes:
                # Nothing came after what was dropped: an empty text carries the count.
                batches += _batches([_Pending(task, "stdout")])
            return batches

    def discard(self, task: TaskOutput) -> None:
        """Drop what a task has published and nobody has been sent: it will run elsewhere."""
        self.settle()
        with self._lock:
            left = deque(item for item in self._pending if item.task is not task)
            self._pending = left
            self.n_bytes = sum(item.n_bytes for item in left)
            task.dropped_bytes = 0

    def detach(self) -> None:
        """Forget everything; in a process that user code has forked nobody sends output."""
        self._lock = threading.RLock()
        self._pending = deque()
        self._task = None
        self.is_detached = True
        self.on_first = None
        self.settle = self.settle_before_text = _nothing

    def _bound(self) -> None:
        """Drop the oldest items that may be dropped until the rest fits."""
        while self.n_bytes > self.max_bytes:
            position = next((i for i, p in enumerate(self._pending) if p.kind in _DROPPABLE), None)
            if position is None:
                return
            item = self._pending[position]
            del self._pending[position]
            self.n_bytes -= item.n_bytes
            item.task.dropped_bytes += item.n_bytes - _ITEM_OVERHEAD_BYTES


def _nothing() -> None:
    """Take the place of hooks that nobody has set."""


def _batches(pending: Iterable[_Pending]) -> list[OutputBatch]:
    """Number the items and put them together by client; the caller holds the lock."""
    batches: dict[bytes, OutputBatch] = {}
    for item in pending:
        task = item.task
        batch = batches.get(task.client)
        if batch is None:
            batch = batches[task.client] = OutputBatch(task.client, [], [])
        content = item.content or "".join(item.parts).encode("utf-8", "backslashreplace")
        batch.items.append(
            OutputItem(
                task.seq,
                task.n_items,
                item.kind,
                content,
                len(item.buffers),
                task.dropped_bytes,
                task.attempt,
            )
        )
        batch.frames.extend(item.buffers)
        task.n_items += 1
        task.dropped_bytes = 0
    return list(batches.values())
