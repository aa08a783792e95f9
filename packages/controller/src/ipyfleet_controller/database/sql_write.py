"""Entries to rows: what is alive, and one batch on its way into the tables.

What lives here: `Ledger`, what is known without asking the tables; `Batch`. What must not: reading,
but for clients of an earlier run.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.messages import Columns

from . import sql_text as text
from .base import GroupEntry, ResultsEntry
from .live import Coverage, GroupIndex, parts_beside
from .output import OutputEntry, OutputRecord, bounded, room
from .recorded import Chunk, cut
from .sql_connection import Connection
from .sql_rows import Row, read_entry


class LiveGroup:
    """A group that has tasks which have not ended."""

    __slots__ = (
        "ended",
        "entry",
        "is_recorded",
        "n_bytes",
        "n_output",
        "n_purged",
        "number",
        "touched",
    )

    def __init__(self, number: int, entry: GroupEntry) -> None:
        self.number = number
        self.entry = entry
        self.ended = Coverage()
        self.n_bytes = 0
        self.n_output = 0
        self.n_purged = 0
        self.touched = entry.submitted
        self.is_recorded = False

    @property
    def is_over(self) -> bool:
        """Whether all tasks have ended."""
        return self.ended.n_covered == self.entry.count

    def row(self) -> Row:
        """Return the group's row."""
        entry = self.entry
        return (
            self.number,
            entry.client,
            entry.first,
            entry.count,
            entry.label.encode(errors="surrogatepass"),
            entry.method,
            entry.placement,
            entry.name.encode(errors="surrogatepass"),
            entry.submitted,
            *self.changing(),
            entry.conditions,
        )

    def changing(self) -> tuple[float, int, int, int]:
        """Return the part of the row that changes."""
        n_live = self.entry.count - self.ended.n_covered
        return self.touched, n_live, self.n_purged, self.n_bytes


class Ledger:
    """What is known of the tables' content.

    Attributes:
        live: the groups that have tasks which have not ended.
        next_number, next_serial: number of the next group, and of the next row of output.
        first_of_run: the first number of this run; groups before it were left by earlier ones.
        n_records, n_bytes: what there is.
    """

    def __init__(self) -> None:
        self.live: GroupIndex[LiveGroup] = GroupIndex()
        self.next_number = 0
        self.next_serial = 0
        self.first_of_run = 0
        self.n_records = 0
        self.n_bytes = 0
        # The ended groups of clients that were here before this run, as far as looked up.
        self._ended: dict[bytes, list[GroupEntry]] = {}

    def unknown(self, connection: Connection, entry: GroupEntry) -> Iterator[GroupEntry]:
        """Yield the parts of an entry that are in no group; nearly always all of it."""
        ended: list[GroupEntry] = []
        if self.first_of_run:
            if entry.client not in self._ended:
                rows = connection.rows(text.GROUPS_OF_CLIENT, (entry.client,))
                self._ended[entry.client] = [read_entry(row) for row in rows if not row[10]]
            ended = self._ended[entry.client]
        for part in self.live.uncovered(entry):
            yield from parts_beside(ended, part) if ended else (part,)


