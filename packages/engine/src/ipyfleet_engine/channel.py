"""A channel to the controller that outlives its connection.

What lives here: `ReliableChannel`, one connection after the other under one identity, with what was
sent and how much was received, `TaskChannel`, the one that an event loop reads, and
`wait_for_news`, with which the others are waited for. What must not: what the messages mean, but
for those that make the session; how bytes travel (`connections`).

Theory of operation
-------------------
A connection that breaks is thrown away, and a new one greets the controller: what is lost is always
the end of what was sent. Until the controller has answered that very greeting nothing else is sent,
and what it sends is not taken, since it is sent again. The answer says how much has arrived over
there; the rest follows (`ipyfleet_protocol.reliable`). An answer from another run of the controller
makes the counts begin anew.

A controller that is not there is called again and again, more and more rarely.

What the system does not take at once is left to `tend`, for channels of a thread that must not
wait. The main thread does: it may be in user code for hours afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Callable, Iterable, Sequence

from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.messages import (
    Ack,
    AnyMessage,
    Attach,
    Attached,
    Hello,
    Message,
    Welcome,
)
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Received, Sent

from .connections import Connection, Connector
from .endpoint import Endpoint
from .tasks import Suspended

log = logging.getLogger("ipyfleet.engine")

Handler = Callable[[AnyMessage, Sequence[Frame]], None]

Greet = Callable[[bytes, int], Hello | Attach]
"""Makes the Hello or Attach of a new connection out of the incarnation and the count received."""

LINGER_S = 1.0
"""How long what waits has to leave when a channel is closed, or the engine stops."""

_FIRST_DELAY_S = 0.02
_LAST_DELAY_S = 0.25
_LOOK_S = 0.1


class ReliableChannel:
    """See the module docstring. Belongs to one thread.

    Attributes:
        connection: another one after each break.
        incarnation: the run of the controller that the counts belong to; empty before the first
            answer, and with a controller that names none: then nothing is kept.
        is_attached: the controller has answered since the connection was made.
        broken_since: since when a connection that stood is not there, by the monotonic clock;
            else None.
    """

    connection: Connection

    def __init__(
        self,
        endpoint: Endpoint,
        channel: Channel,
        greet: Greet,
        handle: Handler,
        *,
        is_bounded: bool = False,
    ) -> None:
        """Make a channel; `open` connects it.

        Args:
            endpoint: who connects.
            channel: which channel of the peer.
            greet: makes the first message of each connection.
            handle: gets what arrives. Raises `Suspended` for what shall not have arrived.
            is_bounded: `send` shall raise `QueueFull` when the controller does not read.
        """
        self.incarnation = b""
        self.is_attached = False
        self.broken_since: float | None = None
        self._identity = endpoint.identity(channel)
        self._channel = channel
        self._greet = greet
        self._handle = handle
        self._is_bounded = is_bounded
        self._sent = Sent()
        self._received = Received()
        self._greeting = 0
        # The run is told over CONTROL; until then nobody could say how much of it has arrived.
        self._is_early = channel in (Channel.TASK, Channel.OUTPUT)
        self._early: list[tuple[AnyMessage, list[Frame]]] = []
        self._reopen_at: float | None = None
        self._delay_s = 0.0
        self._connector: Connector

    # -- the connection -----------------------------------------------------------------------

    def open(self, connector: Connector) -> None:
        """Connect and greet."""
        self._connector = connector
        if self.incarnation and self.broken_since is None:
            self.broken_since = time.monotonic()
        self._reopen_at = None
        self._connect()
        self.greet()

    def close(self, linger_s: float = LINGER_S) -> None:
        """Close the connection; what waits has a moment to leave."""
        self.is_attached = False
        self._disconnect(linger_s)

    def reopen(self) -> None:
        """Throw the connection away and greet over a new one."""
        self.close(0)
        self.open(self._connector)

    def _connect(self) -> None:
        self.connection = self._connector.connect(self._identity, is_bounded=self._is_bounded)

    def _disconnect(self, linger_s: float = 0.0) -> None:
        self.connection.close(linger_s)
        self._early.clear()

    def greet(self) -> None:
        """Greet the controller; what was sent is in its hands when it answers."""
        self.is_attached = False
        if not self.incarnation and self._channel in (Channel.TASK, Channel.OUTPUT):
            # An Attach that names no run is not answered.
            self._received = Received()
            self.is_attached = True
            self.broken_since = None
        greeting = self._greet(self.incarnation, self._received.told())
        self._greeting = greeting.greeting = self._greeting + 1
        self._transmit([encode(greeting)])

    def adopt(self, incarnation: bytes) -> None:
        """Count from the beginning for this run of the controller; from any thread.

        For channels whose first greeting is not answered. What came before is taken by the next
        `receive`.
        """
        self.incarnation = incarnation
        self._is_early = False

    def answer(self, incarnation: bytes, received: int) -> bool:
        """The controller has answered the greeting: send what it lacks, and go on.

        Args:
            incarnation: which run of the controller it is.
            received: how many messages it has.

        Returns:
            Whether it is another run than before.
        """
        before = self.incarnation
        if self.is_attached and before == incarnation:
            return False
        self._is_early = False
        self.incarnation = incarnation
        self.is_attached = True
        self.broken_since = None
        self._delay_s = 0.0
        if before and before != incarnation:
            self._sent, self._received = Sent(), Received()
            return True
        try:
            lacking = self._sent.unacknowledged(received)
        except ProtocolError as error:
            log.error("messages were lost on the way to the controller: %s", error)
            lacking = []
            self._sent = Sent()
        for frames in lacking:
            self._transmit(frames)
        if not incarnation:
            self._sent = Sent()
        return False

    def tend(self, now: float) -> bool:
        """See to the connection, to what is unsent and to acknowledgements.

        Returns:
            Whether the connection is a new one.
        """
        if self.connection.unsent_bytes:
            self.connection.flush()
        self._note_break(now)
        if self._reopen_at is not None and now >= self._reopen_at:
            self.reopen()
            self._note_break(now)
            return True
        next_ack_at = self._received.next_ack_at
        if next_ack_at is not None and now >= next_ack_at:
            self._acknowledge(now)
        return False

    @property
    def is_ready(self) -> bool:
        """What is sent leaves, and nothing waits before it."""
        return self.is_attached and not self.connection.unsent_bytes

    def _note_break(self, now: float) -> None:
        if self._reopen_at is not None or not self.connection.is_over:
            return
        # What has arrived before the break is there: a Closing, perhaps.
        self._take_in()
        # Nobody shall be told of the end again and again.
        self._disconnect()
        self.is_attached = False
        if self.broken_since is None:
            self.broken_since = now
        self._reopen_at = now + self._delay_s
        self._delay_s = min(max(_FIRST_DELAY_S, 2 * self._delay_s), _LAST_DELAY_S)

    @property
    def next_at(self) -> float | None:
        """When `tend` has to be called if nothing happens; None for never."""
        if self._reopen_at is not None:
            return self._reopen_at
        return 0.0 if self.connection.is_over else self._received.next_ack_at

    # -- messages -----------------------------------------------------------------------------

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message, now or when the controller is there.

        Raises:
            QueueFull: of a channel with a bound, if too much waits already; the message is not sent
                then.
        """
        parts: list[Frame] = [encode(message), *frames]
        if type(message) in SESSION_MESSAGES:
            self._transmit(parts)
        elif not self.is_attached:
            self._sent.note(parts)
        else:
            # `_transmit`, in place: each result comes by here.
            if not self.connection.send(parts):
                self._wait_unsent()
            if self.incarnation:
                self._sent.note(parts)

    def _transmit(self, parts: Sequence[Frame]) -> None:
        if not self.connection.send(parts):
            self._wait_unsent()

    def _wait_unsent(self) -> None:
        """Leave it to `tend` that the system has not taken all."""

    def receive(self) -> bool:
        """Hand every message that is there to the handler; return whether there was one."""
        return self._take_in()

    def _take_in(self) -> bool:
        has_received = is_enough = False
        receive = self.connection.receive
        while (frames := receive()) is not None:
            has_received = True
            try:
                message = decode(frames[0])
            except ProtocolError as error:
                log.debug("dropped a message: %s", error)
                if self.is_attached:
                    # It has arrived, whatever it was.
                    self._received.note(0, time.monotonic())
                continue
            if type(message) in SESSION_MESSAGES:
                self._handle_session(message, frames[1:])
            elif self._is_early or self._early:
                self._early.append((message, frames))
            elif self.is_attached and self._take(message, frames):
                is_enough = True
        if self._early and not self._is_early:
            early, self._early = self._early, []
            has_received = True
            for message, frames in early:
                is_enough |= self._take(message, frames)
        if is_enough:
            self._acknowledge(time.monotonic())
        return has_received

    def _take(self, message: AnyMessage, frames: list[Frame]) -> bool:
        """Handle and count a message; return whether there is enough to acknowledge."""
        try:
            self._handle(message, frames[1:])
        except Suspended:
            return False
        except ProtocolError as error:
            log.debug("dropped a message: %s", error)
        return self._received.note(sum(map(len, frames)), time.monotonic())

    def _handle_session(self, message: AnyMessage, frames: Sequence[Frame]) -> None:
        try:
            match message:
                case Ack():
                    self._sent.acknowledge(message.received)
                case Attached() | Welcome() if message.greeting != self._greeting:
                    log.debug("the answer to an earlier greeting")
                case Attached():
                    self.answer(message.incarnation, message.received)
                    self._handle(message, frames)
                case _:
                    self._handle(message, frames)
        except ProtocolError as error:
            log.debug("dropped a message: %s", error)

    def _acknowledge(self, now: float) -> None:
        count = self._received.ack_due(now)
        if count is not None and self.incarnation and self.is_attached:
            self._transmit([encode(Ack(count))])


