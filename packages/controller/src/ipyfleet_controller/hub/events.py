"""What can happen to the hub: the inputs of `core.HubCore.handle`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import AnyMessage

from .journal import Recollection


class MessageEvent(msgspec.Struct):
    """A peer sent a message that the table gives to the hub.

    Attributes:
        peer, channel: the sender, by its socket identity.
        message: checked.
    """

    peer: PeerId
    channel: Channel
    message: AnyMessage


class UnreachableEvent(msgspec.Struct):
    """The socket has no connection to a peer's channel any more."""

    peer: PeerId
    channel: Channel


class ProcessGoneEvent(msgspec.Struct):
    """The process of a peer that is away is no more; the answer to `CheckProcess` then."""

    peer: PeerId


class RestartEvent(msgspec.Struct):
    """The controller was started in place of one that died and left this; the first event."""

    past: Recollection


class RecordsReadEvent(msgspec.Struct):
    """The scheduler has been told what the records keep of work that goes on without its client."""


class ResubmittedEvent(msgspec.Struct):
    """A client has submitted again all of its tasks that have not ended."""

    peer: PeerId


class OverflowEvent(msgspec.Struct):
    """Too much is kept for a client; it is parted with."""

    peer: PeerId
    reason: str


class TickEvent(msgspec.Struct):
    """Time that was asked for with `WakeAt` has come."""


class CloseEvent(msgspec.Struct):
    """The controller was told to end."""

    reason: str


HubEvent: TypeAlias = (
    MessageEvent
    | UnreachableEvent
    | ProcessGoneEvent
    | RestartEvent
    | RecordsReadEvent
    | ResubmittedEvent
    | OverflowEvent
    | TickEvent
    | CloseEvent
)
