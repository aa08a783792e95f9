"""Reliable channels: what was sent is kept until the other side has it.

What lives here: `Sent` and `Received`, one of each per channel and side, with no I/O. What must
not: sockets, clocks (`now` is an argument), what is said in a Hello.

Theory of operation
-------------------
Both sides count the messages of a channel, all but `SESSION_MESSAGES`. The sender keeps what it
sent; the receiver says now and then how many it has (`Ack`), and the sender lets go of those. A
socket that breaks loses a suffix of what was sent, since its successor is a new socket. So one
number is all that is needed to go on: the side that comes back tells how many messages it has, is
told the same, and both send what the other lacks (`Sent.unacknowledged`).

A channel whose other side has lost its memory starts anew with new objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from .columns import Frame
from .errors import ProtocolError
from .messages import (
    Ack,
    Attach,
    Attached,
    Closing,
    Goodbye,
    Hello,
    Message,
    Probe,
    Refused,
    Welcome,
)

ACK_MESSAGES: Final = 256
"""An acknowledgement is due when so many messages have not been acknowledged …"""

ACK_BYTES: Final = 1 << 20
"""… or so many bytes …"""

ACK_AFTER_S: Final = 1.0
"""… or when the oldest of them came so long ago."""

SESSION_MESSAGES: Final[frozenset[type[Message]]] = frozenset(
    (Hello, Attach, Attached, Welcome, Refused, Goodbye, Probe, Closing, Ack)
)
"""Messages that are neither counted nor kept."""


class Sent:
    """What was sent over a channel and not acknowledged.

    Attributes:
        count: messages sent since the session began.
        n_bytes: bytes of those that are kept.
    """

    __slots__ = ("_kept", "_sizes", "count", "n_bytes")

    def __init__(self) -> None:
        self._kept: deque[Sequence[Frame]] = deque()
        self._sizes: deque[int] = deque()
        self.count = 0
        self.n_bytes = 0

    def __len__(self) -> int:
        """Return how many messages are kept."""
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<Sent {self.count}, {len(self._kept)} of {self.n_bytes} bytes kept>"

    @property
    def acknowledged(self) -> int:
        """How many messages the other side is known to have."""
        return self.count - len(self._kept)

    def note(self, frames: Sequence[Frame]) -> None:
        """Keep a message: header frame and payload frames, which must not change any more.

        To be called for every counted message, also for those that cannot be sent now.
        """
        size = sum(map(len, frames))
        self._kept.append(frames)
        self._sizes.append(size)
        self.count += 1
        self.n_bytes += size

    def acknowledge(self, received: int) -> None:
        """Let go of the first `received` messages; a smaller number than before changes nothing.

        Raises:
            ProtocolError: if so many were never sent. Nothing has changed.
        """
        if received > self.count:
            raise ProtocolError(f"{received} messages acknowledged, {self.count} were sent")
        for _ in range(received - self.acknowledged):
            self._kept.popleft()
            self.n_bytes -= self._sizes.popleft()

    def unacknowledged(self, received: int) -> list[Sequence[Frame]]:
        """Return what a side that has `received` messages lacks, in order; it stays kept.

        Raises:
            ProtocolError: if the other side lacks what it has acknowledged, or has what was never
                sent: it is not the one that was here before. Nothing has changed.
        """
        if received < self.acknowledged:
            raise ProtocolError(
                f"{self.acknowledged} messages were acknowledged, now there are {received}"
            )
        self.acknowledge(received)
        return list(self._kept)


class Received:
    """How many messages came over a channel, and when to say so.

    Attributes:
        count: messages received since the session began.
        next_ack_at: when an acknowledgement is due if nothing more comes; None while there is
            nothing to acknowledge. Time passes unused on a channel that is idle.
    """

    __slots__ = ("_acknowledged", "_n_bytes", "count", "next_ack_at")

    def __init__(self) -> None:
        self.count = 0
        self.next_ack_at: float | None = None
        self._acknowledged = 0
        self._n_bytes = 0

    def __repr__(self) -> str:
        return f"<Received {self.count}, {self.count - self._acknowledged} not acknowledged>"

    def note(self, n_bytes: int, now: float) -> bool:
        """Count a message of `n_bytes`; return whether there is enough to acknowledge now.

        Who gets True calls `ack_due` and sends what that returns.
        """
        self.count += 1
        self._n_bytes += n_bytes
        if self.next_ack_at is None:
            self.next_ack_at = now + ACK_AFTER_S
        return self._n_bytes >= ACK_BYTES or self.count - self._acknowledged >= ACK_MESSAGES

    def ack_due(self, now: float) -> int | None:
        """Return the `Ack.received` to send now, or None; what is returned counts as sent."""
        if self.next_ack_at is None:
            return None
        enough = self._n_bytes >= ACK_BYTES or self.count - self._acknowledged >= ACK_MESSAGES
        if not enough and now < self.next_ack_at:
            return None
        return self.told()

    def told(self) -> int:
        """Return the count, which the other side is told now; nothing is left to acknowledge.

        For `Hello.received` and its like, and for an `Ack` ahead of its time.
        """
        self._acknowledged = self.count
        self._n_bytes = 0
        self.next_ack_at = None
        return self.count


__all__ = [
    "ACK_AFTER_S",
    "ACK_BYTES",
    "ACK_MESSAGES",
    "SESSION_MESSAGES",
    "Received",
    "Sent",
]