class Batch:
    """Entries on their way into the tables; the ledger is as before after `undo`."""

    def __init__(self, ledger: Ledger, connection: Connection) -> None:
        self._ledger = ledger
        self._connection = connection
        self._before = (
            ledger.next_number,
            ledger.next_serial,
            ledger.n_records,
            ledger.n_bytes,
        )
        self._new: list[LiveGroup] = []
        # Groups that were there before, with what they were like.
        self._changed: dict[LiveGroup, tuple[Coverage, int, int, float]] = {}
        self._fresh: set[LiveGroup] = set()
        self._results: list[Row] = []
        self._buffers: list[Row] = []
        self._outputs: list[Row] = []
        self._late: list[Row] = []

    def add_group(self, entry: GroupEntry) -> None:
        """Take in a group."""
        ledger = self._ledger
        for part in ledger.unknown(self._connection, entry):
            group = LiveGroup(ledger.next_number, part)
            ledger.next_number += 1
            ledger.live.add(group)
            ledger.n_records += part.count
            self._new.append(group)
            self._fresh.add(group)

    def add_results(self, entry: ResultsEntry) -> None:
        """Take in results of groups that are alive."""
        for group, start, stop in self._ledger.live.runs(entry):
            self._note_change(group)
            for begin, end in group.ended.add(start, stop):
                chunk = cut(entry, group.entry, begin, end)
                group.n_bytes += chunk.n_bytes
                self._ledger.n_bytes += chunk.n_bytes
                self._add_chunk(group.number, chunk)
            group.touched = max(group.touched, entry.received)

    def add_output(self, entry: OutputEntry) -> None:
        """Take in output, mostly of groups that are alive."""
        left = entry.items
        for group in self._ledger.live.overlapping(entry.client, entry.first, entry.count):
            first, end = group.entry.first, group.entry.first + group.entry.count
            ours = [item for item in left if first <= item.seq < end]
            if not ours:
                continue
            left = [item for item in left if not first <= item.seq < end]
            self._note_change(group)
            items, n_bytes = bounded(ours, room(group.entry.count, group.n_output))
            group.n_output += n_bytes
            group.n_bytes += n_bytes
            self._add_items(group.number, items, n_bytes)
        for item in left:
            self._add_late(entry.client, item)

    def _add_late(self, client: bytes, item: OutputRecord) -> None:
        """Take in output that comes after the end of its whole group."""
        rows = self._connection.rows(text.GROUP_OF_TASK, (client, item.seq, item.seq))
        if not rows:
            return
        number, count = rows[0][0], rows[0][3]
        [(n_kept,)] = self._connection.rows(text.SIZE_OF_OUTPUTS, (number,))
        items, n_bytes = bounded([item], room(count, int(n_kept or 0)))
        self._late.append((n_bytes, number))
        self._add_items(number, items, n_bytes)

    def _add_items(self, number: int, items: list[OutputRecord], n_bytes: int) -> None:
        self._ledger.n_bytes += n_bytes
        self._outputs.append((number, self._ledger.next_serial, encode_part(items)))
        self._ledger.next_serial += 1

    def _note_change(self, group: LiveGroup) -> None:
        if group not in self._fresh and group not in self._changed:
            before = (group.ended.copy(), group.n_bytes, group.n_output, group.touched)
            self._changed[group] = before

    def write(self) -> None:
        """Run the statements; within a transaction."""
        connection = self._connection
        if self._new:
            connection.run_many(text.ADD_GROUP, [group.row() for group in self._new])
        if self._results:
            connection.run_many(text.ADD_RESULTS, self._results)
        if self._buffers:
            connection.run_many(text.ADD_BUFFER, self._buffers)
        if self._outputs:
            connection.run_many(text.ADD_OUTPUT, self._outputs)
        if self._late:
            connection.run_many(text.ADD_BYTES, self._late)
        if self._changed:
            rows = [(*group.changing(), group.number) for group in self._changed]
            connection.run_many(text.UPDATE_GROUP, rows)

    def undo(self) -> None:
        """Forget the batch."""
        ledger = self._ledger
        for group in self._new:
            ledger.live.remove(group)
        for group, (ended, n_bytes, n_output, touched) in self._changed.items():
            group.ended, group.n_bytes, group.touched = ended, n_bytes, touched
            group.n_output = n_output
        ledger.next_number, ledger.next_serial, ledger.n_records, ledger.n_bytes = self._before

    def done(self) -> set[bytes]:
        """Note that it is committed; return the clients of groups that have ended by it."""
        ended = set()
        for group in self._new:
            group.is_recorded = True
        for group in (*self._new, *self._changed):
            if group.is_over:
                self._ledger.live.remove(group)
                ended.add(group.entry.client)
        return ended

    def _add_chunk(self, number: int, chunk: Chunk) -> None:
        frames = () if callable(chunk.frames) else chunk.frames
        columns = chunk.columns if frames else Columns(b"")
        self._results.append(
            (
                number,
                chunk.start,
                chunk.count,
                chunk.engine_id,
                chunk.engine_uuid,
                chunk.received,
                bytes(chunk.status),
                chunk.started,
                chunk.completed,
                columns.sizes,
                columns.buffer_counts,
                columns.blobs,
                chunk.loss,
                frames[0] if frames else b"",
            )
        )
        for place, frame in enumerate(frames[1:]):
            self._buffers.append((number, chunk.start, place, frame))


__all__ = ["Batch", "Ledger", "LiveGroup"]
