"""New groups: where their tasks wait, and which of them cannot run at all.

What lives here: `Admission`. What must not: what happens to tasks later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.ids import EngineId
from ipyfleet_protocol.messages import ErrorInfo, Group, Options

from . import events as ev
from .departing import PATIENCE_S
from .dependencies import Dependencies, is_hopeless
from .endings import deliver, own_error
from .group import GroupIndex, State, TaskGroup
from .instructions import Instruction, RecordGroup, Refuse
from .merging import merge_groups
from .runs import ANYWHERE, Constraint, Run
from .state import SchedulerState
from .wording import no_engine_left, no_such_engine

if TYPE_CHECKING:
    from .placing import Placer


class Admission:
    """Lets groups in."""

    def __init__(self, state: SchedulerState, dependencies: Dependencies) -> None:
        self._state = state
        self._dependencies = dependencies

    def submit(
        self,
        event: ev.SubmitEvent,
        now: float,
        placer: Placer | None = None,
    ) -> list[Instruction]:
        """Let the tasks of groups wait; end those that cannot run.

        Args:
            event: the groups.
            now: the time.
            placer: places tasks that need not wait at all; None if all have to.
        """
        index = self._state.groups.get(event.client)
        if index is None:
            index = self._state.groups[event.client] = GroupIndex()
        out: list[Instruction] = []
        endings: list[tuple[Run, ErrorInfo]] = []
        is_one = len(event.groups) == 1
        for group, frames in (
            ((event.groups[0], event.frames[0]),)
            if is_one
            else merge_groups(event.groups, event.frames)
        ):
            if group.first < index.next_seq:
                reason = f"tasks {group.first} … are submitted after {index.next_seq - 1}"
                out.append(Refuse(event.client, reason))
                continue
            tasks = TaskGroup(event.client, group, frames.payload)
            index.add(tasks)
            out.append(RecordGroup(tasks))
            self._state.story.note(now, event.client, group.first, group.count, "submitted")
            ended = self._admit(tasks, group, frames.function, now, placer)
            if ended:
                # At once: a group of the same message may depend on it.
                self._state.note_endings(ended, State.QUEUED, now)
                endings += ended
        return [*out, *deliver(endings)] if endings else out

    def _admit(
        self,
        tasks: TaskGroup,
        group: Group,
        body: Sequence[Any],
        now: float,
        placer: Placer | None,
    ) -> list[tuple[Run, ErrorInfo]]:
        """Let a new group's tasks wait; return those that cannot run."""
        state, options = self._state, group.options
        if tasks.function is not None and not state.functions.acquire(
            tasks.client, tasks.function, body
        ):
            error = own_error("KernelError", "the function's body is not known to the controller")
            tasks.function = None
            return [(Run(tasks, 0, tasks.count), error)]
        if options.placement == "direct":
            return self._admit_direct(tasks, options.targets or [], now, placer)
        run = Run(tasks, 0, tasks.count)
        if not state.engines and state.patience_until is None:
            return [(run, own_error("NoEnginesRegistered"))]
        constraint = constraint_of(options)
        if constraint is not ANYWHERE and is_hopeless(state, constraint):
            return [(run, no_engine_left(state, constraint, tasks))]
        if options.timeout_s:
            left_s = options.timeout_s - group.waited_ms / 1000
            # It may be at an engine that is yet to come back, and so have found its place.
            state.set_deadline(run, now, max(left_s, min(options.timeout_s, PATIENCE_S)))
        if options.after is not None or options.follow is not None:
            impossible = self._dependencies.block(run, constraint)
            return [(run, impossible)] if impossible is not None else []
        if (
            placer is None
            or constraint is not ANYWHERE
            or tasks.count > 1
            or not placer.place_lone(run, now)
        ):
            state.waiting.push(run, constraint)
        return []

    def _admit_direct(
        self, tasks: TaskGroup, targets: Sequence[int], now: float, placer: Placer | None
    ) -> list[tuple[Run, ErrorInfo]]:
        impossible = []
        start = 0
        while start < len(targets):
            target = targets[start]
            stop = start + 1
            while stop < len(targets) and targets[stop] == target:
                stop += 1
            run = Run(tasks, start, stop)
            engine = self._state.engines.get(EngineId(target))
            if engine is None or engine.is_leaving:
                impossible.append((run, no_such_engine(self._state, target, tasks)))
            elif (
                placer is None or stop - start > 1 or not placer.place_lone_direct(engine, run, now)
            ):
                engine.direct.append(run)
                engine.n_direct += stop - start
                self._state.direct.add(engine)
            start = stop
        return impossible


def constraint_of(options: Options) -> Constraint:
    """Return under what terms tasks with these options wait at first."""
    if options.targets is None and not options.resources and not options.priority:
        return ANYWHERE
    targets = None
    if options.targets is not None:
        targets = frozenset(EngineId(target) for target in options.targets)
    return Constraint(
        targets=targets,
        needs=tuple(sorted(options.resources.items())),
        priority=options.priority,
    )


__all__ = ["Admission", "constraint_of"]
