"""Groups that wait for other tasks to end before they wait for an engine.

What lives here: `Blocked` (one such group) and `Dependencies`, which blocks groups, and releases or
ends them when the ends of tasks have been told. What must not: how ends are counted; that is
`tracker`'s.

Theory of operation
-------------------
A group is blocked as a whole: what it costs does not depend on the number of its tasks. Equal
dependencies of several groups share one tracker, so that a thousand calls that wait for a map of a
thousand items cost two thousand steps and not a million.

Ends are told to trackers when they happen, and only noted (`SchedulerState.told`). After each
event `resolve` works through the notes until there are no more: tasks that it ends are told of in
turn. So a failure runs through a graph of any depth without recursion.

A group depends only on tasks that were submitted before it, so no task can wait for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Dependency, ErrorInfo, TaskRange

from .ended import EndedRun, runs_of
from .endings import deliver, own_error
from .finding import find_tasks
from .group import State, TaskGroup
from .instructions import EndedTask, FindEnded, Instruction
from .runs import Constraint, Run, split_runs
from .state import SchedulerState
from .tracker import Key, Tracker, Watches, key_of
from .wording import impossible, no_engine_left, unknown_task


class Blocked:
    """A group that waits for other tasks.

    Attributes:
        group: which.
        runs: what waits of it; empty when it waits no more.
        after, follow: what it waits for.
        constraint: under which it will wait for an engine.
        is_asked: the records are asked for tasks that it waits for.
    """

    __slots__ = ("after", "constraint", "follow", "group", "is_asked", "runs")

    def __init__(self, run: Run, constraint: Constraint) -> None:
        self.group = run.group
        self.runs = [run]
        self.constraint = constraint
        self.after: Tracker | None = None
        self.follow: Tracker | None = None
        self.is_asked = False

    @property
    def n_tasks(self) -> int:
        """Tasks that wait."""
        return sum(map(len, self.runs))


class Dependencies:
    """Blocks groups and lets them go."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        # Those that are not decided.
        self._trackers: dict[Key, Tracker] = {}
        self._to_look_at: list[Blocked] = []
        self._asked: dict[int, Blocked] = {}
        self._n_asked = 0
        self._questions: list[FindEnded] = []
        self._failed: list[tuple[Blocked, ErrorInfo]] = []

    def block(self, run: Run, constraint: Constraint) -> ErrorInfo | None:
        """Let a new group wait for the tasks that its options name.

        Returns:
            Why it cannot; then nothing has changed.
        """
        blocked = Blocked(run, constraint)
        error = self._find(blocked, None)
        if error is not None:
            return error
        run.group.blocked = blocked
        self._state.n_blocked += len(run)
        self._state.has_news = True
        return None

    def take_answer(self, number: int, answer: Sequence[EndedTask], now: float) -> None:
        """Take in what the records know of tasks that a group waits for."""
        blocked = self._asked.pop(number)
        blocked.is_asked = False
        if not blocked.runs:
            return
        self._state.has_news = True
        error = self._find(blocked, answer)
        if error is not None:
            self._failed.append((blocked, error))

    def _find(self, blocked: Blocked, answers: Sequence[EndedTask] | None) -> ErrorInfo | None:
        """Have a group wait for what its options name, or for what the records know of it."""
        group, options = blocked.group, blocked.group.options
        trackers: list[Tracker | None] = []
        doubtful: list[TaskRange] = []
        for name, dependency in (("after", options.after), ("follow", options.follow)):
            tracker = None
            if dependency is not None:
                found = self._track(group, dependency, name, answers)
                if isinstance(found, ErrorInfo):
                    return found
                if isinstance(found, Tracker):
                    tracker = found
                else:
                    doubtful += found
            trackers.append(tracker)
        if doubtful:
            self._n_asked += 1
            self._asked[self._n_asked] = blocked
            blocked.is_asked = True
            self._questions.append(FindEnded(self._n_asked, doubtful))
            return None
        blocked.after, blocked.follow = trackers
        if blocked.follow is not None:
            blocked.follow.is_followed = True
        for tracker in trackers:
            if tracker is not None:
                tracker.waiters[blocked] = None
        self._to_look_at.append(blocked)
        return None

    def remove(self, client: PeerId, first: int, end: int, due: float = math.inf) -> list[Run]:
        """Take out a client's blocked tasks ``first … end-1``, of those whose deadline is not later
        than `due`.
        """
        removed: list[Run] = []
        index = self._state.groups.get(client)
        if index is None or not self._state.n_blocked:
            return removed
        for group in index.overlapping(first, end):
            blocked = group.blocked
            if blocked is None:
                continue
            stay = [run for run in blocked.runs if run.deadline > due]
            inside, outside = split_runs(
                [run for run in blocked.runs if run.deadline <= due], first, end
            )
            blocked.runs = [*stay, *outside]
            self._state.n_blocked -= sum(map(len, inside))
            if not blocked.runs:
                group.blocked = None
            removed += inside
        return removed

    def resolve(self, now: float) -> list[Instruction]:
        """Release and end groups, until nothing that has been told is left to look at."""
        state = self._state
        questions, self._questions = self._questions, []
        failed, self._failed = self._failed, []
        all_endings = [item for blocked, error in failed for item in self._release(blocked, error)]
        state.note_endings(all_endings, State.QUEUED, now)
        while state.told or self._to_look_at:
            endings: list[tuple[Run, ErrorInfo]] = []
            while state.told:
                endings += self._look_at_tracker(state.told.pop())
            blocked, self._to_look_at = self._to_look_at, []
            for each in blocked:
                endings += self._look_at(each)
            state.note_endings(endings, State.QUEUED, now)
            all_endings += endings
        return [*deliver(all_endings), *questions]

    def _look_at_tracker(self, tracker: Tracker) -> list[tuple[Run, ErrorInfo]]:
        if tracker.is_decided:
            if self._trackers.get(tracker.key) is tracker:
                del self._trackers[tracker.key]
            self._to_look_at += tracker.waiters
            tracker.waiters = {}
        if not tracker.is_followed:
            return []
        state = self._state
        state.waiting.note_places(tracker)
        if tracker.n_left:
            return []
        # The last task that could have given an engine to those that follow has ended.
        lost = state.waiting.remove_where(
            lambda lane: lane.constraint.follow is tracker and lane.is_dormant
        )
        return [(run, no_engine_left(state, constraint, run.group)) for constraint, run in lost]

    def _look_at(self, blocked: Blocked) -> list[tuple[Run, ErrorInfo]]:
        """Let a group go if what it waits for is decided; return its tasks if they cannot run."""
        if not blocked.runs:
            return []
        group, constraint = blocked.group, blocked.constraint
        error: ErrorInfo | None = None
        after, follow = blocked.after, blocked.follow
        if after is not None and after.is_missed:
            error = impossible(after, "after", group)
        elif follow is not None and follow.is_placeless:
            error = impossible(follow, "follow", group)
        else:
            is_open = False
            if after is not None and not after.is_met:
                after.waiters[blocked] = None
                is_open = True
            if follow is not None and not (follow.is_met and follow.engines):
                follow.waiters[blocked] = None
                is_open = True
            if is_open:
                return []
            if follow is not None:
                constraint = _with_places(constraint, follow)
            error = self._objection(constraint, group)
        blocked.constraint = constraint
        return self._release(blocked, error)

    def _release(self, blocked: Blocked, error: ErrorInfo | None) -> list[tuple[Run, ErrorInfo]]:
        """Let a group wait for engines, or return it with its error."""
        runs, blocked.runs, blocked.group.blocked = blocked.runs, [], None
        self._state.n_blocked -= sum(map(len, runs))
        if error is not None:
            return [(run, error) for run in runs]
        for run in runs:
            self._state.waiting.push(run, blocked.constraint)
        return []

    def _objection(self, constraint: Constraint, group: TaskGroup) -> ErrorInfo | None:
        """Return why tasks that wait no longer for others cannot wait for an engine."""
        state = self._state
        if not state.engines and state.patience_until is None:
            return own_error("NoEnginesRegistered", method=group.options.method)
        if is_hopeless(state, constraint):
            return no_engine_left(state, constraint, group)
        return None

    # -- what it depends on -------------------------------------------------------------------

    def _track(
        self,
        group: TaskGroup,
        dependency: Dependency,
        name: str,
        answers: Sequence[EndedTask] | None,
    ) -> Tracker | ErrorInfo | list[TaskRange]:
        """Return what counts the ends of tasks; or why a group cannot wait for them, or of which
        of them the records have to be asked.
        """
        for piece in dependency.tasks:
            if piece.client == group.client and (
                piece.first < group.end and group.first < piece.first + piece.count
            ):
                return own_error("InvalidDependency", f"{name}: a task cannot wait for itself")
        known = self._trackers.get(key_of(dependency))
        if known is not None:
            return known
        found = find_tasks(self._state, dependency, answers)
        if found.unknown is not None:
            client, seq = found.unknown
            index = self._state.groups.get(client)
            was_known = index is not None and seq < index.next_seq
            return unknown_task(client, seq, was_known, name)
        if found.doubtful:
            return found.doubtful
        tracker = Tracker(dependency)
        for other, start, stop in found.live:
            if other.watches is None:
                other.watches = Watches()
            other.watches.add(start, stop, tracker)
            for part in runs_of(other, start, stop):
                _note(tracker, other.client, part)
        for client, part in found.ended:
            _note(tracker, client, part)
        if not tracker.is_decided:
            self._trackers[tracker.key] = tracker
        return tracker


