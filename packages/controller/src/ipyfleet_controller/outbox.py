"""Sending to peers through the doors, whatever their state.

What lives here: `Outbox`. A send never blocks: what a full connection does not take waits here, in
order, until the door says that there is room. What was sent over a line (`lines.Line`) is kept
until the peer has acknowledged it, and sent again after a break (`resume`); while the line is
broken it is only kept. Of what a peer has not taken, output is given up first when it grows beyond
a bound, and what was given up is told; results and tasks are never dropped one by one: a client for
which too much is kept is named in `overflowing`, and the router parts with it. What is kept for an
engine is bounded by what the scheduler lets it hold. What must not: decisions about what to send.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Sequence

from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import PEER_ID_BYTES, Channel, PeerId, RoutingId, routing_id
from ipyfleet_protocol.local import Unreachable
from ipyfleet_protocol.messages import Output, OutputItem

from .doors import Doors
from .lines import Line

OUTPUT_MAX_BYTES = 16 << 20
"""Bytes kept for one peer above which its further output is given up."""

WAITING_MAX_BYTES = 512 << 20
"""Bytes kept for a client above which the controller parts with it."""

MAX_ADDRESSES = 8192
"""Addresses that are remembered of peers that have not joined."""


class Backlog:
    """What waits for one channel of a peer."""

    __slots__ = ("messages", "n_bytes")

    def __init__(self) -> None:
        self.messages: deque[Sequence[Frame]] = deque()
        self.n_bytes = 0


class Outbox:
    """Sends, keeps what cannot be sent yet, and notes who is gone.

    Attributes:
        max_bytes: bytes that may be kept for a client; a single message may be larger.
        unreachable: channels found without a connection, or whose connection was said to have
            ended; whoever reads them takes them out.
        overflowing: clients' channels for which more is kept; as `unreachable`.
        dropped_bytes: output given up so far, of all peers.
        n_sent: messages so far.
    """

    def __init__(self, doors: Doors) -> None:
        self._send = doors.send
        doors.when_room(self._flush)
        self._backlogs: dict[RoutingId, Backlog] = {}
        self._lines: dict[RoutingId, Line] = {}
        # Of the name of a channel, the identity that its socket has; the oldest first.
        self._addresses: dict[RoutingId, bytes] = {}
        self.max_bytes = WAITING_MAX_BYTES
        self.unreachable: list[RoutingId] = []
        self.overflowing: set[RoutingId] = set()
        self.dropped_bytes = 0
        self.n_sent = 0

    @property
    def is_waiting(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._backlogs)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that could not be sent yet, of all peers."""
        return sum(backlog.n_bytes for backlog in self._backlogs.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes that peers have not acknowledged, of all peers."""
        return sum(line.sent.n_bytes for line in self._lines.values())

    # -- addresses ----------------------------------------------------------------------------

    def address(self, name: RoutingId) -> bytes | None:
        """Return the identity that the socket of a channel came with last."""
        return self._addresses.get(name)

    def note_address(self, name: RoutingId, identity: bytes) -> None:
        """From now on what is for a channel goes to a socket's identity."""
        self._drop_backlog(name)  # it was for another
        self._addresses.pop(name, None)
        self._addresses[name] = identity
        if len(self._addresses) - len(self._lines) > MAX_ADDRESSES:
            for known in [known for known in self._addresses if known not in self._lines]:
                del self._addresses[known]
                if len(self._addresses) - len(self._lines) <= MAX_ADDRESSES // 2:
                    break

    def turn_away(self, identity: bytes, header: Frame) -> None:
        """Send a refusal to a socket, if it has room."""
        with contextlib.suppress(Unreachable):
            self._send(identity, (header,))

    def note_ended(self, address: bytes) -> None:
        """Note that a connection has ended; one that had the name of another's does not count."""
        name = RoutingId(address[: PEER_ID_BYTES + 1])
        if self._addresses.get(name) == address:
            self._note_unreachable(name)

    # -- lines --------------------------------------------------------------------------------

    def open(self, peer: PeerId, channels: Iterable[Channel], *, broken: bool = False) -> None:
        """Begin to count and keep what is sent to a peer; if `broken`, only to keep it."""
        for channel in channels:
            identity = routing_id(peer, channel)
            line = self._lines[identity] = Line(identity)
            line.is_broken = broken

    def line(self, identity: bytes) -> Line | None:
        """Return the line that a socket identity is the name of, if it is open."""
        return self._lines.get(identity)  # type: ignore[call-overload, no-any-return]

    def resume(self, line: Line, received: int, answer: Frame) -> None:
        """Go on over a new connection.

        Args:
            line: which line.
            received: how many messages the peer has.
            answer: what is sent first; it is not counted.

        Raises:
            ProtocolError: if the peer cannot have that many. Nothing has changed.
        """
        missing = line.sent.unacknowledged(received)
        self._drop_backlog(line.identity)
        line.is_broken = False
        self._post(line.identity, (answer,))
        for message in missing:
            if line.is_broken:
                return
            self._post(line.identity, message)

    def forget(self, peer: PeerId) -> None:
        """Drop what waits and what is kept for a peer that is gone."""
        for channel in Channel:
            identity = routing_id(peer, channel)
            self._drop_backlog(identity)
            self._lines.pop(identity, None)

    # -- sending ------------------------------------------------------------------------------

    def send(
        self, peer: PeerId, channel: Channel, header: Frame, frames: Sequence[Frame] = ()
    ) -> None:
        """Send a message now, or as soon as the peer's pipe has room, or after a break."""
        self.n_sent += 1
        identity: RoutingId = peer + channel.suffix  # type: ignore[assignment]  # `routing_id`
        message = (header, *frames)
        line = self._lines.get(identity)
        if line is None:
            self._post(identity, message)
            return
        sent = line.sent
        sent.note(message)
        if not line.is_broken:
            self._post(identity, message)
        if sent.n_bytes > self.max_bytes and channel is Channel.CLIENT and len(sent) > 1:
            self.overflowing.add(identity)

    def post(self, peer: PeerId, channel: Channel, header: Frame, *, if_room: bool = False) -> None:
        """Send a message of the session itself, which is neither counted nor kept.

        With `if_room` it is dropped if others wait for the peer already.
        """
        identity = routing_id(peer, channel)
        if not if_room or identity not in self._backlogs:
            self._post(identity, (header,))

    def send_output(
        self, peer: PeerId, message: Output, header: Frame, frames: Sequence[Frame]
    ) -> None:
        """Send output; only the note of how much there was if too much is kept for the peer."""
        identity = routing_id(peer, Channel.CLIENT)
        line, backlog = self._lines.get(identity), self._backlogs.get(identity)
        n_bytes = line.sent.n_bytes if line else backlog.n_bytes if backlog else 0
        if n_bytes > OUTPUT_MAX_BYTES:
            stub = _without_content(message, frames)
            self.dropped_bytes += sum(item.dropped_bytes for item in stub.items)
            header, frames = encode(stub), ()
        self.send(peer, Channel.CLIENT, header, frames)

    def _flush(self, address: bytes) -> None:
        """Send what waits for a connection that has room, as far as that goes now."""
        identity = RoutingId(address[: PEER_ID_BYTES + 1])
        backlog = self._backlogs.get(identity)
        if backlog is None:
            return
        while backlog.messages:
            message = backlog.messages[0]
            if not self._try(identity, message):
                return
            if identity not in self._backlogs:
                return  # the line is broken
            backlog.messages.popleft()
            backlog.n_bytes -= sum(map(len, message))
        self._drop_backlog(identity)

    def _post(self, identity: RoutingId, message: Sequence[Frame]) -> None:
        backlog = self._backlogs.get(identity) if self._backlogs else None
        if backlog is None:
            try:
                # What `_try` does.
                if self._send(self._addresses.get(identity, identity), message):
                    return
            except Unreachable:
                self._note_unreachable(identity)
                return
            backlog = self._backlogs[identity] = Backlog()
        backlog.messages.append(message)
        backlog.n_bytes += sum(map(len, message))

    def _drop_backlog(self, identity: RoutingId) -> None:
        self._backlogs.pop(identity, None)

    def _try(self, identity: RoutingId, message: Sequence[Frame]) -> bool:
        """Send unless there is no room. A message to nobody counts as sent."""
        try:
            return self._send(self._addresses.get(identity, identity), message)
        except Unreachable:
            self._note_unreachable(identity)
            return True

    def _note_unreachable(self, identity: RoutingId) -> None:
        self.unreachable.append(identity)
        # Nobody will say that there is room, and what waits would be before all that comes later.
        self._drop_backlog(identity)
        line = self._lines.get(identity)
        if line is not None:
            line.is_broken = True


def _without_content(message: Output, frames: Sequence[Frame]) -> Output:
    """Return output with each item's content replaced by its size, so that the count stays
    right.
    """
    items = []
    position = 0
    for item in message.items:
        n_bytes = len(item.content) + item.dropped_bytes
        n_bytes += sum(map(len, frames[position : position + item.buffers]))
        position += item.buffers
        items.append(
            OutputItem(item.seq, item.index, "stdout", b"", 0, n_bytes, attempt=item.attempt)
        )
    return Output(message.client, message.engine, items)
