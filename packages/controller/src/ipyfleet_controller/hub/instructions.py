"""What the hub wants done: the outputs of `core.HubCore.handle`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import Message, Question

from ..scheduler.events import SchedulerEvent


class Send(msgspec.Struct):
    """Send a message that has no payload frames."""

    peer: PeerId
    channel: Channel
    message: Message


class ForwardToClient(msgspec.Struct):
    """Send the message that the event brought to a client, as it was received."""

    client: PeerId


class ForwardToEngine(msgspec.Struct):
    """Send a message over CONTROL, with the payload frames that the event brought."""

    engine: PeerId
    message: Message


class TellScheduler(msgspec.Struct):
    """Hand an event to the scheduler."""

    event: SchedulerEvent


class AnswerQuestion(msgspec.Struct):
    """Answer a client's question from the records and the scheduler's queues."""

    client: PeerId
    request: int
    question: Question


class ForgetPeer(msgspec.Struct):
    """A peer is gone: drop what is kept for sending to it."""

    peer: PeerId


class SweepBlobs(msgspec.Struct):
    """Remove what a dead peer left in shared memory."""

    peer: PeerId


class Exit(msgspec.Struct):
    """End the process soon."""

    reason: str


class WakeAt(msgspec.Struct):
    """Send a `TickEvent` at this time."""

    at: float


HubInstruction: TypeAlias = (
    Send
    | ForwardToClient
    | ForwardToEngine
    | TellScheduler
    | AnswerQuestion
    | ForgetPeer
    | SweepBlobs
    | Exit
    | WakeAt
)
