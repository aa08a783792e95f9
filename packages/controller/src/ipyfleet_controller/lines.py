"""Lines: one channel of one peer, with what both sides have of it.

What lives here: `Line`, and `ForwardedResults`, which knows what engines are told when a client
acknowledges results. What must not: sockets.
"""

from __future__ import annotations

from collections import deque

from ipyfleet_protocol.ids import PeerId, RoutingId
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


__all__ = ["ForwardedResults", "Line"]
