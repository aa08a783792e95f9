"""Runs tasks, one at a time, in the main thread, in the order of their ordinals.

What lives here: `TaskRunner`, the engine's main loop below asyncio. What must not: sockets (it is
given a channel), ipykernel's insides.

Theory of operation
-------------------
`pump` is called when TASK may have brought something, and runs tasks until there is none left.
`apply` and `map` run right there, without asyncio and without the kernel: unpickle, call, pickle,
append to the result buffer. An `execute`, or a function that turns out to be ``async def``,
becomes an asyncio task; `pump` returns and is called again when that is done, and while it waits
nothing else is started. All tasks run in one context, so that a context variable that one has set
is still set in the next, as in the cells of a notebook. Every 25 ms `pump` lets the event loop
have a turn, for background tasks of user code. A turn costs 50 µs after a task that has let the
CPU's caches go cold, so tasks do not come through the loop, one by one: when none is left here,
TASK itself is asked.

Results leave at once when nothing else is to be done, else once a millisecond. When a task begins
while results are waiting the second thread is armed: it sends what has waited for 2 ms
(`take_due`). One lock guards the result buffer; the queue has its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from ipyfleet_protocol.blobs import BlobStore, map_blob
from ipyfleet_protocol.codec import decode_part, encode_part, split
from ipyfleet_protocol.columns import Frame, Payloads
from ipyfleet_protocol.errors import UnmetDependency, is_unmet
from ipyfleet_protocol.messages import (
    OK,
    BlobHandle,
    ExecuteInfo,
    HeldTasks,
    Message,
    RunTasks,
)

from .functions import FunctionCache, planted
from .interrupts import InterruptHandler
from .kept import after, joined
from .kernel import FleetKernel
from .mark import IDLE, RunningMark
from .outcomes import Outcomes, RunningTask
from .output import OutputCollector
from .tasks import Fate, QueuedSlice, TaskQueue
from .usercode import Awaiting, call, finish_awaiting, run_code

log = logging.getLogger("ipyfleet.engine")

SEND_INTERVAL_S = 0.001
TURN_S = 0.025
FULL_BYTES = 1024 * 1024

_ELSEWHERE = (
    "the task's large arguments are in the shared memory of another host than this engine's, which "
    "joined when they were there already; make the call again, and they travel in the message"
)

_RUN = Fate.RUN  # an attribute of an enumeration takes as long as a call

_STOPPED = "the engine was told to stop while it ran the task"

Visit = Callable[[], Coroutine[Any, Any, None]]
"""Work that is no task, awaited between two tasks."""


class Sender(Protocol):
    """What the runner needs of the TASK channel."""

    @property
    def is_attached(self) -> bool:
        """Whether what is sent leaves."""

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message."""

    def receive(self) -> bool:
        """Take in all messages that are there; True if there was one."""


