"""What can happen to the scheduler: the inputs of `core.SchedulerCore.handle`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Group, HeldTasks, Results, SeqRange

from .instructions import EndedTask


class EngineJoinedEvent(msgspec.Struct):
    """An engine is registered and its task channel is connected; `resources` as in `Hello`."""

    engine_id: EngineId
    peer: PeerId
    resources: dict[str, float] = msgspec.field(default_factory=dict)


class EngineLeavingEvent(msgspec.Struct):
    """An engine is known to go, or to be gone; its last results may still arrive. Place nothing
    there.
    """

    engine_id: EngineId


class EngineAwayEvent(msgspec.Struct):
    """An engine cannot be reached for now, or not over its task channel. It may come back with all
    that it had; place nothing there until then.
    """

    engine_id: EngineId


class EngineBackEvent(msgspec.Struct):
    """An engine that was away can have tasks again. What was sent to it meanwhile has arrived."""

    engine_id: EngineId


class EngineHoldsEvent(msgspec.Struct):
    """An engine that an earlier run of the controller gave tasks says what it has.

    Attributes:
        held: its tasks: waiting, running, or ended with results that it will send.
        next_ordinal: the ordinal after the last that it has seen.
    """

    engine_id: EngineId
    held: list[HeldTasks]
    next_ordinal: int = 0


class GatherEvent(msgspec.Struct):
    """The controller was started in place of one that died: keep what comes, place nothing."""


class GatheredEvent(msgspec.Struct):
    """All that could be gathered has come: put it together, and go on.

    Attributes:
        missing: clients that were here before, and may still come.
    """

    missing: list[PeerId] = msgspec.field(default_factory=list)


class DetachedEvent(msgspec.Struct):
    """What a client had detached from, out of the records; fields as in `SubmitEvent`.

    It counts only if the client does not come itself.
    """

    client: PeerId
    groups: list[Group]
    frames: list[SliceFrames]


class ResubmittedEvent(msgspec.Struct):
    """A client has submitted again all of its tasks that have not ended."""

    client: PeerId


class EngineLostEvent(msgspec.Struct):
    """An engine is gone for good.

    Attributes:
        engine_id: which.
        reason: why, in plain words.
        running: ordinal of the task that it ran when it died; -1 where nobody knows.
    """

    engine_id: EngineId
    reason: str
    running: int = -1


class ClientLeftEvent(msgspec.Struct):
    """A client is gone. Its tasks go on."""

    client: PeerId


class SubmitEvent(msgspec.Struct):
    """A client submits groups; `frames` are those of each, as `codec.split` returns them."""

    client: PeerId
    groups: list[Group]
    frames: list[SliceFrames]


class ResultsEvent(msgspec.Struct):
    """An engine says how tasks ended. `message` and `frames` have been checked by `codec`."""

    engine_id: EngineId
    message: Results
    frames: Sequence[Frame]


class RecalledEvent(msgspec.Struct):
    """An engine gives back the tasks with ordinals ``first … last``; none if ``first > last``."""

    engine_id: EngineId
    first: int
    last: int


class CancelEvent(msgspec.Struct):
    """A client takes back tasks; the options are those of `messages.Cancel`."""

    client: PeerId
    ranges: list[SeqRange]
    interrupt: bool = False
    force: bool = False
    grace_s: float = 1.0


class EndedFoundEvent(msgspec.Struct):
    """What the records know of tasks that were asked for with `FindEnded`; nothing of those that
    they do not know, or that have not ended.
    """

    number: int
    found: list[EndedTask]


class PlaceEvent(msgspec.Struct):
    """Place what can be placed. The driver sends it once per turn of its loop, after all that
    had arrived.
    """


class TickEvent(msgspec.Struct):
    """Time that was asked for with `WakeAt` has come."""


SchedulerEvent: TypeAlias = (
    EngineJoinedEvent
    | EngineLeavingEvent
    | EngineAwayEvent
    | EngineBackEvent
    | EngineHoldsEvent
    | GatherEvent
    | GatheredEvent
    | DetachedEvent
    | ResubmittedEvent
    | EngineLostEvent
    | ClientLeftEvent
    | SubmitEvent
    | ResultsEvent
    | RecalledEvent
    | CancelEvent
    | EndedFoundEvent
    | PlaceEvent
    | TickEvent
)
