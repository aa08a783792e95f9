"""What the driver does so that a break loses nothing: counting, acknowledging, telling engines.

What lives here: `Sessions`. What must not: who is here, and who has joined; those are the hub's.

Per message this costs a look into a dictionary and a count. Acknowledgements are sent when there is
much to acknowledge; for the rest there is one sweep over the lines that have some, at most twice a
second, so a busy cluster is not woken for each line and an idle one not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import Channel, PeerId, RoutingId, split_routing_id
from ipyfleet_protocol.messages import Ack, ResultsTaken
from ipyfleet_protocol.reliable import ACK_AFTER_S

from .lines import ForwardedResults, Line
from .outbox import Outbox

SWEEP_S = ACK_AFTER_S / 2
"""A sweep acknowledges what would be due within this time, so that the next is not soon."""


class Sessions:
    """Counts what comes in and sees to it that nobody keeps messages for longer than needed."""

    def __init__(self, outbox: Outbox, wake_at: Callable[[float], None]) -> None:
        """Take the outbox, and what has `sweep` called at a time."""
        self._outbox = outbox
        self._wake_at = wake_at
        self._pending: dict[RoutingId, Line] = {}
        self._sweep_at: float | None = None
        self._forwarded = ForwardedResults()
        self._unrecorded: dict[tuple[PeerId, PeerId], int] = {}

    # -- what comes in ------------------------------------------------------------------------

    def note(self, line: Line, parts: Sequence[Frame], now: float) -> None:
        """Count a message that came over a line."""
        if line.received.note(sum(map(len, parts)), now):
            self._acknowledge(line, line.received.told())
        elif line.identity not in self._pending:
            self._pending[line.identity] = line
            if self._sweep_at is None:
                self._sweep_at = now + ACK_AFTER_S
                self._wake_at(self._sweep_at)

    def sweep(self, now: float) -> None:
        """Acknowledge what came a while ago; called whenever the loop was woken by the clock."""
        if self._sweep_at is None or now < self._sweep_at:
            return
        for identity, line in list(self._pending.items()):
            received = line.received.ack_due(now + SWEEP_S)
            if received is not None:
                self._acknowledge(line, received)
            if line.received.next_ack_at is None:
                del self._pending[identity]
        self._sweep_at = now + SWEEP_S if self._pending else None
        if self._sweep_at is not None:
            self._wake_at(self._sweep_at)

    def _acknowledge(self, line: Line, received: int) -> None:
        if line.is_broken or self._outbox.line(line.identity) is not line:
            return  # what the peer is told when it comes back says the same
        name = split_routing_id(line.identity)
        assert name is not None, "lines are named after peers"
        self._outbox.post(*name, encode(Ack(received)))

    # -- what has arrived at the other side ---------------------------------------------------

    def note_forwarded(self, client: PeerId, engine: PeerId, number: int) -> None:
        """Note that results of an engine have been dealt with, and sent to their client if it is
        here and does not have them.
        """
        line = self._outbox.line(client + Channel.CLIENT.suffix)
        if line is None:
            key = client, engine
            self._unrecorded[key] = max(number, self._unrecorded.get(key, 0))
            return
        self._forwarded.note(client, line.sent.count, engine, number)
        if not len(line.sent):
            # Nothing of it was for the client, or the message is an old one.
            self._tell(client, self._forwarded.take(client, line.sent.count))

    def acknowledge(self, line: Line, received: int) -> None:
        """Take in that a peer has messages.

        Raises:
            ProtocolError: if it cannot have so many.
        """
        line.sent.acknowledge(received)
        if line.identity[-1] == Channel.CLIENT:
            client = PeerId(line.identity[:-1])
            self._tell(client, self._forwarded.take(client, line.sent.acknowledged))

    def note_client_gone(self, client: PeerId) -> None:
        """Note that nobody will read a client's results but from the records."""
        for engine, number in self._forwarded.take(client, None).items():
            key = client, engine
            self._unrecorded[key] = max(number, self._unrecorded.get(key, 0))

    def take_unrecorded(self) -> Mapping[tuple[PeerId, PeerId], int]:
        """Return ``(client, engine): number`` of results that only the records are to have; the
        caller calls `note_recorded` with it when they do.
        """
        taken, self._unrecorded = self._unrecorded, {}
        return taken

    @property
    def has_unrecorded(self) -> bool:
        """Whether `take_unrecorded` would return something."""
        return bool(self._unrecorded)

    def note_recorded(self, numbers: Mapping[tuple[PeerId, PeerId], int]) -> None:
        """Tell engines of results that have been recorded for clients that are gone."""
        for (client, engine), number in numbers.items():
            self._tell(client, {engine: number})

    def _tell(self, client: PeerId, numbers: Mapping[PeerId, int]) -> None:
        for engine, number in numbers.items():
            if self._outbox.line(engine + Channel.CONTROL.suffix) is not None:
                message = ResultsTaken(client, number)
                self._outbox.send(engine, Channel.CONTROL, encode(message))


__all__ = ["SWEEP_S", "Sessions"]
