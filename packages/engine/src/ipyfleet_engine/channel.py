"""A channel to the controller that outlives its connection.

What lives here: `ReliableChannel`, one DEALER after the other under one identity, with what was
sent and how much was received, and `TaskChannel`, the one that an event loop reads. What must not:
what the messages mean, but for those that make the session.

Theory of operation
-------------------
The socket's monitor tells of a connection that breaks. zmq would make it again by itself and send
what is queued, behind a gap; so it is kept from that (`RECONNECT_IVL_MS`), the socket is thrown
away, and a new one greets the controller: what is lost is always the end of what was sent. Until
the controller has answered nothing else is sent, and what it sends is not taken, since it is sent
again. The answer says how much has arrived over there; the rest follows (`ipyfleet_protocol.
reliable`). An answer from another run of the controller makes the counts begin anew.

A controller that is not there is called again and again, more and more rarely.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.messages import Ack, AnyMessage, Attached, Message
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Received, Sent

from .endpoint import Endpoint
from .tasks import Suspended

log = logging.getLogger("ipyfleet.engine")

Handler = Callable[[AnyMessage, Sequence[Frame]], None]

Greet = Callable[[bytes, int], Message]
"""Makes the Hello or Attach of a new socket out of the incarnation and the count received."""

_BREAKS = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_FIRST_DELAY_S = 0.02
_LAST_DELAY_S = 0.25

_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_COPY_BELOW_BYTES = 64 * 1024

_numbers = itertools.count()


class ReliableChannel:
    """See the module docstring. Belongs to one thread.

    Attributes:
        socket: the DEALER; another one after each break.
        monitor: readable when there is news of the connection; for a poller.
        incarnation: the run of the controller that the counts belong to; empty before the first
            answer, and with a controller that names none: then nothing is kept.
        is_attached: the controller has answered since the socket was opened.
        broken_since: since when a connection that stood is not there, by the monotonic clock;
            else None.
    """

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[Any]

    def __init__(
        self,
        endpoint: Endpoint,
        channel: Channel,
        greet: Greet,
        handle: Handler,
        *,
        queue_messages: int = 0,
    ) -> None:
        """Make a channel; `open` connects it.

        Args:
            endpoint: where to.
            channel: which channel of the peer.
            greet: makes the first message of each socket.
            handle: gets what arrives. Raises `Suspended` for what shall not have arrived.
            queue_messages: how many messages wait at most for a peer that does not read; 0 for
                any number.
        """
        self.incarnation = b""
        self.is_attached = False
        self.broken_since: float | None = None
        self._endpoint = endpoint
        self._channel = channel
        self._greet = greet
        self._handle = handle
        self._queue_messages = queue_messages
        self._sent = Sent()
        self._received = Received()
        self._reopen_at: float | None = None
        self._delay_s = 0.0
        self._context: zmq.Context[Any]

    # -- the connection -----------------------------------------------------------------------

    def open(self, context: zmq.Context[Any]) -> None:
        """Connect and greet."""
        self._context = context
        if self.incarnation and self.broken_since is None:
            self.broken_since = time.monotonic()
        self.socket = self._endpoint.make_socket(context, self._channel)
        if self._queue_messages:
            self.socket.setsockopt(zmq.SNDHWM, self._queue_messages)
        # The names that pyzmq chooses come again before the last socket has let go of them.
        address = f"inproc://ipyfleet-monitor-{next(_numbers)}"
        self.socket.monitor(address, _BREAKS)
        self.monitor = context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.connect(address)
        self.socket.connect(self._endpoint.url)
        self._reopen_at = None
        self.greet()

    def close(self, linger_ms: int | None = None) -> None:
        """Close the socket; what is queued has a moment to leave."""
        self.is_attached = False
        self.socket.monitor(None, 0)
        self.monitor.close(0)
        self.socket.close(linger_ms)

    def reopen(self) -> None:
        """Throw the socket away and greet with a new one."""
        self.close(0)
        self.open(self._context)

    def greet(self) -> None:
        """Greet the controller; what was sent is in its hands when it answers."""
        self.is_attached = False
        if not self.incarnation and self._channel in (Channel.TASK, Channel.OUTPUT):
            # An Attach that names no run is not answered.
            self._received = Received()
            self.is_attached = True
            self.broken_since = None
        received = self._received.told()
        self._transmit([encode(self._greet(self.incarnation, received))])

    def adopt(self, incarnation: bytes) -> None:
        """Count from the beginning for this run of the controller; from any thread.

        For channels whose first greeting is not answered.
        """
        self.incarnation = incarnation

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
        """See to the connection and to acknowledgements; return whether the socket is a new one."""
        is_broken = False
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            recv_monitor_message(self.monitor)
            is_broken = True
        if is_broken:
            # What has arrived before the break is there: a Closing, perhaps.
            self.receive()
            self.is_attached = False
            if self.broken_since is None:
                self.broken_since = now
            self._reopen_at = now + self._delay_s
            self._delay_s = min(max(_FIRST_DELAY_S, 2 * self._delay_s), _LAST_DELAY_S)
        if self._reopen_at is not None and now >= self._reopen_at:
            self.reopen()
            return True
        next_ack_at = self._received.next_ack_at
        if next_ack_at is not None and now >= next_ack_at:
            self._acknowledge(now)
        return False

    @property
    def next_at(self) -> float | None:
        """When `tend` has to be called if nothing happens; None for never."""
        return self._reopen_at if self._reopen_at is not None else self._received.next_ack_at

    # -- messages -----------------------------------------------------------------------------

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message, now or when the controller is there.

        Afterwards `receive` has to be called before waiting: sending may use up the socket's
        signal that something is there.

        Raises:
            zmq.Again: if `queue_messages` wait already; the message is not sent then.
        """
        parts: list[Frame] = [encode(message), *frames]
        if type(message) in SESSION_MESSAGES:
            self._transmit(parts)
        elif not self.is_attached:
            self._sent.note(parts)
        else:
            self._transmit(parts)
            if self.incarnation:
                self._sent.note(parts)

    def _transmit(self, parts: Sequence[Frame]) -> None:
        send, left = self.socket.send, len(parts)
        for part in parts:
            left -= 1
            # Small ones are copied: to tell another thread when they are free costs more.
            copy = len(part) < _COPY_BELOW_BYTES
            send(part, _NOBLOCK_MORE if left else _NOBLOCK, copy)

    def receive(self) -> bool:
        """Hand every message that is there to the handler; return whether there was one.

        A zmq file descriptor tells of changes, not of a state: whoever waits for it has to read
        until nothing is left, and again after sending.
        """
        has_received = is_enough = False
        while int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            has_received = True
            try:
                message = decode(frames[0].buffer)
            except ProtocolError as error:
                log.debug("dropped a message: %s", error)
                if self.is_attached:
                    # It has arrived, whatever it was.
                    self._received.note(0, time.monotonic())
                continue
            payload = [frame.buffer for frame in frames[1:]]
            if type(message) in SESSION_MESSAGES:
                self._handle_session(message, payload)
            elif self.is_attached and self._is_taken(message, payload):
                n_bytes = sum(map(len, frames))
                if self._received.note(n_bytes, time.monotonic()):
                    is_enough = True
        if is_enough:
            self._acknowledge(time.monotonic())
        return has_received

    def _handle_session(self, message: AnyMessage, frames: Sequence[Frame]) -> None:
        try:
            match message:
                case Ack():
                    self._sent.acknowledge(message.received)
                case Attached():
                    self.answer(message.incarnation, message.received)
                    self._handle(message, frames)
                case _:
                    self._handle(message, frames)
        except ProtocolError as error:
            log.debug("dropped a message: %s", error)

    def _is_taken(self, message: AnyMessage, frames: Sequence[Frame]) -> bool:
        try:
            self._handle(message, frames)
        except Suspended:
            return False
        except ProtocolError as error:
            log.debug("dropped a message: %s", error)
        return True

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
        on_readable: Callable[[], None],
    ) -> None:
        """Make a channel; `open` connects it.

        Args:
            endpoint, greet, handle: as for `ReliableChannel`.
            loop: the event loop.
            on_readable: called by the loop when there may be something to `receive`.
        """
        super().__init__(endpoint, Channel.TASK, greet, handle)
        self._loop = loop
        self._on_readable = on_readable
        self._timer: asyncio.TimerHandle | None = None

    def open(self, context: zmq.Context[Any]) -> None:
        """Connect, greet, and have the loop read."""
        super().open(context)
        self._loop.add_reader(self._fd(self.socket), self._on_readable)
        self._loop.add_reader(self._fd(self.monitor), self.see_to)
        # What came before the loop looks, and the monitor's connection, are told only once.
        self._loop.call_soon(self.see_to)

    def close(self, linger_ms: int | None = None) -> None:
        """Close the socket; the loop reads it no more."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd(self.socket))
            self._loop.remove_reader(self._fd(self.monitor))
        super().close(linger_ms)

    def receive(self) -> bool:
        """Hand every message that is there to the handler; return whether there was one."""
        has_received = super().receive()
        if has_received and self._timer is None:
            self._set_timer()
        return has_received

    def see_to(self) -> None:
        """See to the connection, and to what there is to read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.socket.closed:
            self.tend(time.monotonic())
            self._set_timer()
            self._on_readable()

    def _set_timer(self) -> None:
        next_at = self.next_at
        if next_at is not None:
            self._timer = self._loop.call_at(next_at, self.see_to)

    @staticmethod
    def _fd(socket: zmq.Socket[Any]) -> int:
        return int(socket.getsockopt(zmq.FD))
