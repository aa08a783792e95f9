"""The end that peers of this host connect to.

What lives here: `LocalRouter`, which does over Unix sockets what a zmq ROUTER does: messages come
with the identity of their sender, and go to an identity. What must not: who peers are.

Theory of operation
-------------------
The router waits for nothing itself. It keeps its descriptors registered with the poller of whoever
owns the loop, and is told (`on_ready`) which of them have news. Each time one piece is read from
each connection that has something, so one that floods delays others by that much and no more.

The first message of a connection is its identity. One that comes with the identity of another takes
its place, once what that one had sent has been read: identities have a secret part, so it is the
same peer, which has connected anew.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..columns import Frame
from .stream import LocalStream

IDENTITY_MAX_BYTES = 64

_IN, _OUT = 1, 4  # EPOLLIN, POLLIN and so on: the same numbers everywhere
_BACKLOG = 4096
_CREDENTIALS = struct.Struct("3i")
_SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Unreachable(Exception):
    """There is no connection with this identity."""


class DescriptorPoller(Protocol):
    """What the router needs of `select.epoll` or `select.poll`."""

    def register(self, fd: int, eventmask: int, /) -> Any:
        """Wait for a descriptor."""

    def modify(self, fd: int, eventmask: int, /) -> Any:
        """Wait for other news of it."""

    def unregister(self, fd: int, /) -> Any:
        """Wait no more for it."""


class LocalRouter:
    """See the module docstring.

    Attributes:
        inbox: messages that have arrived, each with its sender's identity as first frame, and
            behind the last of a connection that has ended the identity alone; for the owner to take
            out.
        n_refused: connections that were turned away or made no sense.
        is_deaf: there was no descriptor for one more connection; others wait to be let in until one
            of this router's ends, or `listen_again` is called.
        on_room: called with the identity when a connection of which `send` said that it is full
            has room again.
    """

    def __init__(self, path: Path, poller: DescriptorPoller) -> None:
        """Listen.

        Args:
            path: of the socket; its directory is private to the user.
            poller: of the loop's owner.

        Raises:
            OSError: one cannot listen there.
        """
        self.inbox: deque[list[Frame]] = deque()
        self.n_refused = 0
        self.on_room: Callable[[bytes], object] = _do_nothing
        self._path = path
        self._poller = poller
        self.is_deaf = False
        self._streams: dict[bytes, LocalStream] = {}
        # By descriptor: the identity, empty until it is known, and the stream.
        self._connections: dict[int, tuple[bytes, LocalStream]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(os.fspath(path))
            path.chmod(0o600)
            self._listener.listen(_BACKLOG)
            self._listener.setblocking(False)
        except BaseException:
            self._listener.close()
            raise
        poller.register(self._listener.fileno(), _IN)

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._connections)

    def __contains__(self, identity: bytes) -> bool:
        return identity in self._streams

    # -- news ---------------------------------------------------------------------------------

    def on_ready(self, fd: int, events: int) -> bool:
        """Deal with news of a descriptor; return whether it is one of the router's."""
        connection = self._connections.get(fd)
        if connection is None:
            if fd != self._listener.fileno():
                return False
            self._accept()
            return True
        identity, stream = connection
        if events & _OUT and stream.flush():
            self._poller.modify(fd, _IN)
            self.on_room(identity)
        if events & ~_OUT or stream.is_over:
            # What was sent before the other end broke off counts, however much it is.
            while stream.read() and stream.is_over:
                pass
            messages = stream.messages
            if identity and len(messages) == 1 and messages[0]:
                frames = messages.popleft()  # as `_take` does
                frames.insert(0, identity)
                self.inbox.append(frames)
            elif messages:
                self._take(identity, stream)
        if stream.is_over:
            self._drop(fd)
        return True

    def _take(self, identity: bytes, stream: LocalStream) -> None:
        messages = stream.messages
        if not identity:
            identity = self._name(stream, messages.popleft())
        while messages:
            frames = messages.popleft()
            if not frames:
                stream.is_over = True  # nothing that anybody sends
                return
            frames.insert(0, identity)
            self.inbox.append(frames)

    def _name(self, stream: LocalStream, frames: list[Frame]) -> bytes:
        """Note the identity that a connection begins with."""
        if len(frames) != 1 or not 0 < len(frames[0]) <= IDENTITY_MAX_BYTES:
            self.n_refused += 1
            stream.messages.clear()
            stream.is_over = True
            return b""
        identity = bytes(frames[0])
        before = self._streams.get(identity)
        if before is not None:
            while before.read():
                pass
            self._take(identity, before)
            self._drop(before.fileno())
        self._streams[identity] = stream
        self._connections[stream.fileno()] = identity, stream
        return identity

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORTAGES:
                    # To be told again and again would only keep the loop busy.
                    self.is_deaf = True
                    self._poller.modify(self._listener.fileno(), 0)
                    return
                continue  # that one is gone already
            if not _is_ours(connected):
                self.n_refused += 1
                connected.close()
                continue
            # What goes out has come in, and is nobody's to change.
            stream = LocalStream(connected, copies=False)
            self._connections[stream.fileno()] = b"", stream
            self._poller.register(stream.fileno(), _IN)

    def _drop(self, fd: int) -> None:
        identity, stream = self._connections.pop(fd)
        self._poller.unregister(fd)
        stream.close()
        if identity and self._streams.get(identity) is stream:
            del self._streams[identity]
            self.inbox.append([identity])
        self.listen_again()

    def listen_again(self) -> None:
        """Let in who waits, if there are descriptors now."""
        if self.is_deaf:
            self.is_deaf = False
            self._poller.modify(self._listener.fileno(), _IN)

    # -- out ----------------------------------------------------------------------------------

    def send(self, identity: bytes, frames: Sequence[Frame]) -> bool:
        """Send a message.

        Returns:
            False if the connection has no room: nothing was sent then, and `on_room` is called when
            there is some.

        Raises:
            Unreachable: there is no such connection.
        """
        stream = self._streams.get(identity)
        if stream is None or stream.is_over:
            raise Unreachable
        if stream.unsent_bytes:
            return False
        if not stream.send(frames):
            self._poller.modify(stream.fileno(), _IN | _OUT)
        return True

    def disconnect(self, identity: bytes) -> None:
        """End a connection, if there is one; what was received before counts."""
        stream = self._streams.get(identity)
        if stream is not None:
            self._drop(stream.fileno())

    def close(self, linger_s: float = 0.0) -> None:
        """Close all; what waits has a moment to leave. The socket's file is removed. Idempotent.

        `linger_s` is for all together.
        """
        if self._listener.fileno() < 0:
            return
        self._poller.unregister(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        deadline = time.monotonic() + linger_s
        for fd, (_, stream) in self._connections.items():
            self._poller.unregister(fd)
            stream.close(deadline - time.monotonic())
        self._connections.clear()
        self._streams.clear()


def _is_ours(connected: socket.socket) -> bool:
    """Whether the process at the other end is the same user's, as the kernel says."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # the directory's rights are what there is
    _, uid, _ = _CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    )
    return uid in (os.geteuid(), 0)


def _do_nothing(identity: bytes) -> None:
    return


__all__ = ["DescriptorPoller", "LocalRouter", "Unreachable"]
