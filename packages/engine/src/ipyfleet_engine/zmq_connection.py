"""Connections to a controller on another host, or through a tunnel.

What lives here: `ZmqConnection`, a DEALER, and the monitor that tells of its end. What must not:
anything that a connection on this host needs.

zmq makes a connection that breaks again by itself, and sends what is queued, behind a gap; so it is
kept from that (`RECONNECT_IVL_MS`), and a connection that has broken stays so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ipyfleet_protocol.columns import Frame

from .connections import QueueFull

RECONNECT_IVL_MS = 3_600_000

CONNECT_TIMEOUT_MS = 5000
"""After which a host that does not answer is called anew."""

QUEUE_MESSAGES = 32
"""Messages that wait at most in a connection with a bound."""

_BREAKS = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_COPY_BELOW_BYTES = 64 * 1024

_numbers = itertools.count()


class ZmqConnection:
    """See `connections.Connection`.

    Attributes:
        unsent_bytes: always 0: zmq's own thread sends what waits, and tells nobody.
    """

    unsent_bytes = 0

    def __init__(
        self,
        context: zmq.Context[Any],
        url: str,
        identity: bytes,
        *,
        keys: tuple[str, str, str] | None,
        heartbeat_s: float,
        is_bounded: bool,
    ) -> None:
        """Connect; for the arguments see `connections.Connector`."""
        self._is_over = False
        self._is_bounded = is_bounded
        self._socket = socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_IVL_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        # What tasks and results need is bounded by what the controller sends; nothing is dropped.
        socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES if is_bounded else 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        if heartbeat_s:
            # The host or the network is gone when the controller is silent; it does likewise. (The
            # protocol has a time to live for the other side, but libzmq 4.3 forgets it when
            # anything follows the beat that set it.)
            limit_ms = int(heartbeat_s * 1000)
            socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, limit_ms // 3))
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, limit_ms)
        if keys is not None:
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
                key.encode() for key in keys
            )
        # The names that pyzmq chooses come again before the last socket has let go of them.
        address = f"inproc://ipyfleet-monitor-{next(_numbers)}"
        socket.monitor(address, _BREAKS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(address)
        socket.connect(url)

    @property
    def is_over(self) -> bool:
        """Whether it has broken."""
        while not self._is_over and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            recv_monitor_message(self._monitor)
            self._is_over = True
        return self._is_over

    @property
    def has_news(self) -> bool:
        """Whether something has come since the descriptors told.

        They tell of changes, and sending may use that up.
        """
        if self._socket.closed:
            return False
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN) or (
            not self._is_over and bool(int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        )

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors of the socket and of its monitor."""
        if self._socket.closed:
            return ()
        return int(self._socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD))

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message, or have zmq's thread send it."""
        if self._socket.closed:
            return True  # to nobody
        send, left = self._socket.send, len(frames)
        try:
            for frame in frames:
                left -= 1
                # Small ones are copied: to tell another thread when they are free costs more.
                copy = len(frame) < _COPY_BELOW_BYTES
                send(frame, _NOBLOCK_MORE if left else _NOBLOCK, copy)
        except zmq.Again:
            if self._is_bounded and not self.is_over:
                raise QueueFull from None
            # After a handshake that went wrong zmq has let go of the connection, perhaps before
            # the greeting was sent; whatever was, it goes to nobody.
            self._is_over = True
        return True

    def flush(self) -> bool:
        """Do nothing: zmq's thread does."""
        return True

    def receive(self) -> list[Frame] | None:
        """Return the next message; None if none is there."""
        if self._socket.closed or not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return None
        return [frame.buffer for frame in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)]

    def wait_sent(self, timeout_s: float) -> bool:
        """Give what waits some time to leave: zmq does not say whether it has."""
        time.sleep(timeout_s)
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what waits has some time to leave, in zmq's thread."""
        if not self._socket.closed:
            self._is_over = True
            self._socket.monitor(None, 0)
            self._monitor.close(0)
            self._socket.close(int(1000 * linger_s))
