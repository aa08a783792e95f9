"""What a controller that is started anew must know of the one that died: entries of a journal.

What lives here: the entries, and `recall`, which makes of many entries what is left of them. What
must not: files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Role, StartCall

from .peers import Peer

MAX_LEFT = 4096
"""Peers that are gone, remembered so that they are told if they come."""


class PeerJoined(msgspec.Struct, tag="joined"):
    """A peer has joined; all that is known of it. `pid_start` as `hosts.process_start` says."""

    peer: bytes
    role: Role
    host: str
    hostname: str
    pid: int
    engine_id: int = -1
    agent: bytes = b""
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    packages: dict[str, str] = msgspec.field(default_factory=dict)
    pid_start: float = 0.0


class PeerLeft(msgspec.Struct, tag="left"):
    """A peer is gone for good; `reason` is empty for one that went by itself."""

    peer: bytes
    reason: str = ""


class KeysKept(msgspec.Struct, tag="keys"):
    """The key pair of the controller itself, in z85."""

    public: bytes
    secret: bytes


class CallKept(msgspec.Struct, tag="call"):
    """What engines are to call when they start; without frames it is a call no more."""

    call: StartCall


Entry: TypeAlias = PeerJoined | PeerLeft | KeysKept | CallKept


class Recollection(msgspec.Struct):
    """What is left of a journal.

    Attributes:
        peers: those that were here.
        left: those that were gone, and why.
        engine_ids: all ids that were ever given to engines.
        calls: what engines call when they start.
        keys: of the controller; None where there is no TCP.
    """

    peers: dict[PeerId, PeerJoined] = msgspec.field(default_factory=dict)
    left: dict[PeerId, str] = msgspec.field(default_factory=dict)
    engine_ids: set[int] = msgspec.field(default_factory=set)
    calls: dict[str, StartCall] = msgspec.field(default_factory=dict)
    keys: KeysKept | None = None

    def entries(self) -> list[Entry]:
        """Return the journal that says the same with the fewest entries; ids that were given to
        engines that are gone are in it as engines that joined and left.
        """
        gone = self.engine_ids - {entry.engine_id for entry in self.peers.values()}
        out: list[Entry] = [self.keys] if self.keys is not None else []
        for engine_id in sorted(gone):
            peer = engine_id.to_bytes(16, "big")
            out += [PeerJoined(peer, "engine", "", "", 0, engine_id), PeerLeft(peer)]
        out += [PeerLeft(peer, reason) for peer, reason in self.left.items() if reason]
        out += self.peers.values()
        out += [CallKept(call) for call in self.calls.values()]
        return out


def recall(entries: Iterable[Entry]) -> Recollection:
    """Return what is left of a journal's entries, oldest first."""
    found = Recollection()
    for entry in entries:
        if isinstance(entry, PeerJoined):
            found.peers[PeerId(entry.peer)] = entry
            if entry.role == "engine":
                found.engine_ids.add(entry.engine_id)
        elif isinstance(entry, PeerLeft):
            found.peers.pop(PeerId(entry.peer), None)
            found.left[PeerId(entry.peer)] = entry.reason
            if len(found.left) > MAX_LEFT:
                del found.left[next(iter(found.left))]
        elif isinstance(entry, KeysKept):
            found.keys = entry
        else:
            found.calls.pop(entry.call.name, None)
            if entry.call.frames:
                found.calls[entry.call.name] = entry.call
    return found


def entry_of(peer: Peer) -> PeerJoined:
    """Return the entry for a peer that has joined."""
    return PeerJoined(
        peer.peer,
        peer.role,
        peer.host,
        peer.hostname,
        peer.pid,
        peer.engine_id,
        peer.agent or b"",
        peer.resources,
        peer.packages,
    )


def peer_of(entry: PeerJoined) -> Peer:
    """Return the peer that an entry is about."""
    return Peer(
        PeerId(entry.peer),
        entry.role,
        entry.host,
        entry.hostname,
        entry.pid,
        EngineId(entry.engine_id),
        PeerId(entry.agent) if entry.agent else None,
        packages=entry.packages,
        resources=entry.resources,
    )


__all__ = [
    "CallKept",
    "Entry",
    "KeysKept",
    "PeerJoined",
    "PeerLeft",
    "Recollection",
    "entry_of",
    "peer_of",
    "recall",
]
