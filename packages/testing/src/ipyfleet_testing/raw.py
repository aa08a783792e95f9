"""A channel to a controller as a bare connection: messages out, messages in, nothing kept.

What lives here: `RawChannel`, over a Unix socket or over TCP, and `open_channel`. What must not:
what is said over it.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.local import LocalStream, connect_local, socket_path

if TYPE_CHECKING:
    import zmq


SEND_S = 10.0
"""How long a controller may take to read a message."""


class RawChannel(ABC):
    """One connection."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that can be read when there may be something to `take`.

        It may tell of that once only: after whatever was done, `take` until there is nothing.
        """

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message.

        Raises:
            TimeoutError: the other end does not take it.
        """

    @abstractmethod
    def take(self) -> list[bytes] | None:
        """Return a message that has arrived; None if there is none."""

    @abstractmethod
    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, or for the connection's end; return whether `take` has something."""

    @property
    def is_over(self) -> bool:
        """Whether the other end is known to be gone."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Vanish. Idempotent."""

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """Return the next message; None if none comes in time."""
        return self.take() if self.wait(timeout_s) else None


class LocalChannel(RawChannel):
    """A channel to the controller of this host."""

    def __init__(self, stream: LocalStream) -> None:
        self.stream = stream
        self._next: list[bytes] | None = None

    def fileno(self) -> int:
        """See `RawChannel`."""
        return self.stream.fileno()

    @property
    def is_over(self) -> bool:
        """See `RawChannel`."""
        return self.stream.is_over

    def send(self, frames: Sequence[Frame]) -> None:
        """See `RawChannel`."""
        if not self.stream.send(frames) and not self.stream.wait_sent(SEND_S):
            raise TimeoutError(f"{self.stream.unsent_bytes} bytes are not taken in {SEND_S:g} s")

    def take(self) -> list[bytes] | None:
        """See `RawChannel`."""
        taken, self._next = self._next, None
        if taken is None:
            frames = self.stream.receive()
            taken = None if frames is None else [bytes(memoryview(frame)) for frame in frames]
        return taken

    def wait(self, timeout_s: float) -> bool:
        """See `RawChannel`."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.stream, select.POLLIN)
        while self._next is None:
            self._next = self.take()
            left_s = deadline - time.monotonic()
            if self._next is not None or self.stream.is_over or left_s < 0:
                break
            poll.poll(left_s * 1000)
        return self._next is not None

    def close(self) -> None:
        """See `RawChannel`."""
        self.stream.close()


class ZmqChannel(RawChannel):
    """A channel to a controller over TCP; zmq connects again when it breaks.

    Not where the other end does not want its keys: that is the end, and what is sent goes nowhere.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """Take a socket whose queue has no bound."""
        self.socket = socket
        self._is_over = False

    def fileno(self) -> int:
        """See `RawChannel`."""
        return -1 if self.socket.closed else int(self.socket.fd)

    @property
    def is_over(self) -> bool:
        """See `RawChannel`; known when something could not be sent."""
        return self._is_over

    def send(self, frames: Sequence[Frame]) -> None:
        """See `RawChannel`."""
        import zmq

        try:
            self.socket.send_multipart(frames, zmq.DONTWAIT, copy=True)
        except zmq.Again:
            # Nothing is full: after a handshake that went wrong zmq has let go of the connection,
            # at times before anything was sent. It would wait for another one for ever.
            self._is_over = True

    def take(self) -> list[bytes] | None:
        """See `RawChannel`."""
        import zmq

        if self.socket.closed or not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return None
        return self.socket.recv_multipart(zmq.DONTWAIT)

    def wait(self, timeout_s: float) -> bool:
        """See `RawChannel`."""
        return bool(self.socket.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        """See `RawChannel`."""
        self.socket.close(linger=0)


class RawChannels:
    """Opens channels to one controller; those over TCP share a context."""

    def __init__(self, url: str, keys: ConnectionInfo | None = None) -> None:
        """Open none yet.

        Args:
            url: where the controller listens.
            keys: over TCP, whose keys are used; None for none.
        """
        self.url = url
        self.keys = keys
        self._context: zmq.Context[Any] | None = None

    def open(self, identity: bytes, keys: ConnectionInfo | None = None) -> RawChannel:
        """Return a connected channel with the identity that it has at the controller.

        Args:
            identity: see there.
            keys: over TCP, other keys than usual.
        """
        path = socket_path(self.url)
        if path is not None:
            return LocalChannel(connect_local(path, identity))
        import zmq

        if self._context is None:
            self._context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, 65_536)
        socket = self._context.socket(zmq.DEALER)
        socket.identity = identity
        socket.linger = 0
        socket.sndhwm = 0
        socket.rcvhwm = 0
        keys = keys or self.keys
        if keys is not None and keys.public:
            socket.curve_serverkey = keys.server_public.encode()
            socket.curve_publickey = keys.public.encode()
            socket.curve_secretkey = keys.secret.encode()
        socket.connect(self.url)
        return ZmqChannel(socket)

    def close(self) -> None:
        """Close what channels share; they have to be closed before. Idempotent."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None


__all__ = ["RawChannel", "RawChannels"]
