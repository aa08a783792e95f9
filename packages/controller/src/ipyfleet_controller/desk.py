"""The desk: writes down what happens, in batches, and answers questions about it.

What lives here: `Desk`. The router tells it of groups and results on the hot path, where that
costs an append; `flush` hands them to the database's thread when the router has had nothing to do
for a while. What must not: sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeAlias

import msgspec

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import Frame, Payloads
from ipyfleet_protocol.ids import NO_PEER, EngineId, PeerId, format_msg_id, parse_msg_id

from .database.answers import ended_tasks, pack, read_results
from .database.base import (
    Entry,
    GroupEntry,
    Limits,
    NoData,
    NotKept,
    ResultsEntry,
    TaskDatabase,
)
from .database.conditions import pack_conditions
from .database.detached import DetachedGroup, PayloadGone, detach_groups, load_detached
from .database.keeper import RecordKeeper
from .database.output import OutputEntry, output_entry, resubmission_entry
from .database.payloads import bound, hold
from .database.query import QueryError
from .hub.peers import Registry
from .metrics import Rate, snapshot
from .requests import RequestStore
from .scheduler.endings import own_error
from .scheduler.engine_queue import EngineQueue
from .scheduler.group import TaskGroup
from .scheduler.instructions import EndedTask
from .scheduler.state import SchedulerState
from .telling import Explanation

FLUSH_ENTRIES = 256
"""Entries that are handed over even though messages wait."""

FLUSH_BYTES = 1 << 20
"""The same for bytes of results."""

MAX_OPEN = 1024
"""Questions of one client that may be unanswered."""

ANSWER_MAX_BYTES = 1 << 31
"""Longer ones are refused; beyond twice as much there is no message that could hold them."""

NOTE_BYTES = 500
"""What a note takes besides its frames."""


_NotedGroup: TypeAlias = tuple[TaskGroup, float]
_Payload: TypeAlias = tuple[m.Columns, Sequence[Frame]]
_NotedResults: TypeAlias = tuple[m.Results, list[_Payload], bytes, float]
_NotedOutput: TypeAlias = tuple[m.Output, Sequence[Frame], float]
_Light: TypeAlias = GroupEntry | OutputEntry | _NotedResults | _NotedOutput
_Noted: TypeAlias = _NotedGroup | _Light
_Answer: TypeAlias = tuple[Any, list[Frame]]
_Packed: TypeAlias = tuple[bytes, list[Frame]]
_Work: TypeAlias = Callable[[TaskDatabase], _Answer]


class Desk:
    """Records and answers.

    Attributes:
        noted: what was noted and not written.
        rate: of tasks that end.
        measure: gives the router's part of the metrics.
    """

    def __init__(self, keeper: RecordKeeper, registry: Registry, state: SchedulerState) -> None:
        """Take what questions are answered from."""
        self._keeper = keeper
        self.blob_dir: Path | None = None
        self.result_max_bytes = Limits().result_bytes
        self._registry = registry
        self._state = state
        self.requests = RequestStore(state.functions.body)
        self.noted: list[_Noted] = []
        self._noted_bytes = 0
        self.rate = Rate()
        self._open: dict[PeerId, int] = {}
        self.measure: Callable[[], dict[str, Any]] = dict

    @property
    def is_full(self) -> bool:
        """Whether so much was noted that it should be written now."""
        return len(self.noted) >= FLUSH_ENTRIES or self._noted_bytes >= FLUSH_BYTES

    def note_group(self, group: TaskGroup, submitted: float) -> None:
        """Note that a group was submitted at a time (seconds since the epoch)."""
        if group.function is None or group.options.resubmits is not None:
            self._note_special(group, submitted)
        else:
            self.noted.append((group, submitted))
        self.requests.note(group)

    def _note_special(self, group: TaskGroup, submitted: float) -> None:
        """Note a group of which more is recorded than of others."""
        code = None
        if group.function is None and group.frames:
            code = bytes(Payloads(group.columns, group.frames).pickle(0))
            self._noted_bytes += len(code)
        self.noted.append(_group_entry(group, submitted, code))
        old = group.options.resubmits
        if old is not None:
            again = format_msg_id(group.client, group.first)
            self.noted.append(resubmission_entry(old, again, submitted))

    def note_results(self, message: m.Results, parts: list[SliceFrames], received: float) -> None:
        """Note results that were delivered at a time, with the frames of each slice."""
        engine = self._registry.engines.get(EngineId(message.engine))
        payloads: list[_Payload] = []
        for piece, part in zip(message.slices, parts, strict=True):
            columns, frames = piece.columns, part.payload
            if columns.blobs:
                columns, frames = hold(columns, frames, self.blob_dir, self.result_max_bytes)
            payloads.append((columns, frames))
            for frame in frames:
                self._noted_bytes += len(frame)
            self.rate.note(received, piece.count)
        self.noted.append((message, payloads, engine.peer if engine else b"", received))

    def note_output(self, message: m.Output, frames: Sequence[Frame], received: float) -> None:
        """Note output that an engine sent at a time."""
        for item in message.items:
            self._noted_bytes += len(item.content)
        for frame in frames:
            self._noted_bytes += len(frame)
        self.noted.append((message, frames, received))

    def flush(self) -> None:
        """Hand over what was noted to be written."""
        if not self.noted:
            return
        noted, self.noted = self.noted, []
        n_bytes, self._noted_bytes = self._noted_bytes + NOTE_BYTES * len(noted), 0
        # A group is not kept for its record's sake: it has the tasks' payloads.
        light: list[_Light] = [
            _group_entry(item[0], item[1]) if isinstance(item, tuple) and len(item) == 2 else item
            for item in noted
        ]
        self._keeper.put(partial(_entries, light, self.result_max_bytes), n_bytes)

    def find_detached(self, reply: Callable[[list[DetachedGroup] | Exception], None]) -> None:
        """Have something called with what is recorded of work that goes on without its client."""
        self._keeper.ask(load_detached, reply)

    def when_recorded(self, call: Callable[[], None]) -> None:
        """Have something called when all that was noted is written, or cannot be."""
        self.flush()
        self._keeper.ask(lambda database: None, lambda found: call())

    def find_ended(
        self, tasks: Sequence[m.TaskRange], take: Callable[[list[EndedTask]], None]
    ) -> None:
        """Have `take` called with what the records know of tasks that have ended."""
        self.flush()

        def reply(found: list[EndedTask] | Exception) -> None:
            take([] if isinstance(found, Exception) else found)

        engines = {peer.peer.hex(): number for number, peer in self._registry.engines.items()}
        self._keeper.ask(partial(ended_tasks, tasks=tasks, engines=engines), reply)

    def has_room_for(self, client: PeerId) -> bool:
        """Whether a client may ask one more question before it has the answers to others."""
        return self._open.get(client, 0) < MAX_OPEN

    def answer(
        self,
        request: int,
        question: m.Question,
        send: Callable[[m.Reply, Sequence[Frame]], None],
        client: PeerId = NO_PEER,
    ) -> None:
        """Answer a question, now or when the database has; `send` takes the reply and its frames.

        A `DetachClient` is about `client`, who asked.

        Whoever runs the loop calls `RecordKeeper.deliver`.
        """
        self._open[client] = self._open.get(client, 0) + 1

        def reply(found: _Packed | Exception) -> None:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
            if isinstance(found, Exception):
                send(m.Reply(request, error=_refusal(found)), [])
            else:
                content, frames = found
                send(m.Reply(request, content), frames)

        def work(database: TaskDatabase) -> _Packed:
            assert callable(found)
            content, frames = found(database)
            packed = pack(content)
            if len(packed) > ANSWER_MAX_BYTES:
                raise QueryError(f"an answer of {len(packed)} bytes is too long; ask for less")
            return packed, frames

        is_barrier = isinstance(question, m.DetachClient)
        found: _Answer | _Work
        try:
            if is_barrier:
                found = self._detach(client)
            else:
                found = self._ANSWERS[type(question)](self, question)
        except (QueryError, KeyError, IndexError, PayloadGone) as error:
            reply(error)
            return
        if callable(found):
            self.flush()
            self._keeper.ask(work, reply, is_barrier=is_barrier)
        else:
            reply((pack(found[0]), found[1]))

    def _queue_status(self, question: m.QueueStatus) -> _Answer | _Work:
        engines = self._state.engines
        ids = sorted(engines) if question.targets is None else question.targets
        status: dict[Any, Any] = {}
        for target in ids:
            engine = engines.get(EngineId(target))
            if engine is None:
                raise IndexError(f"there is no engine {target}")
            status[target] = _verbose(engine) if question.verbose else _counts(engine)
        if question.verbose:
            status["unassigned"] = [
                msg_id
                for run in self._state.unplaced_runs()
                for msg_id in _msg_ids(run.group, run.start, run.stop)
            ]
        else:
            status["unassigned"] = self._state.n_unplaced
        if not self._keeper.is_well:
            status["database"] = self._keeper.status()
        return partial(_add_completed, status, ids) if question.verbose else (status, [])

    def _fetch_results(self, question: m.FetchResults) -> _Work:
        return partial(read_results, msg_ids=question.msg_ids, status_only=question.status_only)

    def _fetch_requests(self, question: m.FetchRequests) -> tuple[Any, list[Frame]]:
        answer: dict[str, Any] = {}
        frames: list[Frame] = []
        sent: set[bytes] = set()
        for msg_id in question.msg_ids:
            try:
                request = self.requests.find(*parse_msg_id(msg_id))
            except ValueError:
                request = None
            if request is None:
                answer[msg_id] = None
                continue
            function = request.function
            body = request.body if function is not None and function.digest not in sent else ()
            if function is not None:
                sent.add(function.digest)
            answer[msg_id] = {
                "options": request.options,
                "function": function,
                "target": request.target,
                "frames": len(body),
                "payload": len(request.frames),
            }
            frames += [*body, *request.frames]
        return answer, frames

    def _task_history(self, question: m.TaskHistory) -> _Work:
        return lambda database: (database.history(), [])

    def _find_records(self, question: m.FindRecords) -> _Work:
        try:
            query = msgspec.msgpack.decode(question.query)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise QueryError(f"a query that cannot be read: {error}") from None
        return lambda database: (database.find(query, question.keys), [])

    def _purge_records(self, question: m.PurgeRecords) -> _Work:
        for target in question.engine_ids or ():
            if EngineId(target) not in self._state.engines:
                raise IndexError(f"there is no engine {target}")
        return lambda database: (database.purge(question.msg_ids, question.engine_ids), [])

    def _explain_tasks(self, question: m.ExplainTasks) -> _Answer | _Work:
        explanation = Explanation(self._state, question.msg_ids, time.monotonic())
        if explanation.is_complete:
            return explanation.sentences, []
        return partial(explanation.complete, now=time.time())

    def _metrics(self, question: m.Metrics) -> _Answer:
        content = snapshot(
            self._registry, self._state, self._keeper, self.rate, time.time(), time.monotonic()
        )
        content["bytes"]["requests_kept"] = self.requests.n_bytes
        content["bytes"]["noted"] = self._noted_bytes
        for name, part in self.measure().items():
            content.setdefault(name, {}).update(part)
        return content, []

    def _detach(self, client: PeerId) -> _Work:
        now = time.time()
        groups = detach_groups(self._state, client, self.blob_dir, now)
        index = self._state.groups.get(client)
        entries = [_group_entry(group, now) for group in (index.live() if index else ())]

        def keep(database: TaskDatabase) -> _Answer:
            database.write(entries)  # nothing new, unless records were missed
            database.keep_detached(groups)
            return sum(group.n_live for group in groups), []

        return keep

    def _not_here(self, question: m.ShutdownCluster | m.OnEngineStart | m.AwaitResults) -> NoReturn:
        raise AssertionError("the hub or the router answers this one")

    _ANSWERS: ClassVar[dict[type, Callable[[Any, Any], _Answer | _Work]]] = {
        m.QueueStatus: _queue_status,
        m.FetchResults: _fetch_results,
        m.AwaitResults: _not_here,
        m.FetchRequests: _fetch_requests,
        m.TaskHistory: _task_history,
        m.FindRecords: _find_records,
        m.PurgeRecords: _purge_records,
        m.ExplainTasks: _explain_tasks,
        m.Metrics: _metrics,
        m.ShutdownCluster: _not_here,
        m.OnEngineStart: _not_here,
    }


def _group_entry(group: TaskGroup, submitted: float, code: bytes | None = None) -> GroupEntry:
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
        pack_conditions(options, code),
    )


def _entries(noted: list[_Light], max_bytes: int) -> list[Entry]:
    """Return what was noted as entries; called by the database's thread."""
    entries: list[Entry] = []
    for item in noted:
        if isinstance(item, GroupEntry | OutputEntry):
            entries.append(item)
            continue
        if len(item) == 3:
            entries.append(output_entry(item[0], item[1]))
            continue
        message, payloads, engine, received = item
        uuid = engine.hex()
        for piece, payload in zip(message.slices, payloads, strict=True):
            entries.append(
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
                    *bound(*payload, max_bytes),
                )
            )
    return entries


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


