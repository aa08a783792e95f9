"""Sentences about tasks that cannot run, or not yet.

What lives here: the errors that the scheduler ends tasks with, where they need more than a name,
and the reasons why tasks wait. What must not: decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ipyfleet_protocol.ids import PeerId, format_msg_id
from ipyfleet_protocol.messages import ErrorInfo

from .endings import own_error
from .engine_queue import EngineQueue
from .group import State, TaskGroup
from .runs import Constraint
from .tracker import Tracker

if TYPE_CHECKING:
    from .dependencies import Blocked
    from .state import SchedulerState

MAX_NAMED = 8
"""Engines that a sentence names."""

_ENDS = {State.OK: "succeeded", State.FAILED: "failed", State.ABORTED: "was aborted"}


def engine_error(engine: EngineQueue, reason: str, group: TaskGroup) -> ErrorInfo:
    """Return the error of a task whose engine is to blame."""
    return own_error(
        "EngineError",
        f"engine {engine.engine_id}: {reason}",
        engine_id=engine.engine_id,
        uuid=engine.peer.hex(),
        method=group.options.method,
    )


def no_such_engine(state: SchedulerState, target: int, group: TaskGroup) -> ErrorInfo:
    """Return the error of a direct task for an engine that is not there."""
    ids = sorted(state.live_ids())
    there = f"the engines are {', '.join(map(str, ids))}" if ids else "there are no engines"
    return own_error(
        "EngineError",
        f"there is no engine {target}: it is gone or never was; {there}",
        engine_id=target,
        method=group.options.method,
    )


def no_engine_left(
    state: SchedulerState, constraint: Constraint, group: TaskGroup, last_words: str = ""
) -> ErrorInfo:
    """Return the error of a task that no engine may run, now or later.

    Args:
        state: for what else is known.
        constraint: under which it waits.
        group: its group.
        last_words: what the engine that turned it down last has said.
    """
    options = group.options
    loss = f"; {state.last_loss}" if state.last_loss else ""
    if constraint.refused:
        text = (
            f"every engine that may run the task has turned it down "
            f"({_names(constraint.refused)}){': ' + last_words if last_words else ''}; "
            "with a timeout it would wait for further engines"
        )
        if constraint.targets is not None:
            text = (
                f"no engine is left that may run the task: of {_names(constraint.targets)}, "
                f"{_names(constraint.refused)} turned it down"
                f"{': ' + last_words if last_words else ''}{loss}"
            )
        return own_error("ImpossibleDependency", text, method=options.method)
    if options.follow is not None:
        places = constraint.targets
        if constraint.follow is not None:
            places = frozenset(constraint.follow.engines)
        where = f"engine {_names(places)}" if places else "no engine that it may run on"
        text = f"the tasks that it is to follow ran on {where}, which it cannot run on{loss}"
        return own_error("ImpossibleDependency", text, method=options.method)
    if any(e.engine_id in (constraint.targets or ()) for e in state.engines.values()):
        reason = why_no_engine(state, constraint)
        if reason:
            targets = _names(constraint.targets or ())
            text = f"no engine can run the task: {reason} (its targets are {targets})"
            return own_error("ImpossibleDependency", text, method=options.method)
    return own_error(
        "EngineError",
        f"no engine is left that may run the task, its targets are "
        f"{', '.join(map(str, sorted(constraint.targets or ())))}{loss}",
        method=options.method,
    )


def impossible(tracker: Tracker, name: str, group: TaskGroup) -> ErrorInfo:
    """Return the error of a task that waits for what cannot happen any more.

    Args:
        tracker: how its dependency ended.
        name: `after` or `follow`.
        group: its group.
    """
    if not tracker.is_missed and tracker.is_unsure:
        text = (
            "where one of the tasks that it is to follow ran is not known any more: the controller "
            "was started anew since, and the records do not have it"
        )
    elif not tracker.is_missed and tracker.n_nowhere:
        text = "one of the tasks that it is to follow ran on no engine"
    elif not tracker.is_missed:
        places = sorted(tracker.engines)
        text = (
            f"the tasks that it is to follow, all of them, ran on engines "
            f"{', '.join(map(str, places[:MAX_NAMED]))}; no engine can be where all have run"
        )
    else:
        assert tracker.culprit is not None
        client, seq, state = tracker.culprit
        wanted = "succeed" if tracker.wanted[0] == State.OK else "fail"
        text = f"task {format_msg_id(client, seq)}, which had to {wanted} first, {_ENDS[state]}"
        if not tracker.all and tracker.n_tasks > 1:
            text = (
                f"none of the {tracker.n_tasks} tasks of which one had to {wanted} first did; "
                f"{format_msg_id(client, seq)} {_ENDS[state]}"
            )
    return own_error("ImpossibleDependency", f"{name}: {text}", method=group.options.method)


def unknown_task(client: PeerId, seq: int, was_known: bool, name: str) -> ErrorInfo:
    """Return the error of a task that depends on one that nobody knows."""
    why = (
        "it ended so long ago that neither the controller nor its records know how: wait for its "
        "result instead"
        if was_known
        else "no such task was submitted before this one"
    )
    text = f"{name}: task {format_msg_id(client, seq)} is not known; {why}"
    return own_error("InvalidDependency", text)


def timed_out(timeout_s: float, reason: str, group: TaskGroup) -> ErrorInfo:
    """Return the error of a task that has waited for as long as it may."""
    text = f"the task found no place within its timeout of {timeout_s:g} s: {reason}"
    return own_error("TaskTimeout", text, method=group.options.method)


def why_blocked(blocked: Blocked) -> str:
    """Return for what tasks wait that wait for others."""
    if blocked.is_asked:
        return "the records are asked how tasks ended that it depends on"
    parts = []
    for name, tracker in (("after", blocked.after), ("follow", blocked.follow)):
        if tracker is None or tracker.is_met:
            continue
        if tracker.n_tasks == 1:
            client, first, _ = tracker.key[0][0]
            parts.append(f"task {format_msg_id(PeerId(client), first)} has not ended ({name})")
        elif tracker.all:
            parts.append(f"{tracker.n_left} of {tracker.n_tasks} tasks have not ended ({name})")
        else:
            parts.append(f"none of {tracker.n_tasks} tasks has ended as wanted ({name})")
    return " and ".join(parts)


def why_no_engine(state: SchedulerState, constraint: Constraint) -> str:
    """Return why no engine may run tasks under a constraint; "" if some engine may."""
    live = [engine for engine in state.engines.values() if not engine.is_leaving]
    if not live:
        return "there is no engine"
    if any(state.may_run(constraint, engine) for engine in live):
        return ""
    if constraint.targets is not None:
        live = [engine for engine in live if engine.engine_id in constraint.targets]
        if not live:
            return f"none of its targets ({_names(constraint.targets)}) is there"
    for name, amount in constraint.needs:
        if not any(engine.resources.get(name, 0.0) >= amount for engine in live):
            which = "none of its targets" if constraint.targets is not None else "no engine"
            return f"{which} has {name}={amount:g}"
    if constraint.needs and not any(constraint.is_content_with(engine) for engine in live):
        needs = " and ".join(f"{name}={amount:g}" for name, amount in constraint.needs)
        return f"no engine has {needs}"
    if constraint.follow is not None and not constraint.refused:
        return "the engines where the tasks that it follows have ended are gone; others have not"
    names = _names(e.engine_id for e in live if e.engine_id in constraint.refused)
    return f"all engines that may run it have turned it down ({names})"


def why_busy(state: SchedulerState, constraint: Constraint) -> str:
    """Return why tasks that an engine may run wait, in few words."""
    able = [
        engine.engine_id
        for engine in state.engines.values()
        if not engine.is_leaving and state.may_run(constraint, engine)
    ]
    names = f"engine{'s' if len(able) > 1 else ''} {_names(able)}"
    return f"{names} had other things to do"


def _names(engine_ids: Iterable[int]) -> str:
    ids = sorted(engine_ids)
    text = ", ".join(map(str, ids[:MAX_NAMED]))
    return f"{text} …" if len(ids) > MAX_NAMED else text


__all__ = [
    "engine_error",
    "impossible",
    "no_engine_left",
    "no_such_engine",
    "timed_out",
    "unknown_task",
    "why_blocked",
    "why_busy",
    "why_no_engine",
]
