"""Work that needs neither its client nor its controller any more: groups with their payloads.

What lives here: `DetachedGroup`, how one is made of a live group (`detach_groups`), what of it has
ended since (`with_ended`), and `load_detached`, for a controller that starts. What must not:
storage.

A group that is detached lets go of its client's shared memory: what was a blob travels inline from
then on, also to the engines of the controller that runs now.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import Group

from ..scheduler.group import STATUS_OF_STATE, State, TaskGroup
from ..scheduler.state import SchedulerState
from .base import GONE, TaskDatabase
from .payloads import hold

# From `State` to what is in `Group.ended`.
_MARKS = bytes(1 + STATUS_OF_STATE[state] if state in STATUS_OF_STATE else 0 for state in State)
_MARKS += bytes(256 - len(_MARKS))


class DetachedGroup(msgspec.Struct):
    """A group of tasks of which some have not ended, with all that is needed to run those.

    Attributes:
        client: who submitted it.
        group: as submitted; `ended` says how tasks have ended, `function.frames` is the number of
            frames in `frames.function`, and no payload is a blob.
        frames: of function and payloads, as `codec.split` returns them.
        submitted: when, seconds since the epoch.
    """

    client: bytes
    group: Group
    frames: SliceFrames
    submitted: float

    @property
    def n_live(self) -> int:
        """Number of tasks that have not ended."""
        return self.group.ended.count(0) if self.group.ended else self.group.count


class PayloadGone(Exception):
    """The arguments of a task cannot be read any more."""


def detach_groups(
    state: SchedulerState, client: PeerId, blob_dir: Path | None, now: float
) -> list[DetachedGroup]:
    """Return a client's groups that have not ended; they are free of its shared memory then.

    Args:
        state: of the scheduler.
        client: whose.
        blob_dir: where its blobs are.
        now: seconds since the epoch, for `submitted`, which the records know better.

    Raises:
        PayloadGone: if arguments of a group are not there.
    """
    index = state.groups.get(client)
    out = []
    take_in_blobs(state, client, blob_dir)
    for group in index.live() if index is not None else ():
        function = group.function
        body: Sequence[Frame] = ()
        if function is not None:
            body = state.functions.body(function.digest) or ()
            function = structs.replace(function, frames=len(body))
        ended = bytes(group.states.translate(_MARKS))
        header = Group(group.first, group.count, group.options, function, group.columns, ended)
        frames = SliceFrames(list(body), list(group.frames or ()))
        out.append(DetachedGroup(client, header, frames, now))
    return out


def take_in_blobs(state: SchedulerState, client: PeerId, blob_dir: Path | None) -> None:
    """Free a client's groups that have not ended of its shared memory: what was there is mapped,
    which keeps it when its names go, and travels inline from now on.

    Raises:
        PayloadGone: if arguments of a group are not there.
    """
    index = state.groups.get(client)
    for group in index.live() if index is not None else ():
        _take_in(group, blob_dir)


def _take_in(group: TaskGroup, blob_dir: Path | None) -> None:
    if not group.columns.blobs or group.frames is None:
        return
    # Nothing is too large: it has to be run.
    columns, frames = hold(group.columns, group.frames, blob_dir, 1 << 62)
    if GONE in columns.blobs:
        raise PayloadGone(f"the arguments of tasks {group.first} … are gone from shared memory")
    columns.blobs = b""
    group.replace_payloads(columns, frames)


def with_ended(detached: DetachedGroup, marks: bytes | bytearray) -> DetachedGroup | None:
    """Return a detached group with those of its tasks marked that have ended since; None if all
    have.

    Args:
        detached: the group.
        marks: of all its tasks, as in `Group.ended`.
    """
    group = detached.group
    before = group.ended or bytes(group.count)
    ended = bytes(map(max, before, marks))
    if 0 not in ended:
        return None
    flat = ended if any(ended) else b""
    return structs.replace(detached, group=structs.replace(group, ended=flat))


def load_detached(database: TaskDatabase) -> list[DetachedGroup]:
    """Return the detached groups with tasks that have not ended, by client, in the order of
    sequence numbers; for `RecordKeeper.ask`, which calls it in the database's thread.
    """
    return sorted(database.detached(), key=lambda each: (each.client, each.group.first))


__all__ = [
    "DetachedGroup",
    "PayloadGone",
    "detach_groups",
    "load_detached",
    "take_in_blobs",
    "with_ended",
]