def _verbose(engine: EngineQueue) -> dict[str, list[str]]:
    direct: list[str] = []
    balanced: list[str] = []
    for piece in engine.slices:
        ids = _msg_ids(piece.group, piece.start, piece.start + piece.n_tasks)
        (direct if piece.constraint is None else balanced).extend(ids)
    for run in engine.direct:
        direct += _msg_ids(run.group, run.start, run.stop)
    return {"queue": direct, "completed": [], "tasks": balanced}


def _add_completed(
    status: dict[Any, Any], engine_ids: Sequence[int], database: TaskDatabase
) -> _Answer:
    with suppress(NoData):
        done = database.find({"engine_id": {"$in": list(engine_ids)}}, ["msg_id", "engine_id"])
        for record in done:
            status[record["engine_id"]]["completed"].append(record["msg_id"])
    return status, []


def _refusal(error: Exception) -> m.ErrorInfo:
    text = str(error.args[0]) if error.args else str(error)
    if isinstance(error, QueryError):
        return own_error("ValueError", text)
    if isinstance(error, NotKept | PayloadGone):
        return own_error("KernelError", text)
    for kind in (KeyError, IndexError):
        if isinstance(error, kind):
            return own_error(kind.__name__, text)
    return own_error("KernelError", f"the database does not answer: {text}")