class TaskRunner:
    """See the module docstring.

    Attributes:
        queue: tasks that wait; the second thread recalls and drops there.
        outcomes: tasks that have ended and wait to be sent.
        on_waiting_results: called when results wait while a task begins; arms the second thread
            once that is there.
        is_suspended: neither tasks nor results pass over TASK, since the connection broke.
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
    ) -> None:
        self.queue = TaskQueue()
        self.outcomes = Outcomes(kernel, blobs, host)
        self.on_waiting_results: Callable[[], None] = _nothing
        self.stopping = False
        self.is_suspended = False
        self._kernel = kernel
        self._namespace: dict[str, Any] = kernel.namespace
        self._collector: OutputCollector = kernel.collector
        self._functions = FunctionCache()
        self._loop = loop
        self._interrupts = interrupts
        self._blob_dir: Path = blobs.directory
        self._host = host
        self._running = mark.cell
        self._channel: Sender | None = None
        self._awaited_task: RunningTask | None = None
        self._last_send = 0.0
        self._context = contextvars.copy_context()
        self._is_open = False
        self._busy = False
        self._lock = threading.Lock()
        self._suspensions = 0
        self._answers = 0
        self._deferred: list[Callable[[], None]] = []
        self._visits: deque[Visit] = deque()

    @property
    def running(self) -> int:
        """The ordinal of the task that runs, or `IDLE`; for any thread."""
        return int(self._running[0])

    def attach(self, channel: Sender) -> None:
        """Take the channel over which tasks come and results go."""
        self._channel = channel

    # -- what arrives -------------------------------------------------------------------------

    def handle(self, message: RunTasks, frames: Sequence[Frame]) -> None:
        """Queue the tasks of a message.

        Raises:
            ProtocolError: if its frames are not what it announces; nothing is queued then.
            Suspended: it came over a connection that is given up; nothing is queued.
        """
        pieces = []
        for info, parts in zip(message.slices, split(message, frames), strict=True):
            piece = QueuedSlice(info, Payloads(info.columns, parts.payload))
            if info.function is not None:
                piece.known = self._functions.learn(info.function, parts.function)
            pieces.append(piece)
        self.queue.extend(pieces)

    def suspend(self) -> tuple[list[HeldTasks], int, bool]:
        """Take no tasks and hand over no results over TASK until `resume`; in the second thread.

        What runs goes on, and so does what waits here.

        Returns:
            The tasks that are held, the first ordinal that has not been seen, and whether this is
            new: then the main thread is to open TASK anew.
        """
        with self._lock:
            is_new = not self.is_suspended
            self.is_suspended = True
            self._suspensions += is_new
            # In the order in which a task moves, so that none is missed.
            queued, next_ordinal = self.queue.suspend()
            ended, last = self.outcomes.suspend()
        return joined([*after(queued, last), *ended]), next_ordinal, is_new

    def note_new_channel(self) -> None:
        """TASK is being opened anew: what it brings comes after what `suspend` has told."""
        with self._lock:
            self._answers = self._suspensions

    def resume(self) -> None:
        """TASK is attached: take tasks in again, unless it was suspended since it was opened."""
        with self._lock:
            if self._answers == self._suspensions:
                self.queue.resume()
                self.outcomes.resume()
                self.is_suspended = False

    def open(self, first: Visit | None = None) -> None:
        """Let tasks run from now on, after `first`; from any thread, when the engine has joined."""
        if first is not None:
            self._visits.append(first)
        self._is_open = True
        self._loop.call_soon_threadsafe(self.pump)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Have the main thread call `action` between two tasks; from any thread."""
        self._deferred.append(action)
        self._loop.call_soon_threadsafe(self.pump)

    def wake(self) -> None:
        """Have the event loop look at what there is to do; from any thread."""
        self._loop.call_soon_threadsafe(_nothing)

    def visit(self, action: Visit) -> None:
        """Have the main thread await what `action` returns between two tasks; from any thread."""
        self._visits.append(action)
        self._loop.call_soon_threadsafe(self.pump)

    # -- the loop -----------------------------------------------------------------------------

    def pump(self) -> None:
        """Run tasks until there is none left, or one has to be awaited, or 25 ms have passed."""
        if self._busy or self._channel is None or not self._is_open:
            return
        self._busy = True
        awaiting = False
        # Libraries take SIGINT for themselves when they are loaded; R does.
        self._interrupts.install()
        try:
            awaiting = self._context.run(self._run_queue, self._channel)
        finally:
            self._busy = awaiting
            if not awaiting:
                self._running[0] = IDLE

    def _run_queue(self, channel: Sender) -> bool:
        """Run tasks; return whether one is being awaited."""
        now = time.monotonic()
        turn_ends = now + TURN_S
        queue, outcomes = self.queue, self.outcomes
        while not self.stopping:
            while self._deferred:
                self._deferred.pop(0)()
            if self._visits:
                self._receive_visit(self._visits.popleft())
                return True
            claim = queue.claim()
            if claim is None:
                if outcomes.has_waiting:
                    self.flush()
                if channel.receive():
                    continue
                return False
            piece, index, fate = claim
            if fate is not _RUN:
                self._abort(piece, index)
            else:
                if outcomes.has_waiting:
                    # To be sent, or to be looked after by the second thread.
                    if now - self._last_send > SEND_INTERVAL_S or outcomes.n_bytes > FULL_BYTES:
                        self.flush()
                    else:
                        self.on_waiting_results()
                self._running[0] = piece.info.ordinal + index
                if piece.method == "execute":
                    task = self._collector.task = RunningTask(piece, index)
                    self._start(task, self._execute(task))
                    return True
                if not self._call(piece, index):
                    return True
            now = time.monotonic()
            if now > turn_ends:
                self._loop.call_soon(self.pump)
                return False
        return False

    def flush(self) -> bool:
        """Send what has ended; False if that cannot be now, and the second thread is to do it."""
        assert self._channel is not None
        outgoing = self.outcomes.take() if self._channel.is_attached else []
        for message, frames in outgoing:
            self._channel.send(message, frames)
        self._last_send = time.monotonic()
        if not outgoing and self.outcomes.has_waiting:
            self.on_waiting_results()
        return bool(outgoing)

    # -- apply and map ------------------------------------------------------------------------

    def _call(self, piece: QueuedSlice, index: int) -> bool:
        """Run one `apply` or `map` task; False if it is being awaited."""
        task = self._collector.task = RunningTask(piece, index)
        try:
            known = piece.known
            if known is None:
                self._fail_unknown(task)
                return True
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
                self._start(task, self._await(task, outcome, known.self_name))
                return False
            self.outcomes.finish(task, OK, outcome.pickle, outcome.buffers)
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is its task's
            self._fail(task, error)
        return True

    def _fail(self, task: RunningTask, error: BaseException) -> None:
        """End a task by what it has raised, or as cancelled if that is why it raised.

        Or, where the controller can try other engines, as not for this one.
        """
        if self._was_cancelled(task):
            self.outcomes.abort(task, error)
        elif self._was_stopped(error):
            self.outcomes.fail_own(task, "EngineError", _STOPPED)
        elif task.piece.info.balanced and is_unmet(error):
            self.outcomes.turn_down(task, error)
        else:
            self.outcomes.fail(task, error)

    def _was_cancelled(self, task: RunningTask) -> bool:
        return self._interrupts.hit == task.piece.info.ordinal + task.index

    def _was_stopped(self, error: object) -> bool:
        # Raised in user code where SIGTERM or the controller's word found it.
        return self.stopping and isinstance(error, SystemExit)

    def _fail_unknown(self, task: RunningTask) -> None:
        function = task.piece.function
        name = function.name if function is not None else ""
        reason = f"the engine does not know the function {name!r} any more; resubmit"
        self.outcomes.fail_own(task, "KernelError", reason)

    def _buffers(self, piece: QueuedSlice, at: int) -> list[memoryview]:
        frames = piece.payloads.buffer_frames(at)
        out = []
        for frame, is_blob in zip(frames, piece.payloads.buffer_blobs(at), strict=True):
            if is_blob:
                if piece.info.host != self._host:
                    raise UnmetDependency(_ELSEWHERE)
                out.append(map_blob(self._blob_dir, decode_part(frame, BlobHandle)))
            elif piece.info.shared and piece.info.count > 1:
                # Each of the tasks may write into its arrays.
                out.append(memoryview(bytearray(frame)))
            else:
                out.append(memoryview(frame))
        return out

    # -- what has to be awaited ---------------------------------------------------------------

    def _start(self, task: RunningTask, coroutine: Coroutine[Any, Any, None]) -> None:
        self._awaited_task = task
        waiting = self._loop.create_task(coroutine, context=self._context)
        self._interrupts.awaiting = waiting
        self._interrupts.cancelled = False
        waiting.add_done_callback(self._awaited)

    def _awaited(self, waiting: asyncio.Task[None]) -> None:
        self._interrupts.awaiting = None
        task = self._awaited_task
        assert task is not None
        self._awaited_task = None
        self._busy = False
        if waiting.cancelled():
            # SIGINT came before its first step: nothing of it has run.
            self._fail(task, KeyboardInterrupt())
        elif (error := waiting.exception()) is not None:
            log.error("the engine failed at a task", exc_info=error)
            self.outcomes.fail(task, error)
        self.pump()

    def _receive_visit(self, action: Visit) -> None:
        if self.outcomes.has_waiting:
            self.flush()
        self._running[0] = IDLE
        self._loop.create_task(action()).add_done_callback(self._visited)

    def _visited(self, waiting: asyncio.Task[None]) -> None:
        self._busy = False
        if not waiting.cancelled() and (error := waiting.exception()) is not None:
            log.error("the engine failed at a visit", exc_info=error)
        self.pump()

    async def _await(self, task: RunningTask, outcome: Awaiting, self_name: str) -> None:
        try:
            with planted(self._namespace, self_name, outcome.function):
                packed = await finish_awaiting(outcome.coroutine)
            self.outcomes.finish(task, OK, packed.pickle, packed.buffers)
        except BaseException as error:  # noqa: BLE001 - as in `_call`
            self._fail(task, self._true_error(error))

    async def _execute(self, task: RunningTask) -> None:
        piece = task.piece
        info = piece.info
        at = 0 if info.shared else task.index
        try:
            code = str(piece.payloads.pickle(at), "utf-8")
            reply = await run_code(self._kernel, code, info.silent)
        except BaseException as error:  # noqa: BLE001 - as in `_call`
            was_cancelled = self._was_cancelled(task)
            self._fail(task, self._true_error(error))
        else:
            if reply["status"] == "ok":
                payload = encode_part(ExecuteInfo(reply["execution_count"]))
                self.outcomes.finish(task, OK, payload)
                return
            was_cancelled = self._was_cancelled(task)
            if was_cancelled:
                self.outcomes.abort(task, reply.get("exception"))
            elif self._was_stopped(reply.get("exception")):
                self.outcomes.fail_own(task, "EngineError", _STOPPED)
            else:
                self.outcomes.fail_execute(task, reply)
        if not info.silent and not was_cancelled:
            assert self._channel is not None
            self._channel.receive()
            self.queue.abort_executes(piece.client)

    def _true_error(self, error: BaseException) -> BaseException:
        """A cancellation that SIGINT caused is a KeyboardInterrupt to the user."""
        if isinstance(error, asyncio.CancelledError) and self._interrupts.cancelled:
            return KeyboardInterrupt().with_traceback(error.__traceback__)
        return error

    def _abort(self, piece: QueuedSlice, index: int) -> None:
        reason = "not run, because an execute before it in the engine's queue failed"
        # The collector is not told: what threads still print belongs to the last task that ran.
        self.outcomes.fail_own(RunningTask(piece, index), "TaskAborted", reason, aborted=True)


def _nothing() -> None:
    """Take up no time in the event loop."""
