"""Identities: who a peer is, which engine, which task.

What lives here: the distinct types of identity and the functions that turn one into another.
What must not: anything that knows a socket, or that draws random numbers by itself (`new_peer_id`
is the one door to the system's randomness).

A **peer** (client, agent, engine) chooses its `PeerId`, 16 random bytes, once and keeps it across
reconnects. It talks to the controller's one ROUTER through one or more **channels**, each a DEALER
of its own whose `RoutingId` is the peer id followed by one byte that names the channel. The
identity that its sockets have is that and a secret: a ROUTER hands a connection over to whoever
comes with the same identity, and peers' ids are known to others (they are part of msg_ids). An
**engine id** is the small integer that users see. A **task** is `(client's PeerId, seq)`; its
public ``msg_id`` is a string made of both on demand.
"""

from __future__ import annotations

import enum
import os
from typing import NewType

PeerId = NewType("PeerId", bytes)
"""16 random bytes chosen by a peer; the same across reconnects."""

EngineId = NewType("EngineId", int)
"""Small integer given by the controller; never reused while the cluster lives."""

Digest = NewType("Digest", bytes)
"""16 bytes that name a pickled function by content."""

RoutingId = NewType("RoutingId", bytes)
"""17 bytes: a peer id and the byte of one of its channels; names the channel everywhere."""

PEER_ID_BYTES = 16
SECRET_BYTES = 16
NO_PEER = PeerId(b"\0" * PEER_ID_BYTES)


class Channel(enum.IntEnum):
    """The channels of the peers. The value is the last byte of the routing id."""

    CLIENT = ord("C")
    """Everything between a client and the controller."""
    AGENT = ord("A")
    """Everything between a host agent and the controller."""
    TASK = ord("T")
    """An engine's tasks and results; read and written by the engine's main thread."""
    CONTROL = ord("K")
    """What must go on while an engine runs user code; the engine's second thread."""
    OUTPUT = ord("O")
    """An engine's output on its way to clients; written by the second thread only."""

    suffix: bytes
    """The value as a byte: names are made for each message."""

    def __init__(self, value: int) -> None:
        self.suffix = bytes((value,))


def new_peer_id() -> PeerId:
    """Return a fresh random peer id."""
    return PeerId(os.urandom(PEER_ID_BYTES))


def new_secret() -> bytes:
    """Return what a peer's sockets have behind their name: `SECRET_BYTES` random bytes."""
    return os.urandom(SECRET_BYTES)


def routing_id(peer: PeerId, channel: Channel) -> RoutingId:
    """Return the name of one channel of a peer."""
    name: bytes = peer + channel.suffix
    return name  # type: ignore[return-value]  # to call `RoutingId` costs as much as all else


def socket_identity(peer: PeerId, channel: Channel, secret: bytes) -> bytes:
    """Return the identity of the socket of one channel of a peer."""
    return routing_id(peer, channel) + secret


def split_routing_id(identity: bytes) -> tuple[PeerId, Channel] | None:
    """Return the peer and the channel of a socket's identity, with a secret or without; None if it
    is not one of ours.
    """
    if len(identity) not in (PEER_ID_BYTES + 1, PEER_ID_BYTES + 1 + SECRET_BYTES):
        return None
    try:
        return PeerId(identity[:PEER_ID_BYTES]), Channel(identity[PEER_ID_BYTES])
    except ValueError:
        return None


def format_msg_id(client: PeerId, seq: int) -> str:
    """Return the public id of a task: the client's hex id, an underscore, the sequence number."""
    return f"{client.hex()}_{seq}"


def parse_msg_id(msg_id: str) -> tuple[PeerId, int]:
    """Return client and sequence number of a public task id.

    Raises:
        ValueError: if the string has not the form that `format_msg_id` makes.
    """
    client, _, seq = msg_id.partition("_")
    if len(client) != 2 * PEER_ID_BYTES or not seq.isascii() or not seq.isdigit():
        raise ValueError(f"not a msg_id: {msg_id!r}; it looks like 0123…cdef_42")
    return PeerId(bytes.fromhex(client)), int(seq)
