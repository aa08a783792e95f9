"""Who is here: the peers that have joined, and engines that are half in.

What lives here: `Peer` and `Registry` (peers by id, engine ids). What must not: messages to send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ipyfleet_protocol.ids import Channel, EngineId, PeerId
from ipyfleet_protocol.messages import EngineInfo, Hello, Role

MAX_HALF_OPEN = 4096
"""Engines that have said something but have not joined; the oldest is forgotten first."""


class Peer(msgspec.Struct):
    """A peer that has joined.

    Attributes:
        engine_id: of an engine.
        agent: of an engine that an agent forked, the agent.
        resources: of an engine, as in `Hello`.
        away_until: when a peer that cannot be reached will be given up; None for one that can.
        is_missing: it was here before the controller was started anew, and has not come back.
        attaching: of a missing engine: how channels go on that it has connected already.
        is_deaf: of an engine: its TASK channel is not connected.
        leaving_at: when an engine that is known to go will be taken off; None for one that is well.
        reason, running: of a leaving engine: why, and the ordinal of the task that it ran.
        requests: of an engine: ``(client, request)`` that it has not answered, and whether the
            request was to stop, which its end answers.
        packages: versions, as in `Hello`.
        warned_of: of a client: packages and the engines' versions of which it was warned.
    """

    peer: PeerId
    role: Role
    host: str
    hostname: str
    pid: int
    engine_id: EngineId = EngineId(-1)
    agent: PeerId | None = None
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    away_until: float | None = None
    is_missing: bool = False
    is_deaf: bool = False
    attaching: dict[Channel, Any] = msgspec.field(default_factory=dict)
    leaving_at: float | None = None
    reason: str = ""
    running: int = -1
    requests: dict[tuple[PeerId, int], bool] = msgspec.field(default_factory=dict)
    packages: dict[str, str] = msgspec.field(default_factory=dict)
    warned_of: set[tuple[str, str]] = msgspec.field(default_factory=set)

    def info(self) -> EngineInfo:
        """Return what clients know of an engine."""
        return EngineInfo(
            self.engine_id, self.peer, self.host, self.hostname, self.pid, self.resources
        )


class HalfOpen(msgspec.Struct):
    """An engine whose Hello or task channel is missing; `attaching` as in `Peer`."""

    hello: Hello | None = None
    is_attached: bool = False
    attaching: dict[Channel, Any] = msgspec.field(default_factory=dict)


class Registry:
    """All peers by id, and engines by engine id."""

    def __init__(self) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.engines: dict[EngineId, Peer] = {}
        self._half_open: OrderedDict[PeerId, HalfOpen] = OrderedDict()
        self._next_id = 0
        self._given: set[int] = set()

    def of_role(self, role: Role) -> Iterator[Peer]:
        """Yield the peers of a role."""
        return (peer for peer in self.peers.values() if peer.role == role)

    def half_open(self, peer: PeerId) -> HalfOpen:
        """Return what is known of an engine that has not joined."""
        entry = self._half_open.setdefault(peer, HalfOpen())
        while len(self._half_open) > MAX_HALF_OPEN:
            self._half_open.popitem(last=False)
        return entry

    def add(self, hello: Hello) -> Peer:
        """Let a peer in; an engine gets its id: the wanted one if it was never given, else the
        next.
        """
        peer = PeerId(hello.peer)
        self._half_open.pop(peer, None)
        entry = Peer(peer, hello.role, hello.host, hello.hostname, hello.pid)
        entry.packages = hello.packages
        if hello.role == "engine":
            entry.engine_id = self._new_engine_id(hello.wanted_id)
            entry.agent = PeerId(hello.agent) if hello.agent else None
            entry.resources = hello.resources
            self.engines[entry.engine_id] = entry
        self.peers[peer] = entry
        return entry

    def restore(self, entry: Peer) -> None:
        """Put a peer on the list that was there before the controller was started anew."""
        entry.is_missing = True
        self.peers[entry.peer] = entry
        if entry.role == "engine":
            self.engines[entry.engine_id] = entry

    def note_given(self, engine_ids: Iterable[int]) -> None:
        """Note engine ids that must not be given again."""
        self._given.update(engine_id for engine_id in engine_ids if engine_id >= self._next_id)

    def remove(self, peer: PeerId) -> Peer | None:
        """Take a peer off the list and return it."""
        self._half_open.pop(peer, None)
        entry = self.peers.pop(peer, None)
        if entry is not None and entry.role == "engine":
            del self.engines[entry.engine_id]
        return entry

    def _new_engine_id(self, wanted: int) -> EngineId:
        if self._next_id <= wanted < 1 << 31 and wanted not in self._given:
            number = wanted
        else:
            while self._next_id in self._given:
                self._given.discard(self._next_id)
                self._next_id += 1
            number = self._next_id
        if number == self._next_id:
            self._next_id += 1
        else:
            self._given.add(number)
        return EngineId(number)


def channels_of(role: Role) -> tuple[Channel, ...]:
    """Return the channels that a peer of a role has and reads."""
    if role == "client":
        return (Channel.CLIENT,)
    if role == "agent":
        return (Channel.AGENT,)
    return (Channel.CONTROL, Channel.TASK)


def lines_of(role: Role) -> tuple[Channel, ...]:
    """Return all channels of a role's peers."""
    return (*channels_of(role), Channel.OUTPUT) if role == "engine" else channels_of(role)


ROLE_OF_CHANNEL: dict[Channel, Role] = {
    Channel.CLIENT: "client",
    Channel.AGENT: "agent",
    Channel.TASK: "engine",
    Channel.CONTROL: "engine",
    Channel.OUTPUT: "engine",
}
