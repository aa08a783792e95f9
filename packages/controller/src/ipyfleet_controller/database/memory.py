"""Records in memory, bounded by number, bytes and age.

What lives here: `MemoryDatabase`. The oldest groups all of whose tasks have ended are dropped when
a bound is exceeded. What is recorded here ends with the controller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ipyfleet_protocol.ids import format_msg_id, parse_msg_id

from .base import (
    Entry,
    GroupEntry,
    Limits,
    NotKept,
    PendingError,
    Record,
    ResultsEntry,
    StoredResult,
    TaskDatabase,
    pending_task,
    unknown_task,
)
from .detached import DetachedGroup
from .live import Coverage, GroupIndex
from .output import OutputEntry, OutputRecord, bounded, room
from .place import DatabasePlace
from .recorded import PENDING, PURGED, RecordedGroup, Search, cut

MAX_RECORDS = 1 << 20
"""Records kept by default; in columns, that is some 25 MB."""

MAX_BYTES = 64 << 20
"""Bytes of results and columns kept by default."""

OWNED_MIN_BYTES = 8192
"""A received frame smaller than this may hold on to a whole receive buffer, so it is copied."""


def open_database(place: DatabasePlace) -> TaskDatabase:
    """Return the backend for a controller; part of the table of backends."""
    limits = place.limits
    return MemoryDatabase(
        max_records=MAX_RECORDS if limits.max_records is None else limits.max_records,
        max_bytes=min(MAX_BYTES, limits.max_bytes),
        max_age_s=limits.max_age_s,
    )


class _Group(RecordedGroup):
    __slots__ = ("ended", "is_here", "n_bytes", "n_output", "n_purged", "output", "touched")

    def __init__(self, entry: GroupEntry) -> None:
        super().__init__(entry)
        self.ended = Coverage()
        self.n_bytes = 0
        self.n_purged = 0
        self.n_output = 0
        self.output: list[OutputRecord] = []
        self.touched = entry.submitted
        self.is_here = True


class MemoryDatabase:
    """The `TaskDatabase` that forgets when the controller ends."""

    def __init__(
        self,
        *,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = Limits().max_age_s,
    ) -> None:
        """Start empty.

        Args:
            max_records: number of records above which the oldest ended groups are dropped.
            max_bytes: the same for bytes of results and their columns.
            max_age_s: seconds after its last result when a group is dropped.
        """
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._groups: GroupIndex[_Group] = GroupIndex()
        self._order: dict[_Group, None] = {}
        self._done: deque[_Group] = deque()
        self._n_records = 0
        self._n_bytes = 0
        self._n_culled = 0

    def open(self) -> None:
        """Nothing is to be opened."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Take in entries."""
        for entry in entries:
            if isinstance(entry, GroupEntry):
                for part in self._groups.uncovered(entry):
                    group = _Group(part)
                    self._groups.add(group)
                    self._order[group] = None
                    self._n_records += part.count
            elif isinstance(entry, OutputEntry):
                self._write_output(entry)
            else:
                self._write_results(entry)
        self._cull_to(self._max_records, self._max_bytes)

    def get(self, msg_id: str) -> Record | None:
        """Return the record of a task, or None."""
        found = self._find(msg_id)
        return None if found is None else found[0].record(found[1])

    def result(self, msg_id: str) -> StoredResult | None:
        """Return the payload of an ended task, or None."""
        found = self._find(msg_id)
        return None if found is None else found[0].result(found[1])

    def outputs(self, msg_id: str) -> list[OutputRecord]:
        """Return the output of a task."""
        found = self._find(msg_id)
        return [] if found is None else found[0].outputs(found[1])

    def find(self, query: dict[str, Any], keys: Sequence[str] | None = None) -> list[Record]:
        """Return the records that match, in the order of submission."""
        search = Search(query, keys)
        return [
            record
            for group in self._order
            if search.has_group(group.entry)
            for record in search.records(group)
        ]

    def history(self) -> list[str]:
        """Return all msg_ids in the order of submission."""
        return [
            f"{group.entry.client.hex()}_{group.entry.first + index}"
            for group in self._order
            for index in range(group.entry.count)
            if not group.n_purged or group.status(index) != PURGED
        ]

    def purge(
        self, msg_ids: Sequence[str] | None = None, engine_ids: Sequence[int] | None = None
    ) -> int:
        """Drop records of ended tasks; see `TaskDatabase.purge`."""
        doomed: list[tuple[_Group, int]] = []
        for msg_id in msg_ids or ():
            found = self._find(msg_id)
            if found is None:
                raise KeyError(unknown_task(msg_id))
            if found[0].status(found[1]) == PENDING:
                raise PendingError(pending_task(msg_id))
            doomed.append(found)
        if msg_ids is None or engine_ids is not None:
            engines = None if engine_ids is None else set(engine_ids)
            doomed += [
                (group, index)
                for group in self._order
                for chunk in group.chunks
                if engines is None or chunk.engine_id in engines
                for index in range(chunk.start, chunk.start + chunk.count)
            ]
        return sum(self._purge_one(group, index) for group, index in doomed)

    def cull(self, now: float) -> int:
        """Drop groups that are too old."""
        before = self._n_culled
        while self._done and self._done[0].touched < now - self._max_age_s:
            self._cull_oldest()
        return self._n_culled - before

    def keep_detached(self, groups: Sequence[DetachedGroup]) -> None:
        """Raise `NotKept`."""
        raise NotKept(
            "records are kept in memory, so nothing outlives the controller; start it with "
            "--sqlitedb or --postgresdb to detach from work"
        )

    def detached(self) -> list[DetachedGroup]:
        """Return none."""
        return []

    def make_room(self) -> int:
        """Drop the oldest ended group."""
        before = self._n_culled
        if self._done:
            self._cull_oldest()
        return self._n_culled - before

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
        for group, start, stop in self._groups.runs(entry):
            if group.ended.n_covered == group.entry.count:
                continue
            for begin, end in group.ended.add(start, stop):
                chunk = cut(entry, group.entry, begin, end)
                group.add(chunk)
                group.n_bytes += chunk.n_bytes
                self._n_bytes += chunk.n_bytes
            group.touched = max(group.touched, entry.received)
            if group.ended.n_covered == group.entry.count:
                self._done.append(group)

    def _write_output(self, entry: OutputEntry) -> None:
        for group in self._groups.overlapping(entry.client, entry.first, entry.count):
            first, count = group.entry.first, group.entry.count
            ours = [item for item in entry.items if first <= item.seq < first + count]
            items, n_bytes = bounded(ours, room(count, group.n_output))
            group.output += items
            group.read_outputs = group.output.copy
            group.forget_outputs()
            group.n_output += n_bytes
            group.n_bytes += n_bytes
            self._n_bytes += n_bytes

    def _find(self, msg_id: str) -> tuple[_Group, int] | None:
        try:
            client, seq = parse_msg_id(msg_id)
        except ValueError:
            return None
        # There are several ways to write a number, and only one is the id.
        group = self._groups.at(client, seq) if format_msg_id(client, seq) == msg_id else None
        if group is None or group.status(seq - group.entry.first) == PURGED:
            return None
        return group, seq - group.entry.first

    def _purge_one(self, group: _Group, index: int) -> bool:
        chunk = group.chunk_of(index)
        if chunk is None:
            return False
        before = chunk.n_bytes
        if not chunk.purge(index):
            return False
        group.n_purged += 1
        group.n_bytes += chunk.n_bytes - before
        self._n_bytes += chunk.n_bytes - before
        self._n_records -= 1
        if group.n_purged == group.entry.count:
            self._drop(group)
        return True

    def _cull_to(self, max_records: int, max_bytes: int) -> None:
        while self._done and (self._n_records > max_records or self._n_bytes > max_bytes):
            self._cull_oldest()

    def _cull_oldest(self) -> None:
        group = self._done.popleft()
        if group.is_here:
            self._n_culled += group.entry.count - group.n_purged
            self._drop(group)

    def _drop(self, group: _Group) -> None:
        group.is_here = False
        del self._order[group]
        self._groups.remove(group)
        self._n_records -= group.entry.count - group.n_purged
        self._n_bytes -= group.n_bytes


__all__ = ["MAX_BYTES", "MAX_RECORDS", "MemoryDatabase", "open_database"]
