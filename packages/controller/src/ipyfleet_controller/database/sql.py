"""Records in tables, the same for every database that speaks SQL.

What lives here: `SqlDatabase` and the statements. What must not: how one connects, and what the
errors of one library mean; a backend's module has that, as a `Connection`.

Theory of operation
-------------------
A row of `groups` is a group, a row of `results` a chunk of it (`recorded.Chunk`), a row of
`buffers` one large buffer. So a million tasks are some thousand rows, and writing them costs
little; questions are answered by `recorded.Search` over the groups that the tables' indexes leave
over, with the same code as in memory.

The groups that have not ended are known here as well, with what has ended of them. So writing needs
no reading; a batch that failed can be written again, even if it was committed and only the answer
was lost (all statements are such that a second time does nothing); and when the tables are lost, a
corrupt file set aside for instance, the groups that are alive get into the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ipyfleet_protocol.ids import format_msg_id, parse_msg_id

from . import sql_text as text
from .base import (
    DatabaseUnavailable,
    Entry,
    GroupEntry,
    Limits,
    PendingError,
    Record,
    StoredResult,
    pending_task,
    unknown_task,
)
from .detached import DetachedGroup
from .output import OutputEntry, OutputRecord
from .recorded import PENDING, PURGED, Chunk, RecordedGroup, Search
from .sql_connection import Connection, DatabaseCorrupt
from .sql_detached import DetachedStore
from .sql_purge import Purger
from .sql_rows import Row, read_chunk, read_entry, read_outputs
from .sql_text import narrow
from .sql_write import Batch, Ledger, LiveGroup

GROUPS_PER_READ = 256
"""Groups whose chunks are read at once."""

GROUPS_PER_CULL = 64
"""Groups dropped in one transaction."""

CULL_SHARE = 0.1
"""What is dropped beyond a bound when it is exceeded, so that this is rare."""


class SqlDatabase:
    """The `TaskDatabase` of backends that speak SQL."""

    def __init__(
        self, connect: Callable[[], Connection], limits: Limits, set_aside: Callable[[], str]
    ) -> None:
        """Touch nothing yet.

        Args:
            connect: returns an open connection; raises as `Connection` does.
            limits: how much is kept.
            set_aside: moves what is corrupt away, so that `connect` starts afresh; returns where
                to, in words. Raises `DatabaseUnavailable` if it cannot.
        """
        self._connect = connect
        self._set_aside = set_aside
        self._limits = limits
        self._connection: Connection | None = None
        self._was_open = False
        self._ledger = Ledger()
        self._detached = DetachedStore()
        self._n_culled = 0

    def open(self) -> None:
        """Connect, and make the tables where there are none."""
        with self._connected():
            pass

    def write(self, entries: Sequence[Entry]) -> None:
        """Take in entries, in one transaction."""
        with self._connected() as connection:
            batch = Batch(self._ledger, connection)
            try:
                for entry in entries:
                    if isinstance(entry, GroupEntry):
                        batch.add_group(entry)
                    elif isinstance(entry, OutputEntry):
                        batch.add_output(entry)
                    else:
                        batch.add_results(entry)
                with connection.transaction():
                    batch.write()
            except BaseException:
                batch.undo()
                raise
            self._detached.note_ended(batch.done())

    def get(self, msg_id: str) -> Record | None:
        """Return the record of a task, or None."""
        with self._connected() as connection:
            found = self._task(connection, msg_id)
            return None if found is None else found[0].record(found[1])

    def result(self, msg_id: str) -> StoredResult | None:
        """Return the payload of an ended task, or None."""
        with self._connected() as connection:
            found = self._task(connection, msg_id)
            return None if found is None else found[0].result(found[1])

    def outputs(self, msg_id: str) -> list[OutputRecord]:
        """Return the output of a task."""
        with self._connected() as connection:
            found = self._task(connection, msg_id)
            return [] if found is None else found[0].outputs(found[1])

    def find(self, query: dict[str, Any], keys: Sequence[str] | None = None) -> list[Record]:
        """Return the records that match, in the order of submission."""
        search = Search(query, keys)
        where, arguments = narrow(search.query)
        with self._connected() as connection:
            return [
                record
                for _, group in self._groups(connection, where, arguments, search.has_group)
                for record in search.records(group)
            ]

    def history(self) -> list[str]:
        """Return all msg_ids in the order of submission."""
        with self._connected() as connection:
            ids: list[str] = []
            for row in connection.rows(text.GROUPS_WHERE.format(where="1 = 1")):
                entry, n_purged = read_entry(row), row[11]
                prefix = f"{entry.client.hex()}_"
                if not n_purged:
                    ids += [f"{prefix}{entry.first + index}" for index in range(entry.count)]
                    continue
                [group] = self._with_chunks(connection, [row])
                ids += [
                    f"{prefix}{entry.first + index}"
                    for index in range(entry.count)
                    if group.status(index) != PURGED
                ]
            return ids

    def purge(
        self, msg_ids: Sequence[str] | None = None, engine_ids: Sequence[int] | None = None
    ) -> int:
        """Drop records of ended tasks; see `TaskDatabase.purge`."""
        with self._connected() as connection:
            purger = Purger(connection)
            for msg_id in msg_ids or ():
                found = self._task(connection, msg_id)
                if found is None:
                    raise KeyError(unknown_task(msg_id))
                group, index, row = found
                if group.status(index) == PENDING:
                    raise PendingError(pending_task(msg_id))
                purger.note(row, group.chunks[0], [index])
            if msg_ids is None or engine_ids is not None:
                where, arguments = "1 = 1", list(engine_ids or ())
                if engine_ids is not None:
                    marks = ", ".join("?" * len(engine_ids)) or "NULL"
                    where = text.GROUPS_OF_ENGINES.format(marks=marks)
                for row, group in self._groups(connection, where, arguments):
                    for chunk in group.chunks:
                        if engine_ids is None or chunk.engine_id in engine_ids:
                            purger.note(row, chunk, range(chunk.start, chunk.start + chunk.count))
            with connection.transaction():
                purger.write()
        for n_purged, n_bytes in purger.by_group.values():
            self._ledger.n_records -= n_purged
            self._ledger.n_bytes -= n_bytes
        for live in self._ledger.live:
            n_purged, n_bytes = purger.by_group.get(live.number, (0, 0))
            live.n_purged += n_purged
            live.n_bytes -= n_bytes
        return purger.n_purged

    def cull(self, now: float) -> int:
        """Drop what exceeds the limits."""
        before = self._n_culled
        limits = self._limits
        with self._connected() as connection:
            self._detached.forget_ended(connection)
            horizon = now - limits.max_age_s
            while rows := connection.rows(
                text.TOO_OLD, (horizon, self._ledger.first_of_run, GROUPS_PER_CULL)
            ):
                self._drop(connection, rows)
            if self._is_over(1.0):
                while self._is_over(1.0 - CULL_SHARE) and (
                    rows := connection.rows(text.OLDEST_ENDED, (GROUPS_PER_CULL,))
                ):
                    self._drop(connection, rows, until=lambda: not self._is_over(1.0 - CULL_SHARE))
        return self._n_culled - before

    def keep_detached(self, groups: Sequence[DetachedGroup]) -> None:
        """Store groups with their payloads."""
        with self._connected() as connection:
            self._detached.write(connection, groups)

    def detached(self) -> list[DetachedGroup]:
        """Return the stored groups that have not ended."""
        with self._connected() as connection:
            return self._detached.read(connection)

    def make_room(self) -> int:
        """Drop some of the oldest ended groups to make room; return how many records."""
        before = self._n_culled
        with self._connected() as connection:
            connection.tidy()
            self._drop(connection, connection.rows(text.OLDEST_ENDED, (GROUPS_PER_CULL,)))
            connection.tidy()
        return self._n_culled - before

    def statistics(self) -> dict[str, int]:
        """Return numbers of records, bytes of results and culled records."""
        return {
            "records": self._ledger.n_records,
            "bytes": self._ledger.n_bytes,
            "culled": self._n_culled,
        }

    def close(self) -> None:
        """Close the connection; the next call opens one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    # -- connecting ---------------------------------------------------------------------------

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Lend the connection, opened if need be; closed after an error that it may be the cause
        of.
        """
        try:
            if self._connection is None:
                connection = self._connect()
                try:
                    self._take_over(connection)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
            yield self._connection
        except DatabaseUnavailable as error:
            if not error.is_connected:
                self.close()
            raise
        except DatabaseCorrupt as error:
            self.close()
            raise DatabaseUnavailable(f"{error}; {self._set_aside()}", at_once=True) from None

    def _take_over(self, connection: Connection) -> None:
        """Make the tables where they are missing, and learn what is in them."""
        with connection.transaction():
            for statement in text.SCHEMA:
                connection.run(statement.format(blob=connection.blob_type))
            self._detached.take_over(connection)
        [(last,)] = connection.rows(text.LAST_NUMBER)
        self._ledger.next_number = max(self._ledger.next_number, 0 if last is None else last + 1)
        [(last,)] = connection.rows(text.LAST_SERIAL)
        self._ledger.next_serial = max(self._ledger.next_serial, 0 if last is None else last + 1)
        if self._was_open:
            self._rescue(connection)
        else:
            self._ledger.first_of_run = self._ledger.next_number
            by_number = {}
            for row in connection.rows(text.GROUPS_WHERE.format(where="n_live > 0")):
                live = by_number[row[0]] = LiveGroup(row[0], read_entry(row))
                live.touched, live.n_purged, live.n_bytes = row[9], row[11], row[12]
                live.is_recorded = True
                self._ledger.live.add(live)
            for number, start, count in connection.rows(text.COVERED):
                by_number[number].ended.add(start, start + count)
            self._was_open = True
        [(n_records, n_bytes)] = connection.rows(text.TOTALS)
        self._ledger.n_records, self._ledger.n_bytes = int(n_records or 0), int(n_bytes or 0)

    def _rescue(self, connection: Connection) -> None:
        """Put live groups into tables that have lost them; what has ended of them is lost."""
        live = [group for group in self._ledger.live if group.is_recorded]
        if not live:
            return
        least = min(group.number for group in live)
        there = connection.rows(text.GROUPS_WHERE.format(where="number >= ?"), (least,))
        numbers = {row[0] for row in there}
        with connection.transaction():
            for group in live:
                if group.number in numbers:
                    continue
                group.n_purged, group.n_bytes = group.ended.n_covered, 0
                connection.run(text.ADD_GROUP, group.row())
                for start, stop in group.ended.intervals():
                    count = stop - start
                    status = bytes((PURGED,)) * count
                    nothing = (bytes(8 * count), bytes(8 * count), b"", b"", b"", "purged", b"")
                    row = (group.number, start, count, -1, "", 0.0, status, *nothing)
                    connection.run(text.ADD_RESULTS, row)

    # -- reading ------------------------------------------------------------------------------

    def _task(self, connection: Connection, msg_id: str) -> tuple[RecordedGroup, int, Row] | None:
        """Return the group of a task, with the one chunk that tells of it, and its index."""
        try:
            client, seq = parse_msg_id(msg_id)
        except ValueError:
            return None
        # There are several ways to write a number, and only one is the id.
        if seq >= text.MAX_SEQ or format_msg_id(client, seq) != msg_id:
            return None
        rows = connection.rows(text.GROUP_OF_TASK, (client, seq, seq))
        if not rows:
            return None
        entry = read_entry(rows[0])
        index = seq - entry.first
        chunks = connection.rows(text.CHUNK_OF_TASK, (rows[0][0], index))
        group = RecordedGroup(entry, [read_chunk(connection, row) for row in chunks])
        group.read_outputs = partial(read_outputs, connection, rows[0][0])
        return None if group.status(index) == PURGED else (group, index, rows[0])

    def _groups(
        self,
        connection: Connection,
        where: str,
        arguments: Sequence[Any],
        is_wanted: Callable[[GroupEntry], bool] = lambda entry: True,
    ) -> Iterator[tuple[Row, RecordedGroup]]:
        rows = connection.rows(text.GROUPS_WHERE.format(where=where), arguments)
        rows = [row for row in rows if is_wanted(read_entry(row))]
        for begin in range(0, len(rows), GROUPS_PER_READ):
            some = rows[begin : begin + GROUPS_PER_READ]
            yield from zip(some, self._with_chunks(connection, some), strict=True)

    def _with_chunks(self, connection: Connection, rows: Sequence[Row]) -> list[RecordedGroup]:
        chunks: dict[int, list[Chunk]] = {row[0]: [] for row in rows}
        marks = ", ".join("?" * len(rows))
        for row in connection.rows(text.CHUNKS_OF.format(marks=marks), list(chunks)):
            chunks[row[0]].append(read_chunk(connection, row))
        groups = [RecordedGroup(read_entry(row), chunks[row[0]]) for row in rows]
        for row, group in zip(rows, groups, strict=True):
            group.read_outputs = partial(read_outputs, connection, row[0])
        return groups

    # -- forgetting ---------------------------------------------------------------------------

    def _is_over(self, share: float) -> bool:
        limits = self._limits
        if limits.max_records is not None and self._ledger.n_records > limits.max_records * share:
            return True
        return self._ledger.n_bytes > limits.max_bytes * share

    def _drop(
        self,
        connection: Connection,
        rows: Sequence[tuple[int, int, int]],
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Drop groups: rows of number, records, bytes."""
        totals = (self._ledger.n_records, self._ledger.n_bytes, self._n_culled)
        numbers = []
        for number, n_records, n_bytes in rows:
            if until():
                break
            numbers.append((number,))
            self._ledger.n_records -= n_records
            self._ledger.n_bytes -= n_bytes
            self._n_culled += n_records
        try:
            with connection.transaction():
                for statement in text.DROP_GROUP:
                    connection.run_many(statement, numbers)
        except BaseException:
            self._ledger.n_records, self._ledger.n_bytes, self._n_culled = totals
            raise
        dropped = {number for (number,) in numbers}
        # Only groups that an earlier run left behind are dropped before they have ended.
        for live in [live for live in self._ledger.live if live.number in dropped]:
            self._ledger.live.remove(live)
