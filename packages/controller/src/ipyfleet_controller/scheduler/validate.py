"""Checks of everything that must hold in the scheduler; for tests, after every event.

What lives here: `validate` and `validate_placed`. Both cost time in proportion to all tasks.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from .core import SchedulerCore
from .dependencies import is_hopeless
from .engine_queue import EngineQueue
from .group import State, TaskGroup
from .runs import Run
from .state import SchedulerState


def validate(core: SchedulerCore) -> None:
    """Check what must hold after any event.

    Raises:
        AssertionError: if something does not; the text says what.
    """
    state = core.state
    queued: list[Run] = []
    placed: list[Run] = []
    for engine in state.engines.values():
        _validate_engine(state, engine)
        queued += engine.direct
        for piece in engine.slices:
            stop = piece.start + piece.n_tasks
            placed.append(Run(piece.group, piece.start, stop, piece.attempt))
    queued += _validate_waiting(state)
    queued += _validate_blocked(state)
    groups = [group for index in state.groups.values() for group in index.live()]
    _validate_cover(groups, queued, State.QUEUED)
    _validate_cover(groups, placed, State.PLACED)
    for group in groups:
        left = group.states.count(State.QUEUED) + group.states.count(State.PLACED)
        assert group.remaining == left > 0, f"{group!r}: {group.remaining} remaining, {left} live"
        assert group.frames is not None, f"{group!r} lives and its payloads are freed"
    for run in queued + placed:
        assert 0 <= run.attempt <= run.group.options.retries, f"{run!r}: too many attempts"


def validate_placed(core: SchedulerCore) -> None:
    """Check what must hold after a `PlaceEvent`: no engine idles while it may run a waiting task.

    Raises:
        AssertionError: if one does.
    """
    state = core.state
    for engine in state.engines.values():
        if engine.n_tasks or engine.is_leaving or engine.is_away:
            continue
        assert not engine.direct, f"{engine!r} is idle and has direct tasks"
        for lane in state.waiting.all_lanes():
            assert not state.may_run(lane.constraint, engine), (
                f"{engine!r} is idle while {lane.head()!r} waits"
            )


def _validate_engine(state: SchedulerState, engine: EngineQueue) -> None:
    end = 0
    for piece in engine.slices:
        assert piece.n_tasks > 0, f"{engine!r}: an empty slice"
        assert piece.ordinal >= end, f"{engine!r}: ordinals {piece.ordinal} after {end}"
        end = piece.end_ordinal
    assert end <= engine.next_ordinal
    assert engine.n_tasks == sum(piece.n_tasks for piece in engine.slices), f"{engine!r}: count"
    assert engine.n_bytes == sum(
        piece.n_tasks * piece.group.task_bytes for piece in engine.slices
    ), f"{engine!r}: bytes"
    assert engine.n_direct == sum(map(len, engine.direct)), f"{engine!r}: direct count"
    assert bool(engine.direct) == (engine in state.direct), f"{engine!r}: direct set"
    if engine.is_leaving or engine.is_away:
        assert engine not in state.open, f"{engine!r} leaves or is away, and is open"
    elif not engine.n_tasks:
        assert engine in state.open, f"{engine!r} is idle and not open"
    if engine in state.stealable:
        assert engine.n_tasks > 1, f"{engine!r} is stealable"
    last: dict[bytes, int] = {}
    for run in engine.direct:
        client = run.group.client
        assert run.first_seq > last.get(client, -1), f"{engine!r}: direct tasks out of order"
        last[client] = run.first_seq


def _validate_waiting(state: SchedulerState) -> list[Run]:
    runs = []
    n_tasks = n_dormant = 0
    for lane in state.waiting.all_lanes():
        in_lane = list(lane.runs())
        assert lane.n_tasks == sum(map(len, in_lane)) > 0, "a lane's count"
        firsts = [run.first_seq for run in in_lane]
        assert firsts == sorted(set(firsts)), "a lane out of order"
        assert lane.head() is in_lane[0], "a lane's head"
        n_tasks += lane.n_tasks
        runs += in_lane
        usable = lane.constraint.is_free or state.is_usable(lane.constraint)
        assert lane.is_dormant != usable, f"{lane.constraint} sleeps: {lane.is_dormant}"
        if lane.is_dormant:
            n_dormant += lane.n_tasks
            assert not is_hopeless(state, lane.constraint) or any(
                engine.is_leaving for engine in state.engines.values()
            ), f"{lane.constraint} waits in vain"
        else:
            key = (-lane.constraint.priority, firsts[0])
            assert lane.key == key, f"a lane is at {lane.key} and should be at {key}"
    assert n_tasks == state.waiting.n_tasks, f"{n_tasks} wait, counted {state.waiting.n_tasks}"
    assert n_dormant == state.waiting.n_dormant, f"{n_dormant} sleep"
    ready = list(state.waiting.lanes_in_turn())
    assert len(ready) == len(set(ready)), "a lane twice"
    assert set(ready) == {lane for lane in state.waiting.all_lanes() if not lane.is_dormant}
    for before, after in pairwise(ready):
        same_client = before.head().group.client == after.head().group.client
        assert not same_client or before.key < after.key, "lanes out of order"
    return runs


def _validate_blocked(state: SchedulerState) -> list[Run]:
    """Check that each blocked group waits for something that has not happened and still can."""
    assert not state.told, "ends were told and not looked at"
    assert not state.has_news, "there is news that nobody has looked at"
    runs: list[Run] = []
    for index in state.groups.values():
        for group in index.live():
            blocked = group.blocked
            if blocked is None:
                continue
            assert blocked.runs, f"{group!r} is blocked without tasks"
            runs += blocked.runs
            if blocked.is_asked:
                continue
            after, follow = blocked.after, blocked.follow
            open_after = after is not None and not after.is_met
            open_follow = follow is not None and not (follow.is_met and follow.engines)
            assert open_after or open_follow, f"{group!r} is blocked by nothing"
            for tracker in (after if open_after else None, follow if open_follow else None):
                if tracker is not None:
                    assert blocked in tracker.waiters, f"{group!r} is forgotten"
                    assert tracker.n_left, f"{group!r} waits for tasks that have ended"
                    assert not tracker.is_missed, f"{group!r} waits in vain"
    assert state.n_blocked == sum(map(len, runs)), f"{state.n_blocked} counted as blocked"
    return runs


def _validate_cover(groups: list[TaskGroup], runs: list[Run], state: State) -> None:
    """Check that runs cover exactly the tasks in one state, each once."""
    covered: Counter[tuple[TaskGroup, int]] = Counter()
    for run in runs:
        covered.update((run.group, index) for index in range(run.start, run.stop))
    twice = [key for key, count in covered.items() if count > 1]
    assert not twice, f"{state.name} more than once: {twice[:3]}"
    expected = {
        (group, index)
        for group in groups
        for index, byte in enumerate(group.states)
        if byte == state
    }
    assert covered.keys() == expected, f"{state.name}: {covered.keys() ^ expected}"
