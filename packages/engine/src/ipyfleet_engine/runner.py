"""Runs tasks, one at a time, in the main thread, in the order of their ordinals.

What lives here: `TaskRunner`, the engine's main loop below asyncio. What must not: sockets (it is
given a channel), ipykernel's insides.

Theory of operation
-------------------
`pump` is called when the TASK socket may have something, and runs tasks until there is none left.
`apply` and `map` run right there, without asyncio and without the kernel: unpickle, call, pickle,
append to the result buffer. An `execute`, or a function that turns out to be ``async def``,
becomes an asyncio task; `pump` returns and is called again when that is done, and while it waits
nothing else is started. Every 10 ms `pump` lets the event loop have a turn, for background tasks
of user code.

Results leave at once when nothing else is to be done, else once a millisecond. When a task begins
while results are waiting the second thread is armed: it sends what has waited for 2 ms
(`take_due`). One lock guards the result buffer; the queue has its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from ipyfleet_protocol.blobs import BLOB_MIN_BYTES, BlobStore, map_blob
from ipyfleet_protocol.codec import decode_part, encode_part, split
from ipyfleet_protocol.columns import Frame, Payloads
from ipyfleet_protocol.errors import info_from_exception
from ipyfleet_protocol.messages import (
    ABORTED,
    FAILED,
    OK,
    BlobHandle,
    ErrorInfo,
    ExecuteInfo,
    Message,
    RunTasks,
)

from .functions import FunctionCache, KnownFunction, planted
from .interrupts import InterruptHandler
from .ipykernel_hooks import TracebackRenderer
from .kernel import FleetKernel
from .mark import IDLE, RunningMark
from .output import OutputCollector, TaskOutput
from .results import Outgoing, ResultBuffer
from .tasks import Fate, QueuedSlice, TaskQueue
from .usercode import Awaiting, call, finish_awaiting, run_code

log = logging.getLogger("ipyfleet.engine")

SEND_INTERVAL_S = 0.001
DUE_S = 0.002
TURN_S = 0.010
BUFFER_MAX_BYTES = 1024 * 1024
DROPS_KEPT_S = 5.0

_NAN = float("nan")


class Sender(Protocol):
    """What the runner needs of the TASK channel."""

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message."""

    def receive(self) -> bool:
        """Take in all messages that are there; True if there was one."""


class _Task:
    """One task while it runs."""

    __slots__ = ("index", "output", "piece", "started")

    def __init__(self, piece: QueuedSlice, index: int, output: TaskOutput) -> None:
        self.piece = piece
        self.index = index
        self.output = output
        self.started = time.time()


