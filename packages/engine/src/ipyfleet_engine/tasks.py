"""The engine's queue of tasks: which runs next, which are given back, which are dropped.

What lives here: `TaskQueue`, used by two threads. What must not: sockets, user code, clocks.

The main thread appends slices as they arrive and claims one task after the other. The second
thread, on the controller's behalf, recalls tasks (the controller places them elsewhere; nothing
is reported of them but the range) and drops tasks (it reports them as cancelled). Both may name
tasks that the main thread has not read from its socket yet: they are recognised by ordinal when
they arrive. The lock makes each task either claimed or taken back, never both.

When the second thread tells a controller what the engine holds, nothing may come in afterwards that
it has not told of: `suspend` says what is there and closes the queue, until the main thread has a
new connection and calls `resume`.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from ipyfleet_protocol.columns import Payloads
from ipyfleet_protocol.messages import Function, HeldTasks, PlacedRange, TaskSlice

from .functions import KnownFunction
from .kept import without


class Fate(enum.Enum):
    """What is to be done with a claimed task."""

    RUN = "run"
    ABORTED = "aborted"
    """An `execute` before it, of the same client, failed."""


class Suspended(Exception):
    """Tasks were not taken, because they came over a connection that is given up."""


class QueuedSlice:
    """A slice of tasks in the queue; a `messages.TaskSlice` with its payloads.

    Attributes:
        info: the slice as received.
        payloads: those of its tasks; a single one if ``info.shared``.
        position: tasks claimed or skipped so far.
        fate: what is to be done with the tasks that are left.
        known: the function that the tasks call, if the engine has it.
    """

    __slots__ = ("client", "fate", "first", "info", "known", "method", "payloads", "position")

    def __init__(self, info: TaskSlice, payloads: Payloads) -> None:
        self.info = info
        self.payloads = payloads
        self.client = info.client
        self.first = info.first
        self.method = info.method
        self.position = 0
        self.fate = Fate.RUN
        self.known: KnownFunction | None = None

    @property
    def function(self) -> Function | None:
        """The function that the tasks call."""
        return self.info.function


Claim = tuple[QueuedSlice, int, Fate]
"""A task as `TaskQueue.claim` hands it out: slice, index in it, what is to be done."""


class TaskQueue:
    """Tasks in the order of their ordinals; see the module docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slices: deque[QueuedSlice] = deque()
        self._next_ordinal = 0
        self._recalled: list[tuple[int, int]] = []
        self._next_arrival = 0
        self._is_suspended = False

    def append(self, piece: QueuedSlice) -> None:
        """Add a slice that has arrived; see `extend`."""
        self.extend((piece,))

    def extend(self, pieces: Sequence[QueuedSlice]) -> None:
        """Add the slices of a message that has arrived.

        Raises:
            Suspended: the message came too late; nothing is added.
        """
        with self._lock:
            if self._is_suspended:
                raise Suspended
            self._slices.extend(pieces)
            for piece in pieces:
                self._next_arrival = piece.info.ordinal + piece.info.count

    def suspend(self) -> tuple[list[HeldTasks], int]:
        """Take nothing in from now on; return what is here, and the first ordinal not seen yet.

        The task that was claimed last is among them: it may be running.
        """
        with self._lock:
            self._is_suspended = True
            held = []
            for piece in self._slices:
                skip = max(0, piece.position - 1)
                info = piece.info
                if skip < info.count:
                    held.append(
                        HeldTasks(
                            info.client,
                            info.first + skip,
                            info.count - skip,
                            info.ordinal + skip,
                            info.attempt,
                        )
                    )
            ends = [last + 1 for _, last in self._recalled]
            return without(held, self._recalled), max([self._next_arrival, *ends])

    def resume(self) -> None:
        """Take tasks in again."""
        with self._lock:
            self._is_suspended = False

    def claim(self) -> Claim | None:
        """Return the next task, which from now on counts as started; None if nothing is here."""
        with self._lock:
            slices = self._slices
            while slices:
                piece = slices[0]
                index = piece.position
                info = piece.info
                if index == info.count:
                    slices.popleft()
                    continue
                piece.position = index + 1
                ordinal = info.ordinal + index
                self._next_ordinal = ordinal + 1
                if self._recalled and self._is_recalled(ordinal):
                    continue
                return piece, index, piece.fate
            return None

    def recall(self, first: int, last: int) -> tuple[int, int]:
        """Give back the tasks with ordinals ``first … last`` that have not been claimed.

        Returns:
            The range given back, last included; first > last for "none".
        """
        with self._lock:
            first = max(first, self._next_ordinal)
            if first <= last:
                self._recalled.append((first, last))
            return first, last

    def drop(self, ranges: Iterable[PlacedRange]) -> list[PlacedRange]:
        """Have tasks not run that have not been claimed; return which."""
        dropped = []
        with self._lock:
            for piece in ranges:
                skip = max(0, self._next_ordinal - piece.ordinal)
                if skip < piece.count:
                    part = PlacedRange(
                        piece.first + skip, piece.count - skip, piece.ordinal + skip, piece.attempt
                    )
                    self._recalled.append((part.ordinal, part.ordinal + part.count - 1))
                    dropped.append(part)
        return dropped

    @property
    def last_claimed(self) -> int:
        """The ordinal of the task that was claimed last: the one that runs, if one does."""
        return self._next_ordinal - 1

    def abort_executes(self, client: bytes) -> None:
        """Have the client's `execute` tasks that are queued now end as aborted."""
        with self._lock:
            for piece in self._slices:
                if piece.client == client and piece.method == "execute":
                    piece.fate = Fate.ABORTED

    def __len__(self) -> int:
        with self._lock:
            return sum(piece.info.count - piece.position for piece in self._slices)

    def _is_recalled(self, ordinal: int) -> bool:
        # Ordinals only grow: a range that ends before this one is of no more use.
        self._recalled = [entry for entry in self._recalled if entry[1] >= ordinal]
        return any(first <= ordinal for first, _ in self._recalled)
