"""All that the scheduler knows, in one place, for the parts that decide.

What lives here: `SchedulerState`, with the few operations that several parts share. What must not:
decisions.
"""

from __future__ import annotations

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import ErrorInfo

from .ended import EndedTasks
from .endings import deliver
from .engine_queue import EngineQueue
from .functions import FunctionStore
from .group import GroupIndex, State, TaskGroup
from .instructions import DeliverResults
from .prefetch import Estimates
from .runs import Constraint, Run
from .story import StoryLog
from .timeouts import Timeouts
from .tracker import NOWHERE, Tracker
from .waiting import WaitingTasks


class SchedulerState:
    """Engines, groups, queues.

    Attributes:
        engines: live engines by id, those that are leaving included.
        open: engines that may have room for balanced tasks; a superset of those that have.
        stealable: engines that hold two tasks or more.
        direct: engines for which direct tasks wait.
        waiting: balanced tasks that wait for an engine.
        n_blocked: balanced tasks that wait for other tasks.
        groups: of each client the groups that have not ended.
        ended: how tasks of groups that have ended did.
        timeouts: until when tasks may wait.
        told: trackers that have been told of ends and have not been looked at since.
        has_news: there is something in `told` or `timeouts` to be looked at after the event.
        patience_until: engines were lost, and until then others may come in their place; None
            otherwise.
        last_loss: which engine died last, and why.
        hwm: tasks that an engine may hold at most; 0 for no such bound.
    """

    __slots__ = (
        "direct",
        "ended",
        "engines",
        "estimates",
        "functions",
        "groups",
        "has_news",
        "hwm",
        "last_loss",
        "n_blocked",
        "open",
        "patience_until",
        "stealable",
        "story",
        "timeouts",
        "told",
        "waiting",
    )

    def __init__(self, hwm: int = 0) -> None:
        self.engines: dict[EngineId, EngineQueue] = {}
        self.open: set[EngineQueue] = set()
        self.stealable: set[EngineQueue] = set()
        self.direct: set[EngineQueue] = set()
        self.waiting = WaitingTasks(self.is_usable)
        self.n_blocked = 0
        self.groups: dict[PeerId, GroupIndex] = {}
        self.ended = EndedTasks()
        self.timeouts = Timeouts()
        self.told: list[Tracker] = []
        self.has_news = False
        self.functions = FunctionStore()
        self.estimates = Estimates()
        self.story = StoryLog()
        self.patience_until: float | None = None
        self.last_loss = ""
        self.hwm = hwm

    # -- engines ------------------------------------------------------------------------------

    def live_ids(self) -> frozenset[EngineId]:
        """Return the ids of the engines that can get tasks."""
        return frozenset(e.engine_id for e in self.engines.values() if not e.is_leaving)

    def is_usable(self, constraint: Constraint) -> bool:
        """Whether an engine is there that a constraint admits."""
        engines = self.engines
        if constraint.targets is not None and len(constraint.targets) < len(engines):
            targets = [engines[target] for target in constraint.targets if target in engines]
            return any(not each.is_leaving and constraint.admits(each) for each in targets)
        return any(not each.is_leaving and constraint.admits(each) for each in engines.values())

    def may_run(self, constraint: Constraint, engine: EngineQueue) -> bool:
        """Whether tasks under a constraint may be placed at an engine now."""
        if not constraint.admits(engine):
            return False
        if engine.engine_id not in constraint.avoid:
            return True
        return not any(
            other.engine_id not in constraint.avoid
            and not other.is_leaving
            and constraint.admits(other)
            for other in self.engines.values()
        )

    def note_engine(self, engine: EngineQueue) -> None:
        """Keep `open` and `stealable` right after an engine's tasks became fewer."""
        if not engine.is_leaving and not engine.is_away:
            self.open.add(engine)
        if engine.n_tasks < 2:
            self.stealable.discard(engine)

    # -- tasks --------------------------------------------------------------------------------

    @property
    def n_unplaced(self) -> int:
        """Balanced tasks that are at no engine."""
        return self.waiting.n_tasks + self.n_blocked

    def unplaced_runs(self) -> list[Run]:
        """Return the balanced tasks that are at no engine; O(groups)."""
        runs = [run for lane in self.waiting.all_lanes() for run in lane.runs()]
        if self.n_blocked:
            for index in self.groups.values():
                for group in index.live():
                    if group.blocked is not None:
                        runs += group.blocked.runs
        return runs

    def is_live(self, client: PeerId, seq: int) -> bool:
        """Whether a task has been submitted and has not ended."""
        index = self.groups.get(client)
        found = index.overlapping(seq, seq + 1) if index is not None else []
        return any(group.states[seq - group.first] <= State.PLACED for group in found)

    def set_deadline(self, run: Run, now: float, left_s: float | None = None) -> None:
        """Let a run's time of waiting begin now, or end in `left_s` seconds."""
        timeout_s = run.group.options.timeout_s
        if timeout_s:
            run.deadline = now + (timeout_s if left_s is None else left_s)
            self.timeouts.add(run)
            self.has_news = True

    def wait_again(self, run: Run, constraint: Constraint, now: float) -> None:
        """Put tasks that were placed back among the waiting ones; their time begins anew."""
        run.group.move(run.start, run.stop, State.PLACED, State.QUEUED)
        self.set_deadline(run, now)
        self.waiting.push(run, constraint)

    def note_ended(
        self, group: TaskGroup, start: int, stop: int, engine: EngineId = NOWHERE
    ) -> None:
        """Tell whoever waits for tasks that have ended just now; let go of what the group held if
        these were its last.

        Args:
            group: the group.
            start, stop: which of its tasks.
            engine: where they ended; `NOWHERE` for those that ended without an engine's word.
        """
        is_whole = stop - start == group.count
        if not is_whole and engine != NOWHERE:
            group.note_place(start, stop, engine)
        if group.watches is not None:
            told = group.watches.tell(group.client, group.first, group.states, start, stop, engine)
            self.told += told
            self.has_news = self.has_news or bool(told)
        if group.remaining:
            return
        if group.function is not None:
            self.functions.release(group.function)
        self.ended.note(group, engine if is_whole else None)
        self.groups[group.client].note_done()

    def note_endings(self, endings: list[tuple[Run, ErrorInfo]], source: State, now: float) -> None:
        """End tasks with errors of our own; whoever calls has them delivered (`endings.deliver`).

        Args:
            endings: runs, all of whose tasks are in state `source`, and the error of each run.
            source: `QUEUED` or `PLACED`.
            now: for the story.
        """
        for run, error in endings:
            group = run.group
            target = State.ABORTED if error.ename == "TaskAborted" else State.FAILED
            group.move(run.start, run.stop, source, target)
            self.story.note(now, group.client, run.first_seq, len(run), f"ended: {error.ename}")
            self.note_ended(group, run.start, run.stop)

    def end(
        self, endings: list[tuple[Run, ErrorInfo]], source: State, now: float
    ) -> list[DeliverResults]:
        """End tasks as `note_endings` does and return what tells their clients."""
        self.note_endings(endings, source, now)
        return deliver(endings)