class TaskChannel(ReliableChannel):
    """A channel that the main thread's event loop reads."""

    def __init__(
        self,
        endpoint: Endpoint,
        greet: Greet,
        handle: Handler,
        *,
        loop: asyncio.AbstractEventLoop,
        on_received: Callable[[], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        """Make a channel; `open` connects it.

        Args:
            endpoint, greet, handle: as for `ReliableChannel`.
            loop: the event loop.
            on_received: called by the loop when something may have been received.
            is_stopping: tells whether the engine stops, and nothing is worth a long wait any more.
        """
        super().__init__(endpoint, Channel.TASK, greet, handle)
        self._loop = loop
        self._on_received = on_received
        self._is_stopping = is_stopping
        self._timer: asyncio.TimerHandle | None = None
        self._watched: tuple[int, ...] = ()

    def _connect(self) -> None:
        super()._connect()
        self._watched = self.connection.filenos()
        for fd in self._watched:
            self._loop.add_reader(fd, self._read)
        # What came before the loop looks zmq tells only once; and nobody tells of a connection that
        # is over from the beginning.
        self._loop.call_soon(self.see_to)

    def _disconnect(self, linger_s: float = 0.0) -> None:
        if not self._loop.is_closed():
            for fd in self._watched:
                self._loop.remove_reader(fd)
        self._watched = ()
        super()._disconnect(linger_s)

    def _wait_unsent(self) -> None:
        # User code may run for hours from here on, and this shall not wait for it. A signal is
        # handled meanwhile: none is for user code now.
        gives_up_at = float("inf")
        while not self.connection.wait_sent(_LOOK_S):
            if self._is_stopping():
                now = time.monotonic()
                gives_up_at = min(gives_up_at, now + LINGER_S)
                if now > gives_up_at:
                    return

    def receive(self) -> bool:
        """Hand every message that is there to the handler; return whether there was one."""
        has_received = self._take_in()
        if self.connection.is_over:
            if self._reopen_at is None:
                self._loop.call_soon(self.see_to)
        elif has_received and self._timer is None:
            self._set_timer()
        return has_received

    def _read(self) -> None:
        self.receive()
        self._on_received()

    def see_to(self) -> None:
        """See to the connection, and to what there is to read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.tend(time.monotonic())
        self._set_timer()
        self._read()

    def _set_timer(self) -> None:
        next_at = self.next_at
        if next_at is not None:
            self._timer = self._loop.call_at(next_at, self.see_to)


def wait_for_news(
    channels: Iterable[ReliableChannel], fds: Iterable[int], timeout_ms: int | None
) -> set[int]:
    """Wait until a channel has something for `receive` or `tend`, or a descriptor can be read.

    Args:
        channels: of this thread.
        fds: more descriptors.
        timeout_ms: None for any time.

    Returns:
        The descriptors that have news.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    for channel in channels:
        connection = channel.connection
        wanted = select.POLLIN | select.POLLOUT if connection.unsent_bytes else select.POLLIN
        for fd in connection.filenos():
            poll.register(fd, wanted)
        if connection.has_news:
            timeout_ms = 0
    return {fd for fd, _ in poll.poll(timeout_ms)}
