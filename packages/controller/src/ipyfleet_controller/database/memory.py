"""Records in memory, bounded by number and bytes.

What lives here: `MemoryDatabase`. A group is kept as compact columns and a record is made of them
when somebody asks. The oldest groups all of whose tasks have ended are dropped when a bound is
exceeded.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ipyfleet_protocol.codec import decode_part
from ipyfleet_protocol.columns import Frame, Payloads, read_float64
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import parse_msg_id
from ipyfleet_protocol.messages import OK, ErrorInfo

from .base import STATUS_NAMES, GroupEntry, PendingError, Record, ResultsEntry, StoredResult
from .query import check_query, matches

MAX_RECORDS = 1 << 16
"""Records kept by default."""

MAX_BYTES = 64 << 20
"""Bytes of results kept by default."""

OWNED_MIN_BYTES = 8192
"""A received frame smaller than this may hold on to a whole receive buffer, so it is copied."""

PENDING, PURGED = 255, 254


class _Group:
    """The tasks of one entry, as columns; those about results are made with the first result."""

    __slots__ = (
        "chunks",
        "completed",
        "engines",
        "entry",
        "n_bytes",
        "n_live",
        "started",
        "starts",
        "status",
    )

    def __init__(self, entry: GroupEntry) -> None:
        self.entry = entry
        self.status = bytearray((PENDING,)) * entry.count
        self.n_live = entry.count
        self.n_bytes = 0
        self.started: array[float] | None = None
        self.completed: array[float] | None = None
        # Where in the group each entry of results begins, ascending, and the entries.
        self.starts: list[int] = []
        self.chunks: list[ResultsEntry] = []
        self.engines: array[int] | None = None

    def add(self, start: int, offset: int, count: int, entry: ResultsEntry) -> None:
        """Take in how tasks from index `start` on ended: items `offset …` of an entry."""
        if self.started is None or self.completed is None or self.engines is None:
            size = self.entry.count
            self.started = array("d", [math.nan]) * size
            self.completed = array("d", [math.nan]) * size
            self.engines = array("i", [-1]) * size
        stop = start + count
        self.n_live -= self.status.count(PENDING, start, stop)
        self.status[start:stop] = entry.status[offset : offset + count]
        self.started[start:stop] = array("d", read_float64(entry.started)[offset : offset + count])
        self.completed[start:stop] = array(
            "d", read_float64(entry.completed)[offset : offset + count]
        )
        self.engines[start:stop] = array("i", [entry.engine_id]) * count
        position = bisect_right(self.starts, start)
        self.starts.insert(position, start)
        self.chunks.insert(position, entry)
        self.n_bytes += sum(map(len, entry.frames)) + 21 * count

    def chunk(self, index: int) -> ResultsEntry:
        """Return the entry that brought an ended task's result."""
        return self.chunks[bisect_right(self.starts, index) - 1]

    def result(self, index: int) -> StoredResult:
        """Return the payload of an ended task."""
        entry = self.chunk(index)
        payloads = Payloads(entry.columns, entry.frames)
        at = self.entry.first + index - entry.first
        frames: list[Frame] = [payloads.pickle(at), *payloads.buffer_frames(at)]
        return StoredResult(frames, payloads.buffer_blobs(at))

    def record(self, index: int) -> Record:
        """Return the record of one task."""
        entry, status = self.entry, self.status[index]
        record: Record = {
            "msg_id": f"{entry.client.hex()}_{entry.first + index}",
            "client_uuid": entry.client.hex(),
            "seq": entry.first + index,
            "label": entry.label,
            "method": entry.method,
            "queue": "mux" if entry.placement == "direct" else "task",
            "name": entry.name,
            "submitted": entry.submitted,
            "started": None,
            "completed": None,
            "received": None,
            "status": None,
            "engine_id": None,
            "engine_uuid": None,
            "error": None,
        }
        if status >= len(STATUS_NAMES) or self.started is None or self.completed is None:
            return record
        result = self.chunk(index)
        started, completed = self.started[index], self.completed[index]
        record["status"] = STATUS_NAMES[status]
        record["started"] = None if math.isnan(started) else started
        record["completed"] = result.received if math.isnan(completed) else completed
        record["received"] = result.received
        if result.engine_id >= 0:
            record["engine_id"] = result.engine_id
            record["engine_uuid"] = result.engine_uuid
        if status != OK:
            record["error"] = _error(self.result(index).frames[0])
        return record


