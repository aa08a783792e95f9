"""What clients are told of engines.

What lives here: the few messages that more than one part of the hub sends. What must not: state.
"""

from __future__ import annotations

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, PeerId

from .instructions import HubInstruction, Send
from .peers import Registry


def tell_clients(registry: Registry, message: m.EnginesChanged) -> list[HubInstruction]:
    """Return what sends a message to every client."""
    return [Send(client.peer, Channel.CLIENT, message) for client in registry.of_role("client")]


def reply_control(
    registry: Registry, client: PeerId, request: int, engine: int, error: m.ErrorInfo | None
) -> list[HubInstruction]:
    """Return what answers one engine's part of a `Control`; nothing if the client is gone."""
    if client not in registry.peers:
        return []
    return [Send(client, Channel.CLIENT, m.ControlReply(client, request, engine, error))]


__all__ = ["reply_control", "tell_clients"]
