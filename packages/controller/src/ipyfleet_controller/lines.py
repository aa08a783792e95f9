"""Lines: one channel of one peer, with what both sides have of it.

What lives here: `Line`; `ForwardedResults`, which knows what engines are told when a client
acknowledges results, and `ForwardedBlobs`, which knows what is left of them when it is gone. What
must not: sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ipyfleet_protocol.ids import PeerId, RoutingId
from ipyfleet_protocol.messages import BlobHandle
from ipyfleet_protocol.reliable import Received, Sent


class Line:
    """One channel of a peer that has joined.

    Attributes:
        identity: of the peer's socket.
        sent, received: counted messages, since the peer joined this run of the controller.
        is_broken: the peer is not connected; what is sent is kept until it comes back.
    """

    __slots__ = ("identity", "is_broken", "received", "sent")

    def __init__(self, identity: RoutingId) -> None:
        self.identity = identity
        self.sent = Sent()
        self.received = Received()
        self.is_broken = False

    def __repr__(self) -> str:
        state = "broken" if self.is_broken else "well"
        return f"<Line {self.identity[:4].hex()}…{chr(self.identity[-1])} {state}>"


class ForwardedResults:
    """Which results that engines keep have been forwarded to which client, and how far.

    An engine keeps results until it is told that their client has them (`ResultsTaken`). The client
    acknowledges a number of messages, so of each message of results the position in the client's
    line is noted, behind which the engine's number is taken.
    """

    __slots__ = ("_by_client",)

    def __init__(self) -> None:
        self._by_client: dict[PeerId, deque[tuple[int, PeerId, int]]] = {}

    def note(self, client: PeerId, position: int, engine: PeerId, number: int) -> None:
        """Note an engine's message.

        Args:
            client: whose results.
            position: how many messages the client must have, to have them.
            engine: whose message.
            number: of the message, as `Results.number`.
        """
        waiting = self._by_client.get(client)
        if waiting is None:
            waiting = self._by_client[client] = deque()
        waiting.append((position, engine, number))

    def take(self, client: PeerId, received: int | None) -> dict[PeerId, int]:
        """Return of each engine the highest number that a client has now.

        Args:
            client: who.
            received: how many messages it has; None for "it is gone, and needs nothing".
        """
        waiting = self._by_client.get(client)
        taken: dict[PeerId, int] = {}
        while waiting and (received is None or waiting[0][0] <= received):
            _, engine, number = waiting.popleft()
            taken[engine] = max(number, taken.get(engine, 0))
        if waiting is not None and not waiting:
            del self._by_client[client]
        return taken


class ForwardedBlobs:
    """Which blobs of results their clients have yet to remove, as far as is known.

    A client removes a blob when it receives the result, so it has removed those of messages that it
    has acknowledged.

    Attributes:
        left: those that no client will remove; whoever does takes them out.
    """

    __slots__ = ("_by_client", "left")

    def __init__(self) -> None:
        self._by_client: dict[PeerId, deque[tuple[int, BlobHandle]]] = {}
        self.left: list[BlobHandle] = []

    def note(self, client: PeerId, line: Line | None, blobs: Iterable[BlobHandle]) -> None:
        """Note blobs of a message.

        Args:
            client: for whom.
            line: over which the message was sent just now; None if the client is gone.
            blobs: their handles.
        """
        if line is None:
            self.left += blobs
            return
        waiting = self._by_client.setdefault(client, deque())
        while waiting and waiting[0][0] <= line.sent.acknowledged:
            waiting.popleft()
        position = line.sent.count
        waiting.extend((position, blob) for blob in blobs)

    def note_gone(self, client: PeerId, line: Line | None) -> None:
        """Note that a client is gone, whose line this was."""
        acknowledged = line.sent.acknowledged if line is not None else 0
        for position, blob in self._by_client.pop(client, ()):
            if position > acknowledged:
                self.left.append(blob)


__all__ = ["ForwardedBlobs", "ForwardedResults", "Line"]