class TaskRunner:
    """See the module docstring.

    Attributes:
        queue: tasks that wait; the second thread recalls and drops there.
        engine_id: this engine's id, once the controller has given it.
        on_waiting_results: called when results wait while a task begins; arms the second thread.
    """

    def __init__(
        self,
        kernel: FleetKernel,
        *,
        loop: asyncio.AbstractEventLoop,
        interrupts: InterruptHandler,
        blobs: BlobStore,
        host: str,
        mark: RunningMark,
        on_waiting_results: Callable[[], None],
    ) -> None:
        self.queue = TaskQueue()
        self.on_waiting_results = on_waiting_results
        self.stopping = False
        self._kernel = kernel
        self._namespace: dict[str, Any] = kernel.namespace
        self._collector: OutputCollector = kernel.collector
        self._renderer = TracebackRenderer(kernel.shell)
        self._functions = FunctionCache()
        self._loop = loop
        self._interrupts = interrupts
        self._blobs = blobs
        self._blob_dir: Path = blobs.directory
        self._host = host
        self._running = mark.cell
        self._channel: Sender | None = None
        self._lock = threading.Lock()
        self._results = ResultBuffer()
        self._oldest = 0.0
        self._last_send = 0.0
        self._last_drop = 0.0
        self._busy = False
        self._deferred: list[Callable[[], None]] = []

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

    def attach(self, channel: Sender) -> None:
        """Take the channel over which tasks come and results go."""
        self._channel = channel

    # -- what arrives -------------------------------------------------------------------------

    def handle(self, message: RunTasks, frames: Sequence[Frame]) -> None:
        """Queue the tasks of a message.

        Raises:
            ProtocolError: if its frames are not what it announces; nothing is queued then.
        """
        for info, parts in zip(message.slices, split(message, frames), strict=True):
            piece = QueuedSlice(info, Payloads(info.columns, parts.payload))
            if info.function is not None:
                piece.known = self._functions.learn(info.function, parts.function)
            self.queue.append(piece)

    def drop(self, client: bytes, ranges: Sequence[Any]) -> None:
        """Have tasks end as cancelled that have not started; the second thread calls it."""
        self._last_drop = time.monotonic()
        self.queue.drop(client, ranges)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Have the main thread call `action` between two tasks; from any thread."""
        self._deferred.append(action)
        self._loop.call_soon_threadsafe(self.pump)

    # -- the loop -----------------------------------------------------------------------------

    def pump(self) -> None:
        """Run tasks until there is none left, or one has to be awaited, or 10 ms have passed."""
        if self._busy or self._channel is None:
            return
        self._busy = True
        awaiting = False
        try:
            awaiting = self._run_queue(self._channel)
        finally:
            self._busy = awaiting
            if not awaiting:
                self._running[0] = IDLE

    def _run_queue(self, channel: Sender) -> bool:
        """Run tasks; return whether one is being awaited."""
        now = time.monotonic()
        turn_ends = now + TURN_S
        while not self.stopping:
            while self._deferred:
                self._deferred.pop(0)()
            claim = self.queue.claim()
            if claim is None:
                if channel.receive():
                    continue
                if self._results:
                    self.flush()
                    # Sending may have used up the socket's signal that something is there.
                    continue
                if self.queue.has_drops() and now - self._last_drop > DROPS_KEPT_S:
                    self.queue.forget_drops()
                return False
            piece, index, fate = claim
            if fate is not Fate.RUN:
                self._abort(piece, index, fate)
            else:
                if self._results:
                    self._see_to_results(now)
                self._running[0] = piece.info.ordinal + index
                if piece.method == "execute":
                    self._start(self._execute(piece, index))
                    return True
                if not self._call(piece, index):
                    return True
            now = time.monotonic()
            if now > turn_ends:
                self._loop.call_soon(self.pump)
                return False
        return False

    def _see_to_results(self, now: float) -> None:
        """Results wait and a task begins: send them, or have the second thread look after them."""
        if now - self._last_send > SEND_INTERVAL_S or self._results.n_bytes > BUFFER_MAX_BYTES:
            self.flush()
        else:
            self.on_waiting_results()

    def flush(self) -> None:
        """Send what has ended."""
        with self._lock:
            outgoing = self._results.take()
        assert self._channel is not None
        for message, frames in outgoing:
            self._channel.send(message, frames)
        self._last_send = time.monotonic()

    def take_due(self, now: float) -> tuple[list[Outgoing], bool]:
        """Return results that have waited too long, and whether any wait; for the second thread."""
        with self._lock:
            if not self._results:
                return [], False
            if now - self._oldest < DUE_S:
                return [], True
            return self._results.take(), True

    # -- apply and map ------------------------------------------------------------------------

    def _call(self, piece: QueuedSlice, index: int) -> bool:
        """Run one `apply` or `map` task; False if it is being awaited."""
        output = self._collector.begin(piece.client, piece.first + index)
        started = time.time()
        try:
            known = piece.known
            if known is None:
                return self._unknown_function(_Task(piece, index, output))
            payloads = piece.payloads
            at = 0 if piece.info.shared else index
            buffers: Sequence[Any] = ()
            if payloads.columns.buffer_counts:
                buffers = self._buffers(piece, at)
            if known.self_name:
                function = known.get()
                with planted(self._namespace, known.self_name, function):
                    outcome = call(known, function, payloads.pickle(at), buffers, piece.method)
            else:
                outcome = call(known, known.target, payloads.pickle(at), buffers, piece.method)
            if isinstance(outcome, Awaiting):
                task = _Task(piece, index, output)
                task.started = started
                self._start(self._await(outcome, task, known))
                return False
            self._finish(piece, index, output, OK, started, outcome.pickle, outcome.buffers)
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is its task's
            self._fail(piece, index, output, started, error)
        return True

    def _unknown_function(self, task: _Task) -> bool:
        assert task.piece.function is not None
        name = task.piece.function.name
        self._fail_own(
            task,
            "KernelError",
            f"the engine does not know the function {name!r} any more; resubmit",
        )
        return True

    def _buffers(self, piece: QueuedSlice, at: int) -> list[memoryview]:
        frames = piece.payloads.buffer_frames(at)
        out = []
        for frame, is_blob in zip(frames, piece.payloads.buffer_blobs(at), strict=True):
            if is_blob:
                out.append(map_blob(self._blob_dir, decode_part(frame, BlobHandle)))
            elif piece.info.shared and piece.info.count > 1:
                # Each of the tasks may write into its arrays.
                out.append(memoryview(bytearray(frame)))
            else:
                out.append(memoryview(frame))
        return out

    # -- what has to be awaited ---------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._interrupts.awaiting = task
        self._interrupts.cancelled = False
        task.add_done_callback(self._awaited)

    def _awaited(self, task: asyncio.Task[None]) -> None:
        self._interrupts.awaiting = None
        self._busy = False
        if not task.cancelled() and task.exception() is not None:
            log.error("a task was lost by a fault of the engine", exc_info=task.exception())
        self.pump()

    async def _await(self, outcome: Awaiting, task: _Task, known: KnownFunction) -> None:
        piece, index, output = task.piece, task.index, task.output
        try:
            with planted(self._namespace, known.self_name, outcome.function):
                packed = await finish_awaiting(outcome.coroutine)
            self._finish(piece, index, output, OK, task.started, packed.pickle, packed.buffers)
        except BaseException as error:  # noqa: BLE001 - as in `_call`
            self._fail(piece, index, output, task.started, self._true_error(error))

    async def _execute(self, piece: QueuedSlice, index: int) -> None:
        info = piece.info
        output = self._collector.begin(piece.client, piece.first + index)
        started = time.time()
        at = 0 if info.shared else index
        try:
            code = str(piece.payloads.pickle(at), "utf-8")
            reply = await run_code(self._kernel, code, info.silent)
        except BaseException as error:  # noqa: BLE001 - as in `_call`
            self._fail(piece, index, output, started, self._true_error(error))
            failed = True
        else:
            failed = reply["status"] != "ok"
            if failed:
                payload = self._error_of_reply(reply)
                self._finish(piece, index, output, FAILED, started, payload)
            else:
                payload = encode_part(ExecuteInfo(reply["execution_count"]))
                self._finish(piece, index, output, OK, started, payload)
        if failed and not info.silent:
            assert self._channel is not None
            self._channel.receive()
            self.queue.abort_executes(piece.client)

    def _true_error(self, error: BaseException) -> BaseException:
        """A cancellation that SIGINT caused is a KeyboardInterrupt to the user."""
        if isinstance(error, asyncio.CancelledError) and self._interrupts.cancelled:
            return KeyboardInterrupt().with_traceback(error.__traceback__)
        return error

    def _error_of_reply(self, reply: dict[str, Any]) -> bytes:
        shown = reply.get("exception")
        traceback = [str(line) for line in reply.get("traceback", [])]
        if isinstance(shown, BaseException):
            info = self._info(shown, "execute", traceback)
        else:
            info = ErrorInfo(
                str(reply.get("ename")),
                str(reply.get("evalue")),
                traceback,
                self.engine_id,
                self.engine_uuid,
                "execute",
            )
        return encode_part(info)

    # -- how tasks end ------------------------------------------------------------------------

    def _finish(
        self,
        piece: QueuedSlice,
        index: int,
        output: TaskOutput,
        status: int,
        started: float,
        pickle: bytes,
        buffers: Sequence[Any] = (),
    ) -> None:
        completed = time.time()
        frames: Sequence[tuple[Frame, bool]] = ()
        if buffers:
            frames = [self._result_buffer(piece, buffer) for buffer in buffers]
        batches = self._collector.finish(output)
        with self._lock:
            results = self._results
            if not results:
                self._oldest = time.monotonic()
            for batch in batches:
                results.append_output(batch)
            results.append(
                piece, index, status, (started, completed), output.n_items, pickle, frames
            )

    def _result_buffer(self, piece: QueuedSlice, buffer: Any) -> tuple[Frame, bool]:
        view = memoryview(buffer)
        if view.nbytes >= BLOB_MIN_BYTES and piece.info.host == self._host:
            handle = self._blobs.put(buffer)
            if handle is not None:
                return encode_part(handle), True
        # A copy: the next task may change what this one has returned before it is sent.
        return view.tobytes(), False

    def _fail(
        self,
        piece: QueuedSlice,
        index: int,
        output: TaskOutput,
        started: float,
        error: BaseException,
    ) -> None:
        try:
            info = self._info(error, piece.method, self._renderer.render(error))
        except Exception as trouble:
            # Out of memory, or an exception class that is broken beyond what is foreseen.
            log.warning("an error of a task cannot be rendered", exc_info=True)
            name = type(error).__name__
            note = f"{name}; its text cannot be shown: {type(trouble).__name__}"
            info = ErrorInfo(name, note, [note], self.engine_id, self.engine_uuid, piece.method)
        payload = encode_part(info)
        # The traceback refers to the frames of user code, and so to all that they held.
        error.__traceback__ = None
        self._finish(piece, index, output, FAILED, started, payload)

    def _info(self, error: BaseException, method: str, traceback: list[str]) -> ErrorInfo:
        return info_from_exception(
            error,
            engine_id=self.engine_id,
            engine_uuid=self.engine_uuid,
            method=method,
            traceback=traceback,
        )

    def _fail_own(self, task: _Task, ename: str, evalue: str, status: int = FAILED) -> None:
        """End a task by an error of our own."""
        info = ErrorInfo(
            ename,
            evalue,
            [f"{ename}: {evalue}"],
            self.engine_id,
            self.engine_uuid,
            task.piece.method,
            own=True,
        )
        started = task.started if status == FAILED else _NAN
        self._finish(task.piece, task.index, task.output, status, started, encode_part(info))

    def _abort(self, piece: QueuedSlice, index: int, fate: Fate) -> None:
        # Not `begin`: what threads still print belongs to the last task that ran.
        task = _Task(piece, index, TaskOutput(piece.client, piece.first + index))
        if fate is Fate.CANCELLED:
            reason = "the task was cancelled before it started"
        else:
            reason = "not run, because an execute before it in the engine's queue failed"
        self._fail_own(task, "TaskAborted", reason, ABORTED)
