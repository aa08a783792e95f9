"""Two linked peers in one process: a transport of multipart messages without sockets.

`linked_pair` makes two `Endpoint`s; what one sends the other receives, in order, as with a pair of
DEALER sockets. Faults are wrappers around one end that change what it *sends*: `DroppingPeer` loses
messages, `DelayingPeer` holds them back until its clock has moved on, `RecordingPeer` keeps a copy.
They nest, each is a `Peer` itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Frames: TypeAlias = list[bytes]
"""One message: its frames, as they arrive."""


class PeerClosed(ConnectionError):
    """The other end is closed and everything that it sent has been received."""


class Peer(Protocol):
    """One end of a link. Code under test is handed one where it would hold a socket."""

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message. Raises `PeerClosed` when either end is closed."""

    def receive(self, timeout_s: float = 5.0) -> Frames:
        """Return the next message; `TimeoutError` when none comes in time."""

    def receive_nowait(self) -> Frames | None:
        """Return the next message, None when there is none."""

    def close(self) -> None:
        """Close this end; what was sent before can still be received. May be repeated."""


class Endpoint:
    """One end of a link in memory. Any thread may use it. Make two with `linked_pair`."""

    def __init__(self) -> None:
        self._arrived: deque[Frames] = deque()
        self._changed = threading.Condition()
        self._other: Endpoint = self
        self._is_closed = False

    def _link(self, other: Endpoint) -> None:
        self._other = other

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message.

        The frames are copied: as on a wire, what the sender does with its buffers afterwards is not
        seen at the other end.

        Raises:
            PeerClosed: this end or the other is closed; nothing was sent.
        """
        if self._is_closed or self._other._is_closed:
            raise PeerClosed("cannot send: the link is closed")
        copied = [bytes(frame) for frame in frames]
        with self._other._changed:
            self._other._arrived.append(copied)
            self._other._changed.notify_all()

    def receive(self, timeout_s: float = 5.0) -> Frames:
        """Return the next message, waiting for it if need be.

        Raises:
            TimeoutError: none came in time.
            PeerClosed: none is left and the other end is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._other._is_closed, timeout_s)
            if self._arrived:
                return self._arrived.popleft()
        if self._other._is_closed:
            raise PeerClosed("nothing left to receive: the other end is closed")
        raise TimeoutError(f"no message arrived within {timeout_s:g} s")

    def receive_nowait(self) -> Frames | None:
        """Return the next message, None when there is none."""
        with self._changed:
            return self._arrived.popleft() if self._arrived else None

    @property
    def pending(self) -> int:
        """Number of messages that have arrived and were not yet received."""
        return len(self._arrived)

    def close(self) -> None:
        """Close this end; what was sent before can still be received. May be repeated."""
        self._is_closed = True
        with self._other._changed:
            self._other._changed.notify_all()


def linked_pair() -> tuple[Endpoint, Endpoint]:
    """Make two ends of one link."""
    left, right = Endpoint(), Endpoint()
    left._link(right)
    right._link(left)
    return left, right


class _Wrapper:
    """What the wrappers share: everything passes through."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message through the peer inside."""
        self._peer.send(frames)

    def receive(self, timeout_s: float = 5.0) -> Frames:
        """Return the next message of the peer inside."""
        return self._peer.receive(timeout_s)

    def receive_nowait(self) -> Frames | None:
        """Return the next message of the peer inside, None when there is none."""
        return self._peer.receive_nowait()

    def close(self) -> None:
        """Close the peer inside."""
        self._peer.close()


class RecordingPeer(_Wrapper):
    """Keeps a copy of every message in both directions.

    Attributes:
        sent: messages sent through it, oldest first.
        received: messages received through it, oldest first.
    """

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self.sent: list[Frames] = []
        self.received: list[Frames] = []

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message and keep a copy; one that could not be sent is not kept."""
        self._peer.send(frames)
        self.sent.append([bytes(frame) for frame in frames])

    def receive(self, timeout_s: float = 5.0) -> Frames:
        """Return the next message and keep a copy."""
        frames = self._peer.receive(timeout_s)
        self.received.append(list(frames))
        return frames

    def receive_nowait(self) -> Frames | None:
        """Return the next message and keep a copy, None when there is none."""
        frames = self._peer.receive_nowait()
        if frames is not None:
            self.received.append(list(frames))
        return frames


class DroppingPeer(_Wrapper):
    """Loses the messages for which a condition holds.

    Args:
        peer: the end through which the others are sent.
        is_lost: called with the frames of each message and its number, from 0.

    Attributes:
        dropped: number of messages lost so far.
    """

    def __init__(self, peer: Peer, is_lost: Callable[[Frames, int], bool]) -> None:
        super().__init__(peer)
        self._is_lost = is_lost
        self._count = 0
        self.dropped = 0

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send one message, or lose it."""
        number, self._count = self._count, self._count + 1
        if self._is_lost([bytes(frame) for frame in frames], number):
            self.dropped += 1
        else:
            self._peer.send(frames)


class DelayingPeer(_Wrapper):
    """Holds every message back for some time by a clock; keeps their order.

    Nothing happens by itself: after moving the clock call `deliver`.

    Args:
        peer: the end through which the messages are sent in the end.
        clock: read when a message is sent and when `deliver` is called; a `MockClock`.
        delay_s: how long each message is held back.
    """

    def __init__(self, peer: Peer, clock: Callable[[], float], delay_s: float) -> None:
        super().__init__(peer)
        self._clock = clock
        self._delay_s = delay_s
        self._held: deque[tuple[float, Frames]] = deque()

    def send(self, frames: Sequence[Buffer]) -> None:
        """Take one message and hold it back."""
        self._held.append((self._clock() + self._delay_s, [bytes(frame) for frame in frames]))

    def deliver(self) -> int:
        """Send what is due; return how many messages that was."""
        count = 0
        while self._held and self._held[0][0] <= self._clock():
            self._peer.send(self._held.popleft()[1])
            count += 1
        return count

    @property
    def held(self) -> int:
        """Number of messages that are held back."""
        return len(self._held)
