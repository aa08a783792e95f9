"""The engine's link to the controller: its second thread.

What lives here: `EngineLink`, the thread that owns the sockets CONTROL and OUTPUT, says hello,
answers the controller while user code runs, and sends what must not wait for user code. What must
not: user code, the TASK socket.

Theory of operation
-------------------
The thread sleeps until CONTROL has something or somebody writes to its wake-up pipe. The main
thread does so when results wait while it begins a task (`arm_results`); the thread then looks
every 2 ms, until for a while nothing has waited: a steady stream of short tasks costs 500 looks
per second and not a wake-up per batch. Output that begins to wait does so too (`arm_output`); it
is sent every 25 ms. The C-level signal handler writes signal numbers into the same pipe, so that
SIGTERM is noticed whatever the main thread does.

A connection that breaks is made again by zmq. Then the engine says hello again: a controller that
has given it up answers with `Closing`, and the engine leaves.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

import zmq

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.messages import (
    AnyMessage,
    ClearNamespace,
    Closing,
    ControlReply,
    DropTasks,
    DumpStacks,
    EngineControl,
    ErrorInfo,
    Goodbye,
    KillRunning,
    Message,
    Output,
    PingEngine,
    Recall,
    Recalled,
    Refused,
    SendSignal,
    StartCall,
    StopEngine,
    Welcome,
)

from .channel import receive_all, send
from .endpoint import Endpoint
from .interrupts import AIM_INTERVAL_S, InterruptHandler
from .lifeline import Lifeline
from .outcomes import DUE_S
from .output import OutputCollector
from .runner import TaskRunner
from .stacks import format_stacks

log = logging.getLogger("ipyfleet.engine")

OUTPUT_INTERVAL_S = 0.025
OUTPUT_MESSAGE_BYTES = 256 * 1024
OUTPUT_QUEUE_MESSAGES = 32
ARMED_FOR_S = 0.1
LEAVE_GRACE_S = 1.0
LAST_WORDS_S = 0.05


class State(enum.Enum):
    """Where the engine stands."""

    JOINING = "joining"
    JOINED = "joined"
    LEAVING = "leaving"


class EngineLink:
    """See the module docstring.

    Attributes:
        state: where the engine stands; written by the second thread and `leave`.
        exit_code: what the process is to end with, once `state` is LEAVING.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        runner: TaskRunner,
        collector: OutputCollector,
        *,
        interrupts: InterruptHandler,
        timeout_s: float,
        away_s: float = 0.0,
        on_joined: Callable[[list[StartCall]], None],
        on_leaving: Callable[[], None],
        on_stop: Callable[[], None],
        clear: Callable[[], None],
    ) -> None:
        """Make a link; `start` connects it.

        Args:
            endpoint: where to.
            runner: whose tasks are recalled and dropped, whose results are sent.
            collector: whose output is sent.
            interrupts: interrupts tasks that are cancelled while they run.
            timeout_s: how long to wait for the controller's welcome.
            away_s: how long the controller may be gone later on; 0 for "for ever".
            on_joined: called in the second thread when the engine has joined, with what is to be
                called first; lets tasks run.
            on_stop: called in the second thread when the engine is told to stop.
            on_leaving: called in the second thread when the main thread is to stop.
            clear: resets the namespace; called in the main thread.
        """
        self.state = State.JOINING
        self.exit_code = 0
        self._endpoint = endpoint
        self._interrupts = interrupts
        self._timeout_s = timeout_s
        self._away_s = away_s
        self._on_joined = on_joined
        self._on_stop = on_stop
        self._lifeline: Lifeline
        self._runner = runner
        self._collector = collector
        self._on_leaving = on_leaving
        self._clear = clear
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._results_armed = False
        self._output_armed = False
        self._output_due = 0.0
        self._replies: list[ControlReply] = []
        self._held_output: tuple[Output, list[Frame]] | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ipyfleet-link", daemon=True)
        self._control: zmq.Socket[bytes]
        self._output: zmq.Socket[bytes]

    # -- called by the main thread ------------------------------------------------------------

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Connect the sockets and start the thread; the wake-up pipe gets signals from now on."""
        point = self._endpoint
        self._control = point.connect(context, Channel.CONTROL)
        self._output = point.connect(context, Channel.OUTPUT)
        self._output.setsockopt(zmq.SNDHWM, OUTPUT_QUEUE_MESSAGES)
        self._output.setsockopt(zmq.LINGER, 200)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._thread.start()

    def arm_results(self) -> None:
        """Results wait while a task begins: they are to leave in 2 ms whatever the task does."""
        if not self._results_armed:
            self._results_armed = True
            self._wake()

    def arm_output(self) -> None:
        """Output has begun to wait; from any thread."""
        if not self._output_armed:
            self._output_armed = True
            self._wake()

    def reply(self, reply: ControlReply) -> None:
        """Have an answer sent; from any thread."""
        self._replies.append(reply)
        self._wake()

    def leave(self, exit_code: int = 0) -> None:
        """Say goodbye and end the thread; from any thread."""
        if self.state is not State.LEAVING:
            self.state = State.LEAVING
            self.exit_code = exit_code
        self._wake()

    def join(self, timeout_s: float = 2.0) -> None:
        """Wait until the thread has said goodbye and closed its sockets."""
        self._left.set()
        self._wake()
        self._thread.join(timeout_s)
        signal.set_wakeup_fd(-1)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            # The pipe is full of wake-ups that have not been seen: one more would say nothing new.
            return

    # -- the second thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            log.critical("the link thread failed; the engine exits", exc_info=True)
            os._exit(70)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        self._lifeline = Lifeline(self._control, self._away_s)
        poller.register(self._lifeline.monitor, zmq.POLLIN)
        send(self._control, self._endpoint.hello())
        send(self._output, self._endpoint.attach())
        give_up = time.monotonic() + self._timeout_s
        results_seen = 0.0
        while self.state is not State.LEAVING:
            poller.poll(self._timeout_ms(give_up))
            self._read_wakeups()
            receive_all(self._control, self.handle)
            self._send_replies()
            now = time.monotonic()
            if self._results_armed:
                results_seen = self._send_due(now, results_seen)
            if self._output_armed:
                self._send_due_output(now)
            if self._interrupts.aim >= 0:
                self._interrupts.follow_up(self._runner.queue.last_claimed)
            self._see_to_connection(now)
            if self.state is State.JOINING and now > give_up:
                self._fail(
                    f"the controller at {self._endpoint.url} has not answered for "
                    f"{self._timeout_s:.0f} s"
                )
        self._lifeline.close()
        self._say_goodbye()

    def _see_to_connection(self, now: float) -> None:
        if self._lifeline.read(now):
            send(self._control, self._endpoint.hello())
        give_up = self._lifeline.gives_up_at
        if give_up is not None and now > give_up and self.state is State.JOINED:
            self._fail(f"the controller has been gone for {self._away_s:g} s")

    def _timeout_ms(self, give_up: float) -> int | None:
        if self._results_armed:
            return int(DUE_S * 1000)
        if self._output_armed:
            return max(1, int((self._output_due - time.monotonic()) * 1000) + 1)
        if self._interrupts.aim >= 0:
            return int(AIM_INTERVAL_S * 1000)
        if self.state is not State.JOINING:
            gives_up_at = self._lifeline.gives_up_at
            if gives_up_at is None:
                return None
            give_up = gives_up_at
        return max(1, int((give_up - time.monotonic()) * 1000) + 1)

    def _read_wakeups(self) -> None:
        try:
            data = os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        if signal.SIGINT in data:
            # A handler that cancels an awaited cell may run without ending the loop's sleep.
            self._runner.wake()
        if signal.SIGTERM in data:
            log.info("SIGTERM: leaving")
            self.leave(0)

    def handle(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        """Do what a message on CONTROL asks for."""
        match message:
            case Welcome() if self.state is State.JOINING:
                self._runner.outcomes.engine_id = message.engine_id
                self.state = State.JOINED
                self._on_joined(message.start_calls)
                log.info("joined as engine %d", message.engine_id)
            case Recall():
                given = self._runner.queue.recall(message.first, message.last)
                send(self._control, Recalled(*given))
            case DropTasks():
                self._drop(message)
            case KillRunning():
                self._kill_running(message)
            case EngineControl():
                self._handle_control(message)
            case Closing():
                log.info("the controller closes: %s", message.reason)
                self.leave(0)
            case Refused():
                if self.state is State.JOINING:
                    self._fail(f"the controller refused this engine: {message.reason}")
                else:
                    log.error("the controller refused a message: %s", message.reason)

    def _handle_control(self, message: EngineControl) -> None:
        reply = ControlReply(message.client, message.request, self._runner.outcomes.engine_id)
        match message.action:
            case PingEngine():
                send(self._control, reply)
            case ClearNamespace():
                self._runner.when_idle(lambda: self._clear_and_reply(reply))
            case SendSignal(signum=signum):
                try:
                    os.kill(os.getpid(), signum)
                except (OSError, ValueError) as error:
                    reply.error = self._error(error)
                send(self._control, reply)
            case DumpStacks():
                reply.content = format_stacks().encode()
                send(self._control, reply)
            case StopEngine():
                self._on_stop()
                send(self._control, reply)
                self.leave(0)

    def _drop(self, message: DropTasks) -> None:
        dropped = self._runner.queue.drop(message.ranges)
        if dropped:
            send(self._control, *self._runner.outcomes.never_run(message.client, dropped))
        if message.interrupt:
            last = self._runner.queue.last_claimed
            if any(piece.ordinal <= last < piece.ordinal + piece.count for piece in message.ranges):
                self._interrupts.interrupt(last)

    def _kill_running(self, message: KillRunning) -> None:
        """End the process at once if it runs one of the tasks; no agent is there to do it."""
        running = self._runner.running
        if any(piece.ordinal <= running < piece.ordinal + piece.count for piece in message.ranges):
            log.critical("killed, because the task that runs was cancelled by force")
            self._send_output()
            for outgoing, frames in self._runner.outcomes.take():
                send(self._control, outgoing, frames)
            time.sleep(LAST_WORDS_S)
            os.kill(os.getpid(), signal.SIGKILL)

    def _clear_and_reply(self, reply: ControlReply) -> None:
        try:
            self._clear()
        except Exception as error:
            log.warning("the namespace cannot be cleared", exc_info=True)
            reply.error = self._error(error)
        self.reply(reply)

    def _error(self, error: Exception) -> ErrorInfo:
        return ErrorInfo(
            type(error).__name__,
            str(error),
            [f"{type(error).__name__}: {error}"],
            self._runner.outcomes.engine_id,
            self._runner.outcomes.engine_uuid,
            "control",
        )

    def _fail(self, reason: str) -> None:
        log.critical("%s; the engine exits", reason)
        self.leave(1)

    # -- what is sent -------------------------------------------------------------------------

    def _send_replies(self) -> None:
        while self._replies:
            send(self._control, self._replies.pop(0))

    def _send_due(self, now: float, seen: float) -> float:
        """Send results that are due; disarm when none has waited for a while."""
        outgoing, waiting = self._runner.outcomes.take_due(now)
        for message, frames in outgoing:
            send(self._control, message, frames)
        if waiting:
            return now
        if now - seen > ARMED_FOR_S:
            self._results_armed = False
            # The main thread may have looked at the flag just before.
            if self._runner.outcomes.take_due(float("-inf"))[1]:
                self._results_armed = True
        return seen

    def _send_due_output(self, now: float) -> None:
        """Send output that has waited for long; a task that ends before takes its own along."""
        if not self._output_due:
            self._output_due = now + OUTPUT_INTERVAL_S
        elif now >= self._output_due:
            # Disarmed first: what is written from here on arms again.
            self._output_armed = False
            self._output_due = 0.0
            self._send_output()
            if self._output_armed:
                self._output_due = now + OUTPUT_INTERVAL_S

    def _send_output(self) -> None:
        """Send output until there is none or the socket takes no more."""
        while True:
            if self._held_output is None:
                batches = self._collector.drain(OUTPUT_MESSAGE_BYTES)
                if not batches:
                    return
                engine = self._runner.outcomes.engine_id
                waiting = [(Output(b.client, engine, b.items), b.frames) for b in batches]
            else:
                waiting = [self._held_output]
            for position, (message, frames) in enumerate(waiting):
                try:
                    send(self._output, message, frames)
                except zmq.Again:
                    self._hold(waiting[position:])
                    self._output_armed = True
                    return
            self._held_output = None

    def _hold(self, waiting: list[tuple[Output, list[Frame]]]) -> None:
        """Keep numbered items that the socket would not take; several clients' are rare."""
        self._held_output = waiting[0]
        for message, frames in waiting[1:]:
            # CONTROL has no bound; what goes there is at most one drain.
            send(self._control, message, frames)

    def _say_goodbye(self) -> None:
        self._on_leaving()
        message: Message = Goodbye("the engine leaves")
        # The main thread stops first, if it can, so that its last results precede the goodbye.
        if not self._left.wait(LEAVE_GRACE_S):
            log.warning("user code does not stop; the engine exits")
            send(self._control, message)
            self._control.close()
            self._output.close(0)
            # zmq says nothing of what has left, and its context cannot end: TASK is still open.
            time.sleep(LAST_WORDS_S)
            os._exit(self.exit_code)
        self._send_output()
        send(self._control, message)
        self._control.close()
        self._output.close()
