"""One connection over a Unix socket.

What lives here: `LocalStream`, and `connect_local`, which makes one. What must not: who waits for
it, and when to connect again.

Theory of operation
-------------------
The socket never blocks. What it does not take at once waits in the stream, and `flush` goes on with
it when the descriptor can be written. The descriptor tells of a state, not of changes: whoever
waits for it with a poll may read as much or as little as it likes.

The other end is the same user's: the socket lies in a directory with rights 0700, and the router
asks the kernel who has connected.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from weakref import WeakSet

from ..columns import Frame
from ..errors import ProtocolError
from .framing import LAYOUTS, Deframer

RECEIVE_BYTES = 64 * 1024
"""Read at a time. Larger blocks the allocator would map and unmap each time."""

PIECES_MAX = 512
"""Pieces written at a time; the system takes 1024 at most."""

JOIN_MAX_BYTES = 8192
"""Messages up to this size are joined and written as one piece, which takes 1.2 µs less."""

_SCHEME = "unix://"

_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""User code may have given SIGPIPE back to the system, which ends the process then."""

_streams: WeakSet[LocalStream] = WeakSet()


class LocalStream:
    """Messages to and from the other end of a Unix socket. Belongs to one thread at a time.

    Attributes:
        is_over: the other end is gone, or makes no sense; what has arrived can be received still.
        messages: those that have been read and not taken.
        unsent_bytes: bytes that the system has not taken yet.
    """

    __slots__ = (
        "__weakref__",
        "_copies",
        "_deframer",
        "_is_drained",
        "_is_garbled",
        "_socket",
        "_unsent",
        "is_over",
        "messages",
        "unsent_bytes",
    )

    def __init__(self, connected: socket.socket, *, copies: bool = True) -> None:
        """Take a connected socket, which is the stream's from now on.

        Args:
            connected: the socket.
            copies: whether frames that have to wait are copied if somebody could change them.
        """
        self._copies = copies
        connected.setblocking(False)
        self._socket = connected
        self._deframer = Deframer()
        self.messages = self._deframer.messages
        self._unsent: deque[Frame] = deque()
        self._is_drained = False
        self._is_garbled = False
        self.unsent_bytes = 0
        self.is_over = False
        _streams.add(self)

    @classmethod
    def connect(cls, path: Path | str, identity: bytes) -> Self:
        """Connect to a `LocalRouter`.

        Args:
            path: of its socket.
            identity: the name that this connection has over there.

        Raises:
            OSError: nobody listens there, or so many wait to be let in that there is no room.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)  # such a socket is connected at once, or not at all
            connection.connect(os.fspath(path))
        except BaseException:
            connection.close()
            raise
        stream = cls(connection)
        stream.send([identity])
        return stream

    def fileno(self) -> int:
        """Return the descriptor, for a poll; -1 when closed."""
        return self._socket.fileno()

    # -- out ----------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message.

        Returns:
            Whether the system has taken all of it. If not, the rest waits for `flush`.
        """
        sizes = list(map(len, frames))
        n_frames = len(sizes)
        prefix = LAYOUTS[n_frames].pack(n_frames, *sizes)
        n_bytes = len(prefix) + sum(sizes)
        sent = 0
        if not self._unsent and not self.is_over and n_frames < PIECES_MAX:
            if n_bytes > JOIN_MAX_BYTES:
                sent = self._write([prefix, *frames])
            else:
                try:
                    sent = self._socket.send(b"".join((prefix, *frames)), _NOSIGNAL)
                except BlockingIOError:
                    pass  # there is no room just now
                except OSError:
                    self.is_over = True
            if sent == n_bytes:
                return True
        if self.is_over:
            return True  # to nobody; whoever keeps the message sends it again
        for piece in (prefix, *frames):
            size = len(piece)
            if sent >= size:
                sent -= size
                continue
            rest = memoryview(piece)[sent:]
            self._unsent.append(bytes(rest) if self._copies and not rest.readonly else rest)
            self.unsent_bytes += size - sent
            sent = 0
        return self.flush() if n_frames >= PIECES_MAX else False

    def flush(self) -> bool:
        """Write what waits, as far as that goes now; return whether nothing waits any more."""
        unsent = self._unsent
        while unsent and not self.is_over:
            pieces = [unsent[index] for index in range(min(len(unsent), PIECES_MAX))]
            sent = self._write(pieces)
            if not sent:
                return False
            self.unsent_bytes -= sent
            while sent:
                size = len(unsent[0])
                if sent < size:
                    unsent[0] = memoryview(unsent[0])[sent:]
                    break
                unsent.popleft()
                sent -= size
        if self.is_over:
            unsent.clear()
            self.unsent_bytes = 0
        return not unsent

    def wait_sent(self, timeout_s: float) -> bool:
        """Wait until nothing is unsent or the other end is gone; return whether that is so."""
        if self.flush():
            return True  # a closed socket cannot be waited for
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while not self.flush():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return False
        return True

    def _write(self, pieces: Sequence[Frame]) -> int:
        try:
            return self._socket.sendmsg(pieces, (), _NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self.is_over = True
            return 0

    # -- in -----------------------------------------------------------------------------------

    def receive(self) -> list[Frame] | None:
        """Return the next message; None if no whole one is there.

        After a None the descriptor tells when there is more; if the stream is over by then, there
        is never anything more.
        """
        messages = self.messages
        while not messages:
            # Of an end that a write has met with it is not known whether all has been read.
            if (self._is_drained and not self.is_over) or not (self.read() or messages):
                self._is_drained = False
                return None
        return messages.popleft()

    def receive_all(self) -> list[list[Frame]]:
        """Return the messages that can be had at once, in order; none if no whole one is there.

        The descriptor tells whether there are more, also after some.
        """
        messages = self._deframer.messages
        while not messages:
            if (self._is_drained and not self.is_over) or not (self.read() or messages):
                break
        self._is_drained = False
        received = list(messages)
        messages.clear()
        return received

    def read(self) -> bool:
        """Read once, into `messages`; return whether anything was there."""
        if self._is_garbled:
            return False
        deframer = self._deframer
        room = deframer.room
        try:
            if room is None:
                data = self._socket.recv(RECEIVE_BYTES)
                n_bytes, wanted = len(data), RECEIVE_BYTES
                if data:
                    deframer.feed(data)
            else:
                n_bytes, wanted = self._socket.recv_into(room), len(room)
                if n_bytes:
                    deframer.filled(n_bytes)
        except BlockingIOError:
            return False
        except OSError:
            self.is_over = True
            return False
        except ProtocolError:
            self.is_over = self._is_garbled = True
            return False
        if not n_bytes:
            self.is_over = True
            return False
        # Less than there was room for: asking again would only be told that there is nothing.
        self._is_drained = n_bytes < wanted
        return True

    # -- the end ------------------------------------------------------------------------------

    def close(self, linger_s: float = 0.0) -> None:
        """Close, once what waits has left, or after some time. Idempotent."""
        if self._unsent and linger_s > 0 and self._socket.fileno() >= 0:
            self.wait_sent(linger_s)
        self._socket.close()
        self.is_over = True
        self._unsent.clear()
        self.unsent_bytes = 0


def connect_local(path: Path | str, identity: bytes) -> LocalStream:
    """Connect to a `LocalRouter`; see `LocalStream.connect`."""
    return LocalStream.connect(path, identity)


def local_url(path: Path) -> str:
    """Return how connection files name a socket."""
    return f"{_SCHEME}{path}"


def socket_path(url: str) -> str | None:
    """Return the path of a socket that `local_url` has named; None if it names something else."""
    return url.removeprefix(_SCHEME) if url.startswith(_SCHEME) else None


def _close_in_child() -> None:
    # A child of user code must not keep its parent's connection open when the parent dies.
    for stream in list(_streams):
        stream.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