class MemoryDatabase:
    """The `TaskDatabase` that forgets when the controller ends."""

    def __init__(self, *, max_records: int = MAX_RECORDS, max_bytes: int = MAX_BYTES) -> None:
        """Start empty.

        Args:
            max_records: number of records above which the oldest ended groups are dropped.
            max_bytes: the same for bytes of results.
        """
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._groups: dict[bytes, list[_Group]] = {}
        self._order: dict[_Group, None] = {}
        self._done: deque[_Group] = deque()
        self._n_records = 0
        self._n_bytes = 0
        self._n_culled = 0

    def write(self, entries: Iterable[GroupEntry | ResultsEntry]) -> None:
        """Take in entries."""
        for entry in entries:
            if isinstance(entry, GroupEntry):
                group = _Group(entry)
                self._groups.setdefault(entry.client, []).append(group)
                self._order[group] = None
                self._n_records += entry.count
            else:
                self._write_results(entry)
        while self._done and (
            self._n_records > self._max_records or self._n_bytes > self._max_bytes
        ):
            group = self._done.popleft()
            if group in self._order:
                self._n_culled += group.entry.count - group.status.count(PURGED)
                self._drop(group)

    def get(self, msg_id: str) -> Record | None:
        """Return the record of a task, or None."""
        found = self._find(msg_id)
        return None if found is None else found[0].record(found[1])

    def result(self, msg_id: str) -> StoredResult | None:
        """Return the payload of an ended task, or None."""
        found = self._find(msg_id)
        if found is None or found[0].status[found[1]] >= len(STATUS_NAMES):
            return None
        return found[0].result(found[1])

    def find(self, query: dict[str, Any], keys: Sequence[str] | None = None) -> list[Record]:
        """Return the records that match, in the order of submission."""
        checked = check_query(query)
        found = [record for record in self._records() if matches(record, checked)]
        if keys is None:
            return found
        wanted = ["msg_id", *(key for key in keys if key != "msg_id")]
        return [{key: record[key] for key in wanted if key in record} for record in found]

    def history(self) -> list[str]:
        """Return all msg_ids in the order of submission."""
        return [
            f"{group.entry.client.hex()}_{group.entry.first + index}"
            for group in self._order
            for index in range(group.entry.count)
            if group.status[index] != PURGED
        ]

    def purge(
        self, msg_ids: Sequence[str] | None = None, engine_ids: Sequence[int] | None = None
    ) -> int:
        """Drop records of ended tasks; see `TaskDatabase.purge`."""
        doomed: list[tuple[_Group, int]] = []
        for msg_id in msg_ids or ():
            found = self._find(msg_id)
            if found is None:
                raise KeyError(f"no such task: {msg_id}")
            if found[0].status[found[1]] == PENDING:
                raise PendingError(f"the task has not ended: {msg_id}")
            doomed.append(found)
        if msg_ids is None or engine_ids is not None:
            engines = None if engine_ids is None else set(engine_ids)
            for group in self._order:
                for index, status in enumerate(group.status):
                    if status < len(STATUS_NAMES) and (
                        engines is None or (group.engines and group.engines[index] in engines)
                    ):
                        doomed.append((group, index))
        n_purged = 0
        for group, index in doomed:
            n_purged += group.status[index] != PURGED
            group.status[index] = PURGED
        for group in {id(group): group for group, _ in doomed}.values():
            if group.status.count(PURGED) == group.entry.count and group in self._order:
                self._drop(group)
        return n_purged

    def statistics(self) -> dict[str, int]:
        """Return numbers of records, bytes of results and culled records."""
        return {"records": self._n_records, "bytes": self._n_bytes, "culled": self._n_culled}

    def close(self) -> None:
        """Nothing is open."""

    def _write_results(self, entry: ResultsEntry) -> None:
        entry.frames = [
            bytes(memoryview(frame)) if len(frame) < OWNED_MIN_BYTES else frame
            for frame in entry.frames
        ]
        seq, end = entry.first, entry.first + entry.count
        while seq < end:
            group = self._group_of(entry.client, seq)
            if group is None:
                return
            start = seq - group.entry.first
            count = min(end - seq, group.entry.count - start)
            before = group.n_bytes
            group.add(start, seq - entry.first, count, entry)
            self._n_bytes += group.n_bytes - before
            if not group.n_live:
                self._done.append(group)
            seq += count

    def _group_of(self, client: bytes, seq: int) -> _Group | None:
        groups = self._groups.get(client, [])
        position = bisect_right(groups, seq, key=lambda group: group.entry.first) - 1
        if position < 0:
            return None
        group = groups[position]
        return group if seq < group.entry.first + group.entry.count else None

    def _find(self, msg_id: str) -> tuple[_Group, int] | None:
        try:
            client, seq = parse_msg_id(msg_id)
        except ValueError:
            return None
        group = self._group_of(client, seq)
        if group is None or group.status[seq - group.entry.first] == PURGED:
            return None
        return group, seq - group.entry.first

    def _records(self) -> Iterator[Record]:
        for group in self._order:
            for index in range(group.entry.count):
                if group.status[index] != PURGED:
                    yield group.record(index)

    def _drop(self, group: _Group) -> None:
        del self._order[group]
        groups = self._groups[group.entry.client]
        position = bisect_right(groups, group.entry.first, key=lambda g: g.entry.first) - 1
        del groups[position]
        if not groups:
            del self._groups[group.entry.client]
        self._n_records -= group.entry.count
        self._n_bytes -= group.n_bytes


def _error(payload: Frame) -> dict[str, Any] | None:
    try:
        info = decode_part(payload, ErrorInfo)
    except ProtocolError:
        return None
    return {"ename": info.ename, "evalue": info.evalue, "traceback": info.traceback}


__all__ = ["MAX_BYTES", "MAX_RECORDS", "MemoryDatabase"]
