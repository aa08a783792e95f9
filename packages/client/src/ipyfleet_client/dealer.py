"""A connection over TCP: a zmq DEALER and the monitor that tells of its end.

What lives here: `DealerConnection` and `DealerConnector`, the only part of the client that imports
zmq. What must not: when to connect again, what is sent.

Theory of operation
-------------------
zmq would connect again by itself, and send what was in its queue before anybody has said Hello:
what was lost would not be the last of what was sent. So it may not.

Its descriptor tells of news once, and whoever uses the socket in any way may take the news away. A
`Connection` tells of a state: so whoever sends looks afterwards whether there is something to
receive, or room for what waits, and if so makes another descriptor, the **reminder**, readable
until somebody receives.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zmq

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo

if TYPE_CHECKING:
    from ipyfleet_protocol.tunnel import Tunnel

CONNECT_TIMEOUT_MS = 3000
HEARTBEAT_MS = 5000
"""A link that has been silent for three times as long is taken for dead."""

LINGER_MS = 500

RECEIVE_MAX = 256
"""Messages that are received before the first of them is looked at, at most."""

NEVER_MS = 3_600_000
"""Longer than a broken connection is left alone. With "never" zmq would also throw away what has
arrived and was not read, such as a `Closing`."""

_OVER = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_MORE = int(zmq.SNDMORE)
_DONT_WAIT = int(zmq.NOBLOCK)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLIN_OR_OUT = int(zmq.POLLIN | zmq.POLLOUT)
_ZERO_COPY_MIN_BYTES = 64 * 1024


class DealerConnection:
    """A socket that connects once; see `connection.Connection`.

    Attributes:
        is_over: the connection has ended, or could not be made.
        unsent_bytes: of messages for which zmq's queue had no room.
    """

    write_fd = -1

    def __init__(self, dealer: zmq.Socket[bytes]) -> None:
        """Take a socket that is not connected yet."""
        self.is_over = False
        self.unsent_bytes = 0
        self._unsent: deque[Sequence[Frame]] = deque()
        self._socket = dealer
        self._monitor = dealer.get_monitor_socket(_OVER)
        self._reminder, self._reminding = socket.socketpair()
        self._reminder.setblocking(False)
        self._reminding.setblocking(False)
        self._is_reminded = False
        self.fds: tuple[int, ...] = (
            int(dealer.getsockopt(zmq.FD)),
            int(self._monitor.getsockopt(zmq.FD)),
            self._reminder.fileno(),
        )

    # -- out ----------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message; return whether zmq's queue has taken it."""
        if self._unsent or not self._put(frames):
            self._unsent.append(frames)
            self.unsent_bytes += _size(frames)
        self._remind()
        return not self._unsent

    def flush(self) -> bool:
        """Go on with what waits; return whether nothing does any more."""
        while self._unsent and self._put(self._unsent[0]):
            self.unsent_bytes -= _size(self._unsent.popleft())
        self._remind()
        return not self._unsent

    def _put(self, frames: Sequence[Frame]) -> bool:
        """Hand a message to the socket; False if its queue is full."""
        if self.is_over:
            return True
        last = len(frames) - 1
        try:
            for position, frame in enumerate(frames):
                flags = _DONT_WAIT if position == last else _DONT_WAIT | _MORE
                # Only what cannot change may be read by zmq later.
                copy = type(frame) is not bytes or len(frame) < _ZERO_COPY_MIN_BYTES
                self._socket.send(frame, flags, copy=copy)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            self.is_over = True
        return True

    def _remind(self) -> None:
        """See that `fds` tell of what has happened."""
        if self._is_reminded:
            return
        wanted = _POLLIN_OR_OUT if self._unsent else _POLLIN
        if self.is_over or int(self._socket.getsockopt(_EVENTS)) & wanted:
            self._is_reminded = True
            self._reminding.send(b"\0")

    def _is_readable(self) -> bool:
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    # -- in -----------------------------------------------------------------------------------

    def receive_all(self) -> list[list[Frame]]:
        """Return messages that are there, in order; none if no whole one is there."""
        received: list[list[Frame]] = []
        while (frames := self._receive()) is not None:
            received.append(frames)
            if len(received) == RECEIVE_MAX:
                self._remind()
                break
        return received

    def _receive(self) -> list[Frame] | None:
        # To be told by an exception that there is nothing takes eight Python calls.
        if self._is_readable():
            with contextlib.suppress(zmq.Again):  # it has just broken, and took it along
                return self._take()
        if self._is_reminded:
            self._is_reminded = False
            self._reminder.recv(1)
        self._read_monitor()
        # What came between is to be had still.
        return self._take() if self.is_over and self._is_readable() else None

    def _take(self) -> list[Frame]:
        frames: list[Any] = []
        while True:
            frame = self._socket.recv(_DONT_WAIT, copy=False)
            # Small ones as bytes: a zmq frame that is freed in the main thread looks for signals
            # there, where an exception cannot be raised: a Ctrl-C would be lost.
            frames.append(frame.bytes if len(frame) < _ZERO_COPY_MIN_BYTES else frame)
            if not frame.more:
                return frames

    def _read_monitor(self) -> None:
        while int(self._monitor.getsockopt(_EVENTS)) & _POLLIN:
            self._monitor.recv_multipart(zmq.NOBLOCK)
            self.is_over = True

    # -- the end ------------------------------------------------------------------------------

    def close(self, linger_s: float = 0.0) -> None:
        """Close the sockets; zmq goes on with what waits in its queue for some time. Idempotent."""
        if self._socket.closed:
            return
        self.is_over = True
        self._unsent.clear()
        self.unsent_bytes = 0
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))
        self._reminder.close()
        self._reminding.close()


def _size(frames: Sequence[Frame]) -> int:
    return sum(map(len, frames))


class DealerConnector:
    """Makes connections over TCP, with a zmq context of its own."""

    def __init__(
        self, url: str, identity: bytes, info: ConnectionInfo, tunnel: Tunnel | None
    ) -> None:
        """For the arguments see `connection.make_connector`."""
        self._url = url
        self._identity = identity
        self._info = info
        self._tunnel = tunnel
        self._is_encrypted = url.startswith("tcp://") if tunnel is None else tunnel.encrypted
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def connect(self) -> DealerConnection:
        """Make a connection, which may turn out to be over.

        Raises:
            OSError: the address is none, or there are no more sockets.
        """
        if self._tunnel is not None:
            self._tunnel.revive()
        try:
            return self._connect()
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot connect to {self._url}: {error}") from error

    def _connect(self) -> DealerConnection:
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        dealer.setsockopt(zmq.LINGER, LINGER_MS)
        # What we are sent is bounded by what we ask for; the controller must never have to wait.
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        if self._is_encrypted:
            dealer.curve_serverkey = self._info.server_public.encode()
            dealer.curve_publickey = self._info.public.encode()
            dealer.curve_secretkey = self._info.secret.encode()
        connection = DealerConnection(dealer)
        try:
            dealer.connect(self._url)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """End the context, once what its sockets were given has left, or their time is up."""
        self._context.term()
