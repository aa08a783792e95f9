"""What the scheduler wants done: the outputs of `core.SchedulerCore.handle`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import PlacedRange, Results, TaskRange, TaskSlice

from .group import State, TaskGroup


class SendTasks(msgspec.Struct):
    """Send tasks to an engine, over its task channel."""

    peer: PeerId
    slices: list[TaskSlice]
    frames: list[Frame]


class SendRecall(msgspec.Struct):
    """Ask an engine, over its control channel, to give back tasks ``first … last`` (ordinals)."""

    peer: PeerId
    first: int
    last: int


class SendDrop(msgspec.Struct):
    """Tell an engine, over its control channel, that these tasks of a client shall not start.

    With `interrupt` one that runs is to be interrupted.
    """

    peer: PeerId
    client: PeerId
    ranges: list[PlacedRange]
    interrupt: bool = False


class KillRunning(msgspec.Struct):
    """Have an engine killed if it runs one of these tasks."""

    engine_id: EngineId
    ranges: list[PlacedRange]


class DeliverResults(msgspec.Struct):
    """Send results to their client, if it is there, and record them.

    Attributes:
        message, frames: what to send.
        untouched: it is what the event brought; the header as received may be forwarded.
    """

    message: Results
    frames: Sequence[Frame]
    untouched: bool = False


class RecordGroup(msgspec.Struct):
    """Record that a group was submitted."""

    group: TaskGroup


class EndedTask(NamedTuple):
    """How tasks ``first … end-1`` of a client ended, and at which engine; -1 for none."""

    client: PeerId
    first: int
    end: int
    state: State
    engine: EngineId


class FindEnded(msgspec.Struct):
    """Ask the records how tasks ended that others depend on; answered with `EndedFoundEvent`.

    Attributes:
        number: comes back with the answer.
        tasks: which.
    """

    number: int
    tasks: list[TaskRange]


class Refuse(msgspec.Struct):
    """Tell a client that what it sent makes no sense."""

    client: PeerId
    reason: str


class WakeAt(msgspec.Struct):
    """Send a `TickEvent` (and a `PlaceEvent`) at this time."""

    at: float


Instruction: TypeAlias = (
    SendTasks
    | SendRecall
    | SendDrop
    | KillRunning
    | DeliverResults
    | RecordGroup
    | FindEnded
    | Refuse
    | WakeAt
)
