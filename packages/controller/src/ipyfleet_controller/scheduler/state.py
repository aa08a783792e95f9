"""All that the scheduler knows, in one place, for the parts that decide.

What lives here: `SchedulerState`, with the few operations that several parts share. What must not:
decisions.
"""

from __future__ import annotations

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import ErrorInfo

from .endings import results_of_controller
from .engine_queue import EngineQueue
from .functions import FunctionStore
from .group import GroupIndex, State, TaskGroup
from .instructions import DeliverResults
from .prefetch import Estimates
from .story import StoryLog
from .waiting import Constraint, Run, WaitingTasks


class SchedulerState:
    """Engines, groups, queues.

    Attributes:
        engines: live engines by id, those that are leaving included.
        open: engines that may have room for balanced tasks; a superset of those that have.
        stealable: engines that hold two tasks or more.
        direct: engines for which direct tasks wait.
        waiting: balanced tasks that wait.
        groups: of each client the groups that have not ended.
        hwm: tasks that an engine may hold at most; 0 for no such bound.
    """

    __slots__ = (
        "direct",
        "engines",
        "estimates",
        "functions",
        "groups",
        "hwm",
        "open",
        "stealable",
        "story",
        "waiting",
    )

    def __init__(self, hwm: int = 0) -> None:
        self.engines: dict[EngineId, EngineQueue] = {}
        self.open: set[EngineQueue] = set()
        self.stealable: set[EngineQueue] = set()
        self.direct: set[EngineQueue] = set()
        self.waiting = WaitingTasks()
        self.groups: dict[PeerId, GroupIndex] = {}
        self.functions = FunctionStore()
        self.estimates = Estimates()
        self.story = StoryLog()
        self.hwm = hwm

    def live_ids(self) -> frozenset[EngineId]:
        """Return the ids of the engines that can get tasks."""
        return frozenset(e.engine_id for e in self.engines.values() if not e.is_leaving)

    def is_live(self, client: PeerId, seq: int) -> bool:
        """Whether a task has been submitted and has not ended."""
        index = self.groups.get(client)
        found = index.overlapping(seq, seq + 1) if index is not None else []
        return any(group.states[seq - group.first] <= State.PLACED for group in found)

    def may_run(self, constraint: Constraint, engine: EngineQueue) -> bool:
        """Whether tasks under a constraint may be placed at an engine now."""
        if not constraint.admits(engine.engine_id):
            return False
        if engine.engine_id not in constraint.avoid:
            return True
        return not any(
            constraint.admits(other.engine_id) and other.engine_id not in constraint.avoid
            for other in self.engines.values()
            if not other.is_leaving
        )

    def wait_again(self, run: Run, constraint: Constraint) -> None:
        """Put tasks that were placed back among the waiting ones."""
        run.group.move(run.start, run.stop, State.PLACED, State.QUEUED)
        self.waiting.push(run, constraint)

    def note_engine(self, engine: EngineQueue) -> None:
        """Keep `open` and `stealable` right after an engine's tasks became fewer."""
        if not engine.is_leaving and not engine.is_away:
            self.open.add(engine)
        if engine.n_tasks < 2:
            self.stealable.discard(engine)

    def note_ended(self, group: TaskGroup) -> None:
        """Let go of what a group held if its last task has ended."""
        if group.remaining:
            return
        if group.function is not None:
            self.functions.release(group.function)
        self.groups[group.client].note_done()

    def end(
        self, endings: list[tuple[Run, ErrorInfo]], source: State, now: float
    ) -> list[DeliverResults]:
        """End tasks with errors of our own; one message per client.

        Args:
            endings: runs, all of whose tasks are in state `source`, and the error of each run.
            source: `QUEUED` or `PLACED`.
            now: for the story.
        """
        by_client: dict[PeerId, list[tuple[Run, ErrorInfo]]] = {}
        for run, error in endings:
            group = run.group
            target = State.ABORTED if error.ename == "TaskAborted" else State.FAILED
            group.move(run.start, run.stop, source, target)
            self.story.note(now, group.client, run.first_seq, len(run), f"ended: {error.ename}")
            self.note_ended(group)
            by_client.setdefault(group.client, []).append((run, error))
        out = []
        for client, items in by_client.items():
            message, frames = results_of_controller(client, items)
            out.append(DeliverResults(message, frames))
        return out
