"""Checks of everything that must hold in the scheduler; for tests, after every event.

What lives here: `validate` and `validate_placed`. Both cost time in proportion to all tasks.
"""

from __future__ import annotations

from collections import Counter

from .core import SchedulerCore
from .engine_queue import EngineQueue
from .group import State, TaskGroup
from .state import SchedulerState
from .waiting import Run


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
    n_tasks = 0
    for lane in state.waiting.all_lanes():
        in_lane = list(lane.runs())
        assert lane.n_tasks == sum(map(len, in_lane)) > 0, "a lane's count"
        assert lane.head().first_seq == min(run.first_seq for run in in_lane), "a lane's head"
        n_tasks += lane.n_tasks
        runs += in_lane
    assert n_tasks == state.waiting.n_tasks, f"{n_tasks} wait, counted {state.waiting.n_tasks}"
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
