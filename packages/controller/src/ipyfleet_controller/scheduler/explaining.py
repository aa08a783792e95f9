"""Where a task is and why, in plain words.

What lives here: `explain`, for people. It reads the scheduler's state and changes nothing. What
must not: anything that decisions depend on; tasks that have ended (the records have those).
"""

from __future__ import annotations

from collections.abc import Iterable

from ipyfleet_protocol.ids import EngineId, PeerId

from .engine_queue import EngineQueue
from .group import State, TaskGroup
from .runs import Constraint, Run
from .state import SchedulerState
from .wording import why_blocked, why_no_engine

MAX_NAMED = 8
"""Engines that a sentence names."""


def explain(state: SchedulerState, client: PeerId, seq: int, now: float) -> list[str] | None:
    """Return sentences: what happened to a task, and where it is now and why; None if it has ended
    or was never submitted.
    """
    index = state.groups.get(client)
    for group in index.overlapping(seq, seq + 1) if index is not None else ():
        where = State(group.states[seq - group.first])
        if where is State.PLACED:
            present = _placed(state, group, seq, now)
        elif where is State.QUEUED:
            present = _queued(state, group, seq, now)
        else:
            return None
        return [*past(state, client, seq, now), *present]
    return None


def past(state: SchedulerState, client: PeerId, seq: int, now: float) -> list[str]:
    """Return what is remembered of a task's way, oldest first."""
    steps = (step.split(" ", 1) for step in state.story.tell(client, seq))
    return [f"{duration(now - float(at))} ago: {what}" for at, what in steps]


def duration(seconds: float) -> str:
    """Return a time span as people say it."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _placed(state: SchedulerState, group: TaskGroup, seq: int, now: float) -> list[str]:
    index = seq - group.first
    for engine in state.engines.values():
        before = 0
        for piece in engine.slices:
            if piece.group is group and piece.start <= index < piece.start + piece.n_tasks:
                return [_at_engine(engine, before + index - piece.start, piece.attempt, now)]
            before += piece.n_tasks
    return ["it was given to an engine that is going; what becomes of it is decided in a moment"]


def _at_engine(engine: EngineQueue, before: int, attempt: int, now: float) -> str:
    name = f"engine {engine.engine_id}"
    again = f", attempt {attempt + 1}" if attempt else ""
    silence = duration(engine.silence_s(now))
    if engine.is_leaving:
        return f"{name} had it and is leaving; its last results may still arrive"
    if not before:
        return f"{name} runs it since {silence}{again}"
    return (
        f"waiting: it is at {name}{again}, which has {_count(before, 'task')} before it, "
        f"the first of them since {silence}"
    )


def _queued(state: SchedulerState, group: TaskGroup, seq: int, now: float) -> list[str]:
    if group.options.placement == "direct":
        return [_behind_direct(state, group, seq, now)]
    if group.blocked is not None:
        return [f"waiting: {why_blocked(group.blocked)}"]
    found = _waiting_run(state, group, seq)
    if found is None:
        return ["waiting"]
    constraint, run = found
    reason = why_no_engine(state, constraint)
    again = [f"attempt {run.attempt + 1} is to come"] if run.attempt else []
    if reason:
        return [*again, f"waiting: {reason}"]
    return [*again, f"waiting: {_busy(state, constraint, now)}", _order(state, group.client, seq)]


def _behind_direct(state: SchedulerState, group: TaskGroup, seq: int, now: float) -> str:
    index = seq - group.first
    for engine in state.direct:
        before = engine.n_tasks
        for run in engine.direct:
            if run.group is group and run.start <= index < run.stop:
                before += index - run.start
                silence = duration(engine.silence_s(now))
                return (
                    f"waiting: engine {engine.engine_id}, for which it is, has "
                    f"{_count(before, 'task')} before it, the first of them since {silence}"
                )
            before += len(run)
    return "waiting: its engine has no room for more tasks"


def _waiting_run(
    state: SchedulerState, group: TaskGroup, seq: int
) -> tuple[Constraint, Run] | None:
    index = seq - group.first
    for lane in state.waiting.all_lanes():
        for run in lane.runs():
            if run.group is group and run.start <= index < run.stop:
                return lane.constraint, run
    return None


def _busy(state: SchedulerState, constraint: Constraint, now: float) -> str:
    able = [
        engine
        for engine in state.engines.values()
        if not engine.is_leaving and state.may_run(constraint, engine)
    ]
    some = _names(engine.engine_id for engine in able)
    those = f"the {len(able)} engines that may run it" if len(able) > 1 else f"engine {some}"
    narrowed = "" if constraint.targets is None else f" (its targets: {_names(constraint.targets)})"
    failed = f"; {_names(constraint.avoid)} failed it before" if constraint.avoid else ""
    idle = [engine for engine in able if not engine.n_tasks]
    if idle:
        return f"engine {idle[0].engine_id} is free and gets it in a moment{failed}"
    slowest = max(able, key=lambda engine: engine.silence_s(now))
    longest = duration(slowest.silence_s(now))
    busy = "are all busy" if len(able) > 1 else "is busy"
    return (
        f"{those}{narrowed} {busy}; engine {slowest.engine_id} is at the same task "
        f"since {longest}{failed}"
    )


def _order(state: SchedulerState, client: PeerId, seq: int) -> str:
    before = others = 0
    for lane in state.waiting.all_lanes():
        for run in lane.runs():
            if run.group.client != client:
                others += len(run)
            elif run.first_seq < seq:
                before += min(len(run), seq - run.first_seq)
    text = f"{_count(before, 'waiting task')} of this client came before it"
    return f"{text}; other clients, which take turns with it, have {others}" if others else text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(engine_ids: Iterable[EngineId]) -> str:
    ids = sorted(engine_ids)
    text = ", ".join(map(str, ids[:MAX_NAMED]))
    return f"{text} …" if len(ids) > MAX_NAMED else text


__all__ = ["duration", "explain", "past"]
