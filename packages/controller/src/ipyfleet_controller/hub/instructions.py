"""What the hub wants done: the outputs of `core.HubCore.handle`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import Attached, Message, Question, Welcome

from ..scheduler.events import SchedulerEvent
from .journal import Entry


class Send(msgspec.Struct):
    """Send a message that has no payload frames."""

    peer: PeerId
    channel: Channel
    message: Message


class OpenLines(msgspec.Struct):
    """Begin to count and keep what is sent to a peer; if `broken`, keep all until `ResumeLine`."""

    peer: PeerId
    channels: tuple[Channel, ...]
    broken: bool = False


class ResumeLine(msgspec.Struct):
    """Send `answer` to a peer that connected a channel again, then all that it lacks.

    Attributes:
        received: how many messages it has.
        answer: the count of what was received from it is filled in before it is sent.
        is_known: the peer has been told our incarnation. One that has not, cannot have sent a thing
            that counts; if one seems to have, it is refused.
    """

    peer: PeerId
    channel: Channel
    received: int
    answer: Welcome | Attached
    is_known: bool


class CheckProcess(msgspec.Struct):
    """Send a `ProcessGoneEvent` if a peer's process was on this host and is no more."""

    peer: PeerId


class Remember(msgspec.Struct):
    """Write down what a controller that takes this one's place must know."""

    entry: Entry


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
    | OpenLines
    | ResumeLine
    | CheckProcess
    | Remember
    | ForwardToClient
    | ForwardToEngine
    | TellScheduler
    | AnswerQuestion
    | ForgetPeer
    | SweepBlobs
    | Exit
    | WakeAt
)
