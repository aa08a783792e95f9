"""A recorded group: its tasks' fates as columns, and records made of them when somebody asks.

What lives here: `RecordedGroup` and `Chunk`, which all backends share; what differs between them
is only where chunks are kept. What must not: storage, bounds.

A group is one entry and any number of chunks, each for a run of its tasks as one message brought
their results. A task that no chunk covers is pending. Per task there are about 21 bytes and the
payload, no object.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ipyfleet_protocol.codec import decode_part
from ipyfleet_protocol.columns import Frame, Payloads, read_float64
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import OK, Columns, ErrorInfo

from .base import FIELDS, STATUS_NAMES, GroupEntry, Record, ResultsEntry, StoredResult, loss_of
from .conditions import condition_fields
from .output import RESUBMITTED, OutputRecord, by_task, resubmission_of, text_of, value_of
from .query import check_keys, check_query, matches

PENDING, PURGED = 255, 254
"""Statuses of tasks that have not ended, and of those whose record was dropped."""

COLUMN_BYTES = 21
"""What a task takes in the columns of a chunk."""

GROUP_FIELDS = frozenset(
    {
        "after",
        "client_uuid",
        "execute_input",
        "follow",
        "label",
        "method",
        "name",
        "priority",
        "queue",
        "resources",
        "retries",
        "submitted",
        "timeout",
    },
)
"""Fields that all tasks of a group share."""


OUTPUT_FIELDS = frozenset({"execute_result", "resubmitted", "stderr", "stdout"})
"""Fields that are made of the output, which is read for them only."""


class Chunk(msgspec.Struct):
    """How tasks ``start … start+count-1`` of a group ended.

    Attributes:
        status: as in `messages.ResultSlice`, or `PURGED`.
        frames: packed frame, then buffers; or a function that gets them from where they are.
        loss: one of `LOSSES` if no payload was kept, and then there are no frames.
    """

    start: int
    count: int
    engine_id: int
    engine_uuid: str
    received: float
    status: bytearray
    started: bytes
    completed: bytes
    columns: Columns
    frames: Sequence[Frame] | Callable[[], Sequence[Frame]]
    loss: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes that the chunk takes, if its frames are here."""
        frames = () if callable(self.frames) else self.frames
        return sum(map(len, frames)) + COLUMN_BYTES * self.count

    @property
    def n_kept(self) -> int:
        """Number of records that were not dropped."""
        return self.count - self.status.count(PURGED)

    def payloads(self) -> Payloads:
        """Return the payloads; the chunk has some."""
        return Payloads(self.columns, self.frames() if callable(self.frames) else self.frames)

    def purge(self, index: int) -> bool:
        """Drop the record of a task (its index in the group); True unless it was dropped before.

        The payloads go with the chunk's last record.
        """
        at = index - self.start
        if self.status[at] == PURGED:
            return False
        self.status[at] = PURGED
        if self.n_kept == 0:
            self.columns, self.frames, self.loss = Columns(b""), (), "purged"
        return True


def cut(entry: ResultsEntry, group: GroupEntry, start: int, stop: int) -> Chunk:
    """Return the chunk for tasks ``start … stop-1`` of a group, whose results an entry brings."""
    begin = group.first + start - entry.first
    end = begin + stop - start
    columns, frames = entry.columns, entry.frames
    if (begin or end < entry.count) and not entry.loss:
        columns, frames = Payloads(columns, frames).part(begin, end)
    return Chunk(
        start,
        stop - start,
        entry.engine_id,
        entry.engine_uuid,
        entry.received,
        bytearray(entry.status[begin:end]),
        entry.started[8 * begin : 8 * end],
        entry.completed[8 * begin : 8 * end],
        columns,
        frames,
        entry.loss,
    )


