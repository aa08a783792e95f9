"""The engine's link to the controller: its second thread.

What lives here: `EngineLink`, the thread that owns the channels CONTROL and OUTPUT, says hello,
answers the controller while user code runs, and sends what must not wait for user code. What must
not: user code, the TASK channel.

Theory of operation
-------------------
The thread sleeps until a channel has something or somebody writes to its wake-up pipe. The main
thread does so when results wait while it begins a task (`arm_results`); the thread then looks
every 2 ms, until for a while nothing has waited: a steady stream of short tasks costs 500 looks
per second and not a wake-up per batch. Output that begins to wait does so too (`arm_output`); it
is sent every 25 ms, as far as the controller takes it: nobody waits for that, and the collector
drops what is too much. The C-level signal handler writes signal numbers into the same pipe, so that
SIGTERM is noticed whatever the main thread does.

When CONTROL's connection breaks the thread opens it anew (`channel`) and says hello with all that
the engine holds, should the controller have lost its memory; from there on TASK brings nothing in
until the main thread has opened it anew, too, which may take as long as user code. Results go over
CONTROL meanwhile. A controller that is another run of itself is sent all results again that their
clients may not have. One that has given the engine up answers with `Closing`, and the engine
leaves.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.messages import (
    AnyMessage,
    ClearNamespace,
    Closing,
    CommMessage,
    ControlReply,
    DropTasks,
    DumpStacks,
    EngineControl,
    ErrorInfo,
    Goodbye,
    Hello,
    KillRunning,
    Message,
    Output,
    PingEngine,
    Recall,
    Recalled,
    Refused,
    ResultsTaken,
    SendSignal,
    StopEngine,
    Welcome,
)

from .channel import ReliableChannel, wait_for_news
from .connections import Connector, QueueFull
from .endpoint import Endpoint
from .interrupts import AIM_INTERVAL_S, InterruptHandler
from .outcomes import DUE_S
from .output import OutputCollector
from .runner import TaskRunner
from .stacks import format_stacks

log = logging.getLogger("ipyfleet.engine")

OUTPUT_INTERVAL_S = 0.025
OUTPUT_MESSAGE_BYTES = 256 * 1024
OUTPUT_LINGER_S = 0.2
ARMED_FOR_S = 0.1
LEAVE_GRACE_S = 1.0
LAST_WORDS_S = 0.05

TELL_AGAIN_S = 0.2
"""How long TASK may be away, after CONTROL is back, before results that were sent over it are sent
again over CONTROL; those that had arrived are dropped over there."""


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
        on_joined: Callable[[Welcome], None],
        on_break: Callable[[], None],
        on_leaving: Callable[[], None],
        on_stop: Callable[[], None],
        clear: Callable[[], None],
        on_comm: Callable[[CommMessage, Sequence[Frame]], None],
    ) -> None:
        """Make a link; `start` connects it.

        Args:
            endpoint: where to.
            runner: whose tasks are recalled and dropped, whose results are sent.
            collector: whose output is sent.
            interrupts: interrupts tasks that are cancelled while they run.
            timeout_s: how long to wait for the controller's welcome.
            away_s: how long the controller may be gone later on; 0 for "for ever".
            on_joined: called in the second thread when the engine has joined; lets tasks run.
            on_break: called in the second thread when TASK is to be opened anew.
            on_stop: called in the second thread when the engine is told to stop.
            on_leaving: called in the second thread when the main thread is to stop.
            clear: resets the namespace; called in the main thread.
            on_comm: called in the second thread with what a widget's front end says.
        """
        self.state = State.JOINING
        self.exit_code = 0
        self._endpoint = endpoint
        self._interrupts = interrupts
        self._timeout_s = timeout_s
        self._away_s = away_s
        self._on_joined = on_joined
        self._on_stop = on_stop
        self._on_break = on_break
        self._tell_again_at: float | None = None
        self._runner = runner
        self._collector = collector
        self._on_leaving = on_leaving
        self._clear = clear
        self._on_comm = on_comm
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
        self._control = ReliableChannel(endpoint, Channel.CONTROL, self._greet, self.handle)
        self._output = ReliableChannel(
            endpoint,
            Channel.OUTPUT,
            endpoint.attach,
            self._handle_output,
            is_bounded=True,
        )
        self._channels = (self._control, self._output)

    # -- called by the main thread ------------------------------------------------------------

    def start(self, connector: Connector) -> None:
        """Connect the channels and start the thread; the wake-up pipe gets signals from now on."""
        for channel in self._channels:
            channel.open(connector)
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
        """Wait until the thread has said goodbye and closed its channels."""
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
        give_up = time.monotonic() + self._timeout_s
        results_seen = 0.0
        while self.state is not State.LEAVING:
            wait_for_news(self._channels, [self._wake_read], self._timeout_ms(give_up))
            self._read_wakeups()
            for channel in self._channels:
                channel.receive()
            self._send_replies()
            now = time.monotonic()
            self._see_to_connections(now)
            if self._results_armed and self._control.is_attached:
                results_seen = self._send_due(now, results_seen)
            if self._output_armed and self._output.is_ready:
                self._send_due_output(now)
            if self._interrupts.aim >= 0:
                self._interrupts.follow_up(self._runner.queue.last_claimed)
            if self.state is State.JOINING and now > give_up:
                self._fail(
                    f"the controller at {self._endpoint.url} has not answered for "
                    f"{self._timeout_s:.0f} s"
                )
        self._say_goodbye()

    def _see_to_connections(self, now: float) -> None:
        """See to what has broken and what is unsent; give up when the controller is away."""
        for channel in self._channels:
            channel.tend(now)
        gives_up_at = self._gives_up_at
        if gives_up_at is not None and now > gives_up_at:
            self._fail(f"the controller has been gone for {self._away_s:g} s")
        if self._tell_again_at is not None and now >= self._tell_again_at:
            self._tell_again_at = None
            if self._runner.is_suspended and self._control.is_attached:
                self._send_kept()

    @property
    def _gives_up_at(self) -> float | None:
        since = self._control.broken_since
        if since is None or not self._away_s or self.state is not State.JOINED:
            return None
        return since + self._away_s

    def _greet(self, incarnation: bytes, received: int) -> Hello:
        hello = self._endpoint.hello(incarnation, received)
        if incarnation:
            hello.wanted_id = self._runner.outcomes.engine_id
            hello.held, hello.next_ordinal, is_new = self._runner.suspend()
            if is_new:
                self._on_break()
        return hello

    def _timeout_ms(self, give_up: float) -> int | None:
        if self._results_armed and self._control.is_attached:
            return int(DUE_S * 1000)
        times = [
            self._control.next_at,
            self._output.next_at,
            self._tell_again_at,
            give_up if self.state is State.JOINING else self._gives_up_at,
        ]
        if self._output_armed and self._output.is_ready:
            times.append(self._output_due)
        if self._interrupts.aim >= 0:
            times.append(time.monotonic() + AIM_INTERVAL_S)
        due = [at for at in times if at is not None]
        return max(1, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

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
            case Welcome():
                self._welcome(message)
            case Recall():
                given = self._runner.queue.recall(message.first, message.last)
                self._control.send(Recalled(*given))
            case ResultsTaken():
                self._runner.outcomes.taken(message.client, message.number)
            case DropTasks():
                self._drop(message)
            case KillRunning():
                self._kill_running(message)
            case EngineControl():
                self._handle_control(message)
            case CommMessage():
                self._on_comm(message, frames)
            case Closing():
                log.info("the controller closes: %s", message.reason)
                self.leave(0)
            case Refused():
                if not self._control.is_attached:
                    self._fail(f"the controller refused this engine: {message.reason}")
                else:
                    log.error("the controller refused a message: %s", message.reason)

    def _handle_output(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        if isinstance(message, Refused):
            # What this means for the engine is said over CONTROL.
            log.error("the controller refused output: %s", message.reason)

    def _welcome(self, message: Welcome) -> None:
        is_another = self._control.answer(message.incarnation, message.received)
        outcomes = self._runner.outcomes
        if self.state is State.JOINING:
            outcomes.engine_id = message.engine_id
            if message.incarnation:
                self._output.adopt(message.incarnation)
                outcomes.keep()
            self.state = State.JOINED
            self._on_joined(message)
            log.info("joined as engine %d", message.engine_id)
            for warning in message.warnings:
                log.warning("%s", warning)
        elif is_another:
            log.warning("the controller was started again; engine %d goes on", message.engine_id)
            outcomes.engine_id = message.engine_id
            self._send_kept()
        else:
            log.info("connected again")
            self._tell_again_at = time.monotonic() + TELL_AGAIN_S

    def _send_kept(self) -> None:
        for message, frames in self._runner.outcomes.kept():
            self._control.send(message, frames)

    def _handle_control(self, message: EngineControl) -> None:
        reply = ControlReply(message.client, message.request, self._runner.outcomes.engine_id)
        match message.action:
            case PingEngine():
                self._control.send(reply)
            case ClearNamespace():
                self._runner.when_idle(lambda: self._clear_and_reply(reply))
            case SendSignal(signum=signum):
                try:
                    os.kill(os.getpid(), signum)
                except (OSError, ValueError) as error:
                    reply.error = self._error(error)
                self._control.send(reply)
            case DumpStacks():
                reply.content = format_stacks().encode()
                self._control.send(reply)
            case StopEngine():
                self._on_stop()
                self._control.send(reply)
                self.leave(0)

    def _drop(self, message: DropTasks) -> None:
        dropped = self._runner.queue.drop(message.ranges)
        if dropped:
            self._control.send(*self._runner.outcomes.never_run(message.client, dropped))
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
            for outgoing, frames in self._runner.outcomes.take_due(math.inf)[0]:
                self._control.send(outgoing, frames)
            for channel in self._channels:
                channel.connection.wait_sent(LAST_WORDS_S)
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
            self._control.send(self._replies.pop(0))

    def _send_due(self, now: float, seen: float) -> float:
        """Send results that are due; disarm when none has waited for a while."""
        outgoing, waiting = self._runner.outcomes.take_due(now)
        for message, frames in outgoing:
            self._control.send(message, frames)
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
            if not self._send_output():
                self._output_armed = True
            if self._output_armed:
                # Where it is known when there is room it leaves then.
                waits = self._output.connection.unsent_bytes
                self._output_due = now if waits else now + OUTPUT_INTERVAL_S

    def _send_output(self) -> bool:
        """Send output until there is none, or no more is taken; return whether there is none."""
        while True:
            if self._held_output is None:
                batches = self._collector.drain(OUTPUT_MESSAGE_BYTES)
                if not batches:
                    return True
                engine = self._runner.outcomes.engine_id
                waiting = [(Output(b.client, engine, b.items), b.frames) for b in batches]
            else:
                waiting = [self._held_output]
            for position, (message, frames) in enumerate(waiting):
                try:
                    self._output.send(message, frames)
                except QueueFull:
                    self._hold(waiting[position:])
                    return False
            self._held_output = None

    def _hold(self, waiting: list[tuple[Output, list[Frame]]]) -> None:
        """Keep numbered items that were not taken; several clients' are rare."""
        self._held_output = waiting[0]
        for message, frames in waiting[1:]:
            # CONTROL has no bound; what goes there is at most one drain.
            self._control.send(message, frames)

    def _say_goodbye(self) -> None:
        self._on_leaving()
        message: Message = Goodbye("the engine leaves")
        # The main thread stops first, if it can, so that its last results precede the goodbye.
        if not self._left.wait(LEAVE_GRACE_S):
            log.warning("user code does not stop; the engine exits")
            self._control.send(message)
            self._control.connection.wait_sent(LAST_WORDS_S)
            os._exit(self.exit_code)
        if self._control.is_attached:
            # What the main thread could not send.
            for outgoing, frames in self._runner.outcomes.take_due(math.inf)[0]:
                self._control.send(outgoing, frames)
        if self._output.is_attached:
            self._send_last_output()
        self._control.send(message)
        self._control.close()
        self._output.close(OUTPUT_LINGER_S)

    def _send_last_output(self) -> None:
        gives_up_at = time.monotonic() + OUTPUT_LINGER_S
        while not self._send_output():
            left_s = gives_up_at - time.monotonic()
            if left_s <= 0 or not self._output.connection.wait_sent(left_s):
                return