def is_hopeless(state: SchedulerState, constraint: Constraint) -> bool:
    """Whether no engine may run tasks under a constraint, whatever engines are still to come."""
    if constraint.targets is None and (constraint.follow is None or constraint.follow.n_left):
        return False
    # Engines do not come to have more resources.
    return not state.is_usable(constraint)


def is_turned_down(state: SchedulerState, constraint: Constraint) -> bool:
    """Whether all engines that are there and could run tasks have turned them down."""
    return (
        any(engine in constraint.refused for engine in state.engines)
        and not state.is_usable(constraint)
        and state.is_usable(constraint._replace(refused=frozenset()))
    )


def _with_places(constraint: Constraint, follow: Tracker) -> Constraint:
    """Return a constraint that also says where the tasks of a dependency ran."""
    if follow.n_left and not follow.all:
        return constraint._replace(follow=follow)
    places = frozenset(follow.engines)
    if constraint.targets is not None:
        places &= constraint.targets
    return constraint._replace(targets=places)


def _note(tracker: Tracker, client: PeerId, part: EndedRun) -> None:
    first, end, state, engine = part
    tracker.note(client, first, bytes((state,)) * (end - first), EngineId(engine))


__all__ = ["Blocked", "Dependencies", "is_hopeless", "is_turned_down"]
