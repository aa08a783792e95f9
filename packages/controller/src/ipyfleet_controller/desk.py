"""The desk: writes down what happens, in batches, and answers questions about it.

What lives here: `Desk`. The router tells it of groups and results on the hot path, where that
costs an append; `flush` writes them when the router has had nothing to do for a while. What must
not: sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TypeAlias

import msgspec

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import EngineId

from .database.base import GroupEntry, ResultsEntry, TaskDatabase
from .database.query import QueryError
from .hub.peers import Registry
from .scheduler.endings import own_error
from .scheduler.engine_queue import EngineQueue
from .scheduler.group import TaskGroup
from .scheduler.state import SchedulerState

FLUSH_ENTRIES = 256
"""Entries that are written even though messages wait; few, since the messages wait so long."""


_NotedGroup: TypeAlias = tuple[TaskGroup, float]
_NotedResults: TypeAlias = tuple[m.Results, list[SliceFrames], bytes, float]


class Desk:
    """Records and answers."""

    def __init__(self, database: TaskDatabase, registry: Registry, state: SchedulerState) -> None:
        """Take what questions are answered from."""
        self._database = database
        self._registry = registry
        self._state = state
        self._noted: list[_NotedGroup | _NotedResults] = []

    @property
    def is_waiting(self) -> bool:
        """Whether something was noted and not written."""
        return bool(self._noted)

    @property
    def is_full(self) -> bool:
        """Whether so much was noted that it should be written now."""
        return len(self._noted) >= FLUSH_ENTRIES

    def note_group(self, group: TaskGroup, submitted: float) -> None:
        """Note that a group was submitted at a time (seconds since the epoch)."""
        self._noted.append((group, submitted))

    def note_results(self, message: m.Results, parts: list[SliceFrames], received: float) -> None:
        """Note results that were delivered at a time, with the frames of each slice."""
        engine = self._registry.engines.get(EngineId(message.engine))
        self._noted.append((message, parts, engine.peer if engine else b"", received))

    def flush(self) -> None:
        """Write down what was noted."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        entries: list[GroupEntry | ResultsEntry] = []
        for item in noted:
            if len(item) == 2:
                entries.append(_group_entry(*item))
            else:
                entries += _results_entries(*item)
        self._database.write(entries)

    def answer(self, request: int, question: m.Question) -> tuple[m.Reply, list[Frame]]:
        """Return the reply to a question, and its frames."""
        self.flush()
        try:
            content, frames = self._ANSWERS[type(question)](self, question)
        except QueryError as error:
            return m.Reply(request, error=_refusal("ValueError", error)), []
        except (KeyError, IndexError) as error:
            return m.Reply(request, error=_refusal(type(error).__name__, error)), []
        return m.Reply(request, msgspec.msgpack.encode(content)), frames

    def _queue_status(self, question: m.QueueStatus) -> tuple[Any, list[Frame]]:
        engines = self._state.engines
        ids = sorted(engines) if question.targets is None else question.targets
        status: dict[Any, Any] = {}
        for target in ids:
            engine = engines.get(EngineId(target))
            if engine is None:
                raise IndexError(f"there is no engine {target}")
            status[target] = self._verbose(engine) if question.verbose else _counts(engine)
        waiting = self._state.waiting
        if question.verbose:
            status["unassigned"] = [
                msg_id
                for lane in waiting.all_lanes()
                for run in lane.runs()
                for msg_id in _msg_ids(run.group, run.start, run.stop)
            ]
        else:
            status["unassigned"] = waiting.n_tasks
        return status, []

    def _verbose(self, engine: EngineQueue) -> dict[str, list[str]]:
        done = self._database.find({"engine_id": engine.engine_id}, ["msg_id"])
        direct: list[str] = []
        balanced: list[str] = []
        for piece in engine.slices:
            ids = _msg_ids(piece.group, piece.start, piece.start + piece.n_tasks)
            (direct if piece.constraint is None else balanced).extend(ids)
        for run in engine.direct:
            direct += _msg_ids(run.group, run.start, run.stop)
        return {
            "queue": direct,
            "completed": [record["msg_id"] for record in done],
            "tasks": balanced,
        }

    def _fetch_results(self, question: m.FetchResults) -> tuple[Any, list[Frame]]:
        records: dict[str, Any] = {}
        frames: list[Frame] = []
        for msg_id in question.msg_ids:
            record = self._database.get(msg_id)
            records[msg_id] = record
            if record is None or question.status_only:
                continue
            result = self._database.result(msg_id)
            record["frames"] = len(result.frames) if result else 0
            record["blobs"] = b""
            frames += result.frames if result else []
        return records, frames

    def _task_history(self, question: m.TaskHistory) -> tuple[Any, list[Frame]]:
        return self._database.history(), []

    def _find_records(self, question: m.FindRecords) -> tuple[Any, list[Frame]]:
        try:
            query = msgspec.msgpack.decode(question.query)
        except msgspec.MsgspecError as error:
            raise QueryError(f"a query that cannot be read: {error}") from None
        return self._database.find(query, question.keys), []

    def _purge_records(self, question: m.PurgeRecords) -> tuple[Any, list[Frame]]:
        for target in question.engine_ids or ():
            if EngineId(target) not in self._state.engines:
                raise IndexError(f"there is no engine {target}")
        return self._database.purge(question.msg_ids, question.engine_ids), []

    def _not_here(self, question: m.ShutdownCluster) -> NoReturn:
        raise AssertionError("the hub answers this one")

    _ANSWERS: ClassVar[dict[type, Callable[[Any, Any], tuple[Any, list[Frame]]]]] = {
        m.QueueStatus: _queue_status,
        m.FetchResults: _fetch_results,
        m.TaskHistory: _task_history,
        m.FindRecords: _find_records,
        m.PurgeRecords: _purge_records,
        m.ShutdownCluster: _not_here,
    }


def _group_entry(group: TaskGroup, submitted: float) -> GroupEntry:
    options, function = group.options, group.function
    return GroupEntry(
        group.client,
        group.first,
        group.count,
        options.label,
        options.method,
        options.placement,
        function.name if function else "",
        submitted,
    )


def _results_entries(
    message: m.Results, parts: list[SliceFrames], engine: bytes, received: float
) -> list[ResultsEntry]:
    uuid = engine.hex()
    return [
        ResultsEntry(
            message.client,
            piece.first,
            piece.count,
            message.engine,
            uuid,
            piece.status,
            piece.started,
            piece.completed,
            received,
            piece.columns,
            part.payload,
        )
        for piece, part in zip(message.slices, parts, strict=True)
    ]


def _counts(engine: EngineQueue) -> dict[str, int]:
    n_direct = sum(piece.n_tasks for piece in engine.slices if piece.constraint is None)
    return {
        "queue": n_direct + engine.n_direct,
        "completed": engine.n_completed,
        "tasks": engine.n_tasks - n_direct,
    }


def _msg_ids(group: TaskGroup, start: int, stop: int) -> list[str]:
    prefix = f"{group.client.hex()}_"
    return [f"{prefix}{group.seq(index)}" for index in range(start, stop)]


def _refusal(ename: str, error: Exception) -> m.ErrorInfo:
    text = str(error.args[0]) if error.args else str(error)
    return own_error(ename, text)