class RecordedGroup:
    """The tasks of one entry.

    Attributes:
        chunks: ascending, no two with the same task.
        read_outputs: gets the output of all tasks from where it is; None for "there is none".
    """

    __slots__ = ("_fields", "_outputs", "chunks", "entry", "read_outputs")

    def __init__(self, entry: GroupEntry, chunks: list[Chunk] | None = None) -> None:
        self.entry = entry
        self._fields: dict[str, Any] | None = None
        self.read_outputs: Callable[[], Iterable[OutputRecord]] | None = None
        self._outputs: dict[int, list[OutputRecord]] | None = None
        self.chunks = [] if chunks is None else chunks

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk of tasks that were pending."""
        self.chunks.insert(bisect_right(self.chunks, chunk.start, key=_start), chunk)

    def chunk_of(self, index: int) -> Chunk | None:
        """Return the chunk that tells of a task, or None while it is pending."""
        position = bisect_right(self.chunks, index, key=_start)
        if not position:
            return None
        chunk = self.chunks[position - 1]
        return chunk if index < chunk.start + chunk.count else None

    def status(self, index: int) -> int:
        """Return the status of a task: `PENDING`, `PURGED`, or what the engine said."""
        chunk = self.chunk_of(index)
        return PENDING if chunk is None else chunk.status[index - chunk.start]

    def result(self, index: int) -> StoredResult | None:
        """Return the payload of a task, or None if it is not there or not whole."""
        chunk = self.chunk_of(index)
        if chunk is None or chunk.loss or chunk.status[index - chunk.start] == PURGED:
            return None
        at = index - chunk.start
        payloads = chunk.payloads()
        if loss_of(payloads.buffer_blobs(at)):
            return None
        return StoredResult([payloads.pickle(at), *payloads.buffer_frames(at)])

    def outputs(self, index: int) -> list[OutputRecord]:
        """Return the output of a task."""
        return [item for item in self._items(index) if item.kind != RESUBMITTED]

    def _items(self, index: int) -> list[OutputRecord]:
        if self.read_outputs is None:
            return []
        if self._outputs is None:
            self._outputs = by_task(self.read_outputs())
        return self._outputs.get(self.entry.first + index, [])

    def forget_outputs(self) -> None:
        """Read the output again when it is wanted: there is more."""
        self._outputs = None

    def records(self, *, with_error: bool = True, with_output: bool = True) -> Iterator[Record]:
        """Yield the records of all tasks that were not purged, in order."""
        for record in self._records(with_error):
            if with_output:
                self._add_output(record)
            yield record

    def _add_output(self, record: Record) -> None:
        outputs = self._items(record["seq"] - self.entry.first)
        if outputs:
            record["resubmitted"] = resubmission_of(outputs)
            record["execute_result"] = value_of(outputs)
            record["stdout"], record["stderr"] = (
                text_of(outputs, kind) for kind in ("stdout", "stderr")
            )

    def _records(self, with_error: bool) -> Iterator[Record]:
        index = 0
        for chunk in self.chunks:
            yield from map(self.pending, range(index, chunk.start))
            index = chunk.start + chunk.count
            reader = _ChunkReader(chunk)
            for at, status in enumerate(chunk.status):
                if status != PURGED:
                    record = self.pending(chunk.start + at)
                    reader.fill(record, at, with_error=with_error)
                    yield record
        yield from map(self.pending, range(index, self.entry.count))

    def record(self, index: int) -> Record:
        """Return the record of a task that was not purged."""
        record = self.pending(index)
        chunk = self.chunk_of(index)
        if chunk is not None:
            _ChunkReader(chunk).fill(record, index - chunk.start, with_error=True)
        self._add_output(record)
        return record

    def pending(self, index: int) -> Record:
        """Return what a task's record was when it was submitted."""
        entry = self.entry
        client = entry.client.hex()
        seq = entry.first + index
        return {
            "msg_id": f"{client}_{seq}",
            "client_uuid": client,
            "seq": seq,
            "label": entry.label,
            "method": entry.method,
            "queue": "mux" if entry.placement == "direct" else "task",
            "name": entry.name,
            **self._conditions,
            "submitted": entry.submitted,
            "started": None,
            "completed": None,
            "received": None,
            "status": None,
            "engine_id": None,
            "engine_uuid": None,
            "stdout": "",
            "stderr": "",
            "execute_result": None,
            "error": None,
            "resubmitted": None,
            "result": None,
        }

    @property
    def _conditions(self) -> dict[str, Any]:
        if self._fields is None:
            self._fields = condition_fields(self.entry.conditions)
        return self._fields


class _ChunkReader:
    """Fills records from a chunk whose columns are taken apart once."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._started = read_float64(chunk.started)
        self._completed = read_float64(chunk.completed)
        self._payloads: Payloads | None = None

    def fill(self, record: Record, at: int, *, with_error: bool) -> None:
        chunk = self._chunk
        status = chunk.status[at]
        started, completed = self._started[at], self._completed[at]
        record["status"] = STATUS_NAMES[status]
        record["started"] = None if math.isnan(started) else started
        record["completed"] = chunk.received if math.isnan(completed) else completed
        record["received"] = chunk.received
        if chunk.engine_id >= 0:
            record["engine_id"] = chunk.engine_id
            record["engine_uuid"] = chunk.engine_uuid
        record["result"] = chunk.loss or "kept"
        if chunk.loss:
            return
        if chunk.columns.blobs:
            record["result"] = loss_of(self._get().buffer_blobs(at)) or "kept"
        if status != OK and with_error:
            record["error"] = _error(self._get().pickle(at))

    def _get(self) -> Payloads:
        if self._payloads is None:
            self._payloads = self._chunk.payloads()
        return self._payloads


class Search:
    """A query taken apart: what can be told of a group, and what only of its tasks."""

    def __init__(self, query: Mapping[str, Any], keys: Sequence[str] | None) -> None:
        """Check a query and the fields to return.

        Raises:
            QueryError: if one of them is wrong.
        """
        self.query = check_query(query)
        self._keys = None if keys is None else check_keys(keys)
        self._of_group = {f: c for f, c in self.query.items() if f in GROUP_FIELDS}
        self._of_task = {f: c for f, c in self.query.items() if f not in GROUP_FIELDS}
        self._with_error = keys is None or "error" in keys or "error" in self.query
        wanted = {*(FIELDS if keys is None else keys), *self.query}
        self._with_output = not wanted.isdisjoint(OUTPUT_FIELDS)

    def has_group(self, entry: GroupEntry) -> bool:
        """Whether a group may have tasks that match."""
        return matches(RecordedGroup(entry).pending(0), self._of_group)

    def records(self, group: RecordedGroup) -> Iterator[Record]:
        """Yield what is to be returned of a group that `has_group`."""
        for record in group.records(with_error=self._with_error, with_output=self._with_output):
            if matches(record, self._of_task):
                if self._keys is not None:
                    record = {key: record[key] for key in self._keys}
                yield record


def _start(chunk: Chunk) -> int:
    return chunk.start


def _error(payload: Frame) -> dict[str, Any] | None:
    try:
        info = decode_part(payload, ErrorInfo)
    except ProtocolError:
        return None
    return {"ename": info.ename, "evalue": info.evalue, "traceback": info.traceback}


__all__ = [
    "COLUMN_BYTES",
    "GROUP_FIELDS",
    "PENDING",
    "PURGED",
    "Chunk",
    "RecordedGroup",
    "Search",
    "cut",
]
