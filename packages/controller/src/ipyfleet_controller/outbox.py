"""Sending to peers through the one ROUTER, whatever their state.

What lives here: `Outbox`. A send never blocks: what a peer's full pipe does not take waits here,
in order. Of that, output is given up first when it grows beyond a bound, and what was given up is
told; results and tasks are never dropped one by one: a client for which too much waits is named in
`overflowing`, and the router parts with it. What waits for an engine is bounded by what the
scheduler lets it hold. What must not: decisions about what to send.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

import zmq

from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import Channel, PeerId, RoutingId, routing_id
from ipyfleet_protocol.messages import Output, OutputItem

OUTPUT_MAX_BYTES = 16 << 20
"""Bytes waiting for one peer above which its further output is given up."""

WAITING_MAX_BYTES = 512 << 20
"""Bytes waiting for a client above which the controller parts with it."""

_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)
# pyzmq types say nothing of the buffer protocol, which its frames have.
_FRAME: type[object] = zmq.Frame

COPY_MAX_BYTES = 1 << 16
"""Frames that are not the socket's own are copied up to this size: that is cheaper than telling
another thread when they are free again."""


class Backlog:
    """What waits for one channel of a peer."""

    __slots__ = ("messages", "n_bytes")

    def __init__(self) -> None:
        self.messages: deque[tuple[Frame, Sequence[Frame]]] = deque()
        self.n_bytes = 0


class Outbox:
    """Sends, keeps what cannot be sent yet, and notes who is gone.

    Attributes:
        max_bytes: bytes that may wait for a client; a single message may be larger.
        unreachable: channels found without a connection; whoever reads them takes them out.
        overflowing: clients' channels for which more waits; as `unreachable`.
        dropped_bytes: output given up so far, of all peers.
        n_sent: messages so far.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._backlogs: dict[RoutingId, Backlog] = {}
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

    def send(
        self, peer: PeerId, channel: Channel, header: Frame, frames: Sequence[Frame] = ()
    ) -> None:
        """Send a message now, or as soon as the peer's pipe has room."""
        self.n_sent += 1
        identity = routing_id(peer, channel)
        backlog = self._backlogs.get(identity) if self._backlogs else None
        if backlog is None:
            if self._try(identity, header, frames):
                return
            backlog = self._backlogs[identity] = Backlog()
        backlog.messages.append((header, frames))
        backlog.n_bytes += len(header) + sum(map(len, frames))
        if (
            backlog.n_bytes > self.max_bytes
            and channel is Channel.CLIENT
            and len(backlog.messages) > 1
        ):
            self.overflowing.add(identity)

    def send_output(
        self, peer: PeerId, message: Output, header: Frame, frames: Sequence[Frame]
    ) -> None:
        """Send output; only the note of how much there was if too much waits for the peer."""
        backlog = self._backlogs.get(routing_id(peer, Channel.CLIENT))
        if backlog is not None and backlog.n_bytes > OUTPUT_MAX_BYTES:
            stub = _without_content(message, frames)
            self.dropped_bytes += sum(item.dropped_bytes for item in stub.items)
            header, frames = encode(stub), ()
        self.send(peer, Channel.CLIENT, header, frames)

    def probe(self, peer: PeerId, channel: Channel, header: Frame) -> None:
        """Find out whether a peer is connected; a full pipe is a connection."""
        identity = routing_id(peer, channel)
        if identity not in self._backlogs:
            self._try(identity, header, ())

    def retry(self) -> None:
        """Send what waits, as far as that goes now."""
        for identity, backlog in list(self._backlogs.items()):
            while backlog.messages:
                header, frames = backlog.messages[0]
                if not self._try(identity, header, frames):
                    break
                backlog.messages.popleft()
                backlog.n_bytes -= len(header) + sum(map(len, frames))
            else:
                del self._backlogs[identity]

    def forget(self, peer: PeerId) -> None:
        """Drop what waits for a peer that is gone."""
        for channel in Channel:
            self._backlogs.pop(routing_id(peer, channel), None)

    def _try(self, identity: RoutingId, header: Frame, frames: Sequence[Frame]) -> bool:
        """Send unless the pipe is full. A message to nobody counts as sent."""
        send = self._socket.send
        try:
            # Only the first part can fail: it chooses the pipe, and that takes whole messages.
            send(identity, _MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EHOSTUNREACH):
                raise
            self.unreachable.append(identity)
            return True
        part = header
        for following in frames:
            send(part, _MORE, type(part) is not _FRAME and len(part) <= COPY_MAX_BYTES)
            part = following
        send(part, _DONTWAIT, type(part) is not _FRAME and len(part) <= COPY_MAX_BYTES)
        return True


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
        items.append(OutputItem(item.seq, item.index, "stdout", b"", dropped_bytes=n_bytes))
    return Output(message.client, message.engine, items)
