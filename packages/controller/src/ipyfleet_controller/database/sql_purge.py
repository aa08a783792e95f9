"""Dropping records that somebody names.

What lives here: `Purger`. Records are marked in their chunk; payloads go with a chunk's last
record, and a group with its last.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import sql_text as text
from .recorded import Chunk
from .sql_connection import Connection
from .sql_rows import Row


class Purger:
    """Notes what is to go, then writes it.

    Attributes:
        n_purged: number of records.
        by_group: of each group's number, how many of its records and bytes.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._chunks: dict[tuple[int, int], Chunk] = {}
        self._groups: dict[int, Row] = {}
        self.by_group: dict[int, tuple[int, int]] = {}
        self.n_purged = 0

    def note(self, group: Row, chunk: Chunk, indices: Iterable[int]) -> None:
        """Note that records of a chunk are to go: indices of tasks in their group."""
        number = group[0]
        # Named tasks come with a chunk that was read for each of them.
        chunk = self._chunks.setdefault((number, chunk.start), chunk)
        n_purged, n_bytes = self.by_group.get(number, (0, 0))
        for index in indices:
            n_purged += chunk.purge(index)
        self._groups[number] = group
        self.by_group[number] = (n_purged, n_bytes)

    def write(self) -> None:
        """Run the statements; within a transaction."""
        connection = self._connection
        for (number, start), chunk in self._chunks.items():
            if chunk.n_kept:
                connection.run(text.MARK_CHUNK, (bytes(chunk.status), number, start))
                continue
            [(packed, buffers)] = connection.rows(text.SIZE_OF_CHUNK, (number, start))
            n_purged, n_bytes = self.by_group[number]
            self.by_group[number] = (n_purged, n_bytes + int(packed or 0) + int(buffers or 0))
            nothing = (b"", b"", b"", b"")
            connection.run(text.EMPTY_CHUNK, (bytes(chunk.status), *nothing, number, start))
            connection.run(text.DROP_BUFFERS_OF_CHUNK, (number, start))
        for number, (n_purged, n_bytes) in self.by_group.items():
            self.n_purged += n_purged
            _, _, _, count, *_, touched, n_live, before, had_bytes, _ = self._groups[number]
            if before + n_purged == count:
                for statement in text.DROP_GROUP:
                    connection.run(statement, (number,))
                self.by_group[number] = (n_purged, had_bytes)
            else:
                row = (touched, n_live, before + n_purged, had_bytes - n_bytes, number)
                connection.run(text.UPDATE_GROUP, row)


__all__ = ["Purger"]
