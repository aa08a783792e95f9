"""How tasks end: values, errors, aborted; kept until they are sent.

What lives here: `RunningTask`, a task from its start to its end, and `Outcomes`, which turns ends
into results and holds them. What must not: sockets, the queue, user code (but for what rendering an
error calls).

The main thread adds, the main thread and the second thread take; one lock guards what waits.
What was taken is kept until the client has it (`kept`). While the main thread's channel is not
attached only the second thread takes: what it tells a controller of, and sends it again, must be
all there is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from ipyfleet_protocol.blobs import BLOB_MIN_BYTES, BlobStore
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import info_from_exception
from ipyfleet_protocol.messages import ABORTED, FAILED, UNMET, ErrorInfo, HeldTasks, PlacedRange

from .ipykernel_hooks import TracebackRenderer
from .kept import KeptResults
from .kernel import FleetKernel
from .output import OutputCollector, TaskOutput
from .results import Outgoing, ResultBuffer, cancelled_results
from .tasks import QueuedSlice

log = logging.getLogger("ipyfleet.engine")

DUE_S = 0.002
"""A result is never held back for longer."""

_NAN = float("nan")


class RunningTask(TaskOutput):
    """A task from its start to its end; what it publishes is attributed to it.

    Attributes:
        piece, index: where it is.
        started: seconds since the epoch.
    """

    __slots__ = ("index", "piece", "started")

    def __init__(self, piece: QueuedSlice, index: int) -> None:
        self.client = piece.client
        self.seq = piece.first + index
        self.attempt = piece.info.attempt
        self.n_items = 0
        self.dropped_bytes = 0
        self.piece = piece
        self.index = index
        self.started = time.time()


class Outcomes:
    """See the module docstring.

    Attributes:
        engine_id: what results and errors say of where they come from; -1 until it is known.
        has_waiting: results wait to be sent.
        n_bytes: bytes of these results.
    """

    def __init__(self, kernel: FleetKernel, blobs: BlobStore, host: str) -> None:
        """Make an empty one; results for peers on `host` may go to `blobs`."""
        self._kernel = kernel
        self._collector: OutputCollector = kernel.collector
        self._renderer = TracebackRenderer(kernel.shell)
        self._blobs = blobs
        self._host = host
        self._lock = threading.Lock()
        self._results = ResultBuffer()
        self.has_waiting = False
        self.n_bytes = 0
        self._oldest = 0.0
        self._is_suspended = False

    @property
    def engine_id(self) -> int:
        """The engine's id; -1 before the controller has given one."""
        return self._results.engine_id

    @engine_id.setter
    def engine_id(self, value: int) -> None:
        self._results.engine_id = value
        self._kernel.int_id = value

    @property
    def engine_uuid(self) -> str:
        """The engine's peer id in hex."""
        return str(self._kernel.ident)

    # -- what waits ---------------------------------------------------------------------------

    def take(self) -> list[Outgoing]:
        """Return all that waits, as messages; for the main thread: nothing while suspended."""
        with self._lock:
            return [] if self._is_suspended else self._take()

    def take_due(self, now: float) -> tuple[list[Outgoing], bool]:
        """Return results that have waited too long, and whether any wait; for the second thread."""
        with self._lock:
            if not self.has_waiting:
                return [], False
            if now - self._oldest < DUE_S:
                return [], True
            return self._take(), True

    def _take(self) -> list[Outgoing]:
        self.has_waiting = False
        self.n_bytes = 0
        return self._results.take()

    # -- after a break ------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep from now on what is taken, until `taken`."""
        with self._lock:
            self._results.kept = self._results.kept or KeptResults()

    def taken(self, client: bytes, number: int) -> None:
        """A client has its results up to `number`."""
        with self._lock:
            if self._results.kept is not None:
                self._results.kept.taken(client, number)

    def kept(self) -> list[Outgoing]:
        """Return the messages with results that their clients may not have."""
        with self._lock:
            kept = self._results.kept
            return [] if kept is None else [(m, list(frames)) for m, frames in kept.messages()]

    def suspend(self) -> tuple[list[HeldTasks], int]:
        """Give the main thread nothing from now on; return what is held here.

        Returns:
            The tasks whose results wait or are kept, and the ordinal of the task that ended last.
        """
        with self._lock:
            self._is_suspended = True
            return self._results.held()

    def resume(self) -> None:
        """Give the main thread results again."""
        with self._lock:
            self._is_suspended = False

    # -- how a task ends ----------------------------------------------------------------------

    def finish(
        self, task: RunningTask, status: int, pickle: bytes, buffers: Sequence[Any] = ()
    ) -> None:
        """Add the result of a task.

        Args:
            task: which.
            status: `OK`, `FAILED`, `ABORTED` or `UNMET`.
            pickle, buffers: the payload.
        """
        # NaN is unlike itself: a task that never started does not complete either.
        completed = time.time() if task.started == task.started else _NAN
        frames: Sequence[tuple[Frame, bool]] = ()
        if buffers:
            frames = [self._place(task, buffer) for buffer in buffers]
        batches = self._collector.finish(task)
        with self._lock:
            results = self._results
            if not self.has_waiting:
                self.has_waiting = True
                self._oldest = time.monotonic()
            for batch in batches:
                results.append_output(batch)
            results.append(
                task.piece,
                task.index,
                status,
                (task.started, completed),
                task.n_items,
                pickle,
                frames,
            )
            self.n_bytes = results.n_bytes
        # Threads and coroutines that go on refer to the task; its arguments need not stay, too.
        del task.piece

    def _place(self, task: RunningTask, buffer: Any) -> tuple[Frame, bool]:
        view = memoryview(buffer)
        if view.nbytes >= BLOB_MIN_BYTES and task.piece.info.host == self._host:
            handle = self._blobs.put(buffer)
            if handle is not None:
                return encode_part(handle), True
        # A copy: the next task may change what this one has returned before it is sent.
        return view.tobytes(), False

    def fail(self, task: RunningTask, error: BaseException) -> None:
        """End a task by what it has raised, whatever that is."""
        self._end_by(task, error, FAILED)

    def _end_by(self, task: RunningTask, error: BaseException, status: int) -> None:
        try:
            info = self._info(task, error, self._renderer.render(error))
        except Exception as trouble:
            # Out of memory, or an exception class that is broken beyond what is foreseen.
            log.warning("an error of a task cannot be rendered", exc_info=True)
            name = type(error).__name__
            note = f"{name}; its text cannot be shown: {type(trouble).__name__}"
            info = self._plain_info(task, name, note, [note])
        # The traceback refers to the frames of user code, and so to all that they held.
        error.__traceback__ = None
        self.finish(task, status, encode_part(info))

    def turn_down(self, task: RunningTask, error: BaseException) -> None:
        """End a task that needs what this engine has not, to be tried elsewhere."""
        self._collector.discard(task)
        self._end_by(task, error, UNMET)

    def fail_execute(self, task: RunningTask, reply: dict[str, Any]) -> None:
        """End an `execute` by the error that the kernel's reply tells of."""
        shown = reply.get("exception")
        lines = [str(line) for line in reply.get("traceback", [])]
        if isinstance(shown, BaseException):
            info = self._info(task, shown, lines)
        else:
            info = self._plain_info(task, str(reply["ename"]), str(reply["evalue"]), lines)
        self.finish(task, FAILED, encode_part(info))

    def fail_own(
        self, task: RunningTask, ename: str, evalue: str, *, aborted: bool = False
    ) -> None:
        """End a task by an error of our own; with `aborted` it has never run."""
        if aborted:
            task.started = _NAN
        self._fail_own(task, ename, evalue, ABORTED if aborted else FAILED)

    def abort(self, task: RunningTask, error: BaseException | None) -> None:
        """End a task that was interrupted because it was cancelled."""
        if error is not None:
            error.__traceback__ = None
        self._fail_own(task, "TaskAborted", "the task was cancelled while it ran", ABORTED)

    def _fail_own(self, task: RunningTask, ename: str, evalue: str, status: int) -> None:
        info = self._plain_info(task, ename, evalue, [f"{ename}: {evalue}"])
        info.own = True
        self.finish(task, status, encode_part(info))

    def never_run(self, client: bytes, ranges: Sequence[PlacedRange]) -> Outgoing:
        """Return the message that tasks nobody had begun were cancelled; for any thread."""
        reason = "the task was cancelled before it started"
        info = ErrorInfo(
            "TaskAborted", reason, [f"TaskAborted: {reason}"], self.engine_id, self.engine_uuid
        )
        info.own = True
        message, frames = cancelled_results(client, self.engine_id, encode_part(info), ranges)
        with self._lock:
            return self._results.number(message, frames)

    def _info(self, task: RunningTask, error: BaseException, lines: list[str]) -> ErrorInfo:
        return info_from_exception(
            error,
            engine_id=self.engine_id,
            engine_uuid=self.engine_uuid,
            method=task.piece.method,
            traceback=lines,
        )

    def _plain_info(
        self, task: RunningTask, ename: str, evalue: str, lines: list[str]
    ) -> ErrorInfo:
        method = task.piece.method
        return ErrorInfo(ename, evalue, lines, self.engine_id, self.engine_uuid, method)
