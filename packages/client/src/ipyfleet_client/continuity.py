"""How a session outlives its connection, with no I/O.

What lives here: `Continuity`: which run of the controller the client speaks with, what was sent and
received, and what may go out now. What must not: sockets, tasks (`submission.py` submits them again
where the controller has lost its memory).

Theory of operation
-------------------
A connection is DOWN until the socket is there, GREETING from Hello to Welcome, and then OPEN, where
the Welcome is of the run of the controller that was there before: what it lacks goes out first. One
of another run knows nothing: the connection is WELCOMED, and nothing goes out before the driver has
put in `restart` what is to be done again. Whatever is sent meanwhile is kept and goes out in its
turn; what arrives before a Welcome was meant for the connection before, and will come again.

So may a Welcome be, where one connection followed the other quickly: the controller reads both
Hellos and answers both over the second connection. What follows the first answer comes again behind
the second. So greetings are numbered, and one that answers another than the last is none.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence

from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import Ack
from ipyfleet_protocol.reliable import Received, Sent


class Phase(enum.Enum):
    """Where a connection is on its way."""

    DOWN = "down"
    GREETING = "greeting"
    WELCOMED = "welcomed"
    OPEN = "open"


class Continuity:
    """The state of a client's channel across its connections.

    Not thread-safe: the wire calls it with the lock that guards the socket.

    Attributes:
        phase: of the connection.
        incarnation: the run of the controller that has said Welcome last.
        keeps: that controller can resume sessions; messages are kept and acknowledged.
        backlog: messages to be sent before any other.
    """

    def __init__(self) -> None:
        self.phase = Phase.DOWN
        self.incarnation = b""
        self.keeps = False
        self.sent = Sent()
        self.received = Received()
        self.backlog: deque[Sequence[Frame]] = deque()
        self._greeting = 0
        self._began = False
        self._forgotten = False

    @property
    def takes(self) -> bool:
        """Whether counted messages that arrive are of this session."""
        return self.phase in (Phase.OPEN, Phase.WELCOMED)

    def greet(self) -> tuple[bytes, int, int]:
        """A connection is made; return `incarnation`, `received` and `greeting` for its Hello."""
        self.phase = Phase.GREETING
        self._greeting += 1
        return self.incarnation, self.received.told(), self._greeting

    def is_awaited(self, greeting: int) -> bool:
        """Whether a Welcome is the answer to this connection's Hello, and the first one."""
        return self.phase is Phase.GREETING and greeting == self._greeting

    def lose(self) -> None:
        """The connection is gone."""
        self.phase = Phase.DOWN
        if self.keeps:
            # It is all in `sent`, too.
            self.backlog.clear()

    def welcome(self, incarnation: bytes, received: int) -> bool:
        """The controller has said Welcome, one that `is_awaited`.

        Returns:
            Whether the session goes on. If not, `restart` must follow.
        """
        began, self._began = self._began, True
        if not incarnation:
            self.phase = Phase.OPEN
            return True
        if began and incarnation == self.incarnation and not self._forgotten:
            try:
                self.backlog = deque(self.sent.unacknowledged(received))
            except ProtocolError:
                # It has given this client up meanwhile: as good as another run.
                self._forgotten = True
            else:
                # The restart may have been cut short before this was said.
                self.backlog.append([encode(Ack(self.received.told()))])
                self.phase = Phase.OPEN
                return True
        self.incarnation = incarnation
        self.keeps = True
        self.sent = Sent()
        self.received = Received()
        self._forgotten = began
        self.phase = Phase.WELCOMED if began else Phase.OPEN
        return not began

    def restart(
        self, submissions: Iterable[Sequence[Frame]], others: Iterable[Sequence[Frame]] = ()
    ) -> None:
        """Send these messages first of all to a controller that knows nothing.

        Args:
            submissions: what it has to know before it places any task.
            others: what may follow.
        """
        self.sent = Sent()
        self.backlog.clear()
        for frames in submissions:
            self.sent.note(frames)
            self.backlog.append(frames)
        # Says that this was all.
        self.backlog.append([encode(Ack(self.received.told()))])
        for frames in others:
            self.sent.note(frames)
            self.backlog.append(frames)
        self._forgotten = False
        self.phase = Phase.OPEN

    def note_unsent(self, frames: Sequence[Frame]) -> None:
        """Keep a message that cannot be sent now."""
        if self.keeps:
            self.sent.note(frames)
        else:
            self.backlog.append(frames)
