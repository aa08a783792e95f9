"""Detached work in tables.

What lives here: `DetachedStore`, the part of `sql.SqlDatabase` about it. What must not: records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ipyfleet_protocol.codec import SliceFrames, decode_part, encode_part
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import OK, Group

from ..scheduler.group import STATE_OF_STATUS
from . import sql_text as text
from .detached import DetachedGroup, with_ended
from .sql_connection import Connection


class DetachedStore:
    """What is stored of detached groups.

    Attributes:
        names: client, first and count of each.
    """

    def __init__(self) -> None:
        self.names: set[tuple[bytes, int, int]] = set()
        self._with_ended: set[bytes] = set()

    def take_over(self, connection: Connection) -> None:
        """Make the tables where they are missing, and learn what is in them; in a transaction."""
        for statement in text.DETACHED_SCHEMA:
            connection.run(statement.format(blob=connection.blob_type))
        rows = connection.rows(text.REQUEST_NAMES)
        self.names = {(bytes(client), first, count) for client, first, count in rows}
        # They may have ended before an earlier run could drop them.
        self._with_ended = {client for client, _, _ in self.names}

    def write(self, connection: Connection, groups: Sequence[DetachedGroup]) -> None:
        """Store groups, in the place of what was stored of them."""
        with connection.transaction():
            for detached in groups:
                self._drop(connection, (detached.client, detached.group.first))
                group, frames = detached.group, detached.frames
                key = (detached.client, group.first)
                header = encode_part(group)
                n_function = len(frames.function)
                row = (*key, group.count, detached.submitted, header, n_function)
                connection.run(text.ADD_REQUEST, row)
                rows = [
                    (*key, place, frame)
                    for place, frame in enumerate((*frames.function, *frames.payload))
                ]
                connection.run_many(text.ADD_REQUEST_FRAME, rows)
        self.names |= {(each.client, each.group.first, each.group.count) for each in groups}

    def read(self, connection: Connection) -> list[DetachedGroup]:
        """Return the groups that have not ended."""
        found = []
        for client, first, count, submitted, header, n_function in connection.rows(
            text.ALL_REQUESTS
        ):
            try:
                group = decode_part(bytes(header), Group)
            except ProtocolError:
                continue  # of a release whose groups are other ones
            rows = connection.rows(text.FRAMES_OF_REQUEST, (client, first))
            frames = [bytes(content) for (content,) in rows]
            slices = SliceFrames(frames[:n_function], frames[n_function:])
            detached = DetachedGroup(bytes(client), group, slices, submitted)
            whole = with_ended(detached, _marks(connection, (bytes(client), first, count)))
            if whole is not None:
                found.append(whole)
        return found

    def note_ended(self, clients: Iterable[bytes]) -> None:
        """Note that groups of clients have ended."""
        if self.names:
            self._with_ended.update(clients)

    def forget_ended(self, connection: Connection) -> None:
        """Drop what was stored of groups that have ended, as far as noted."""
        if not self._with_ended:
            return
        wanted, self._with_ended = self._with_ended, set()
        for name in [name for name in self.names if name[0] in wanted]:
            if 0 not in _marks(connection, name):
                with connection.transaction():
                    self._drop(connection, name[:2])
                self.names.discard(name)

    @staticmethod
    def _drop(connection: Connection, key: tuple[bytes, int]) -> None:
        for statement in text.DROP_REQUEST:
            connection.run(statement, key)


def _marks(connection: Connection, name: tuple[bytes, int, int]) -> bytearray:
    """Return what is recorded of each task of a group, as in `Group.ended`."""
    client, first, count = name
    # A task of which no record is left cannot be told from one that has ended.
    marks = bytearray((1 + OK,)) * count
    parts = connection.rows(text.PARTS, (client, first + count, first))
    for number, start, length, n_live in parts:
        low, high = max(start, first), min(start + length, first + count)
        if n_live:
            marks[low - first : high - first] = bytes(high - low)
        for begin, status in connection.rows(text.ENDED_PARTS, (number,)):
            for seq, byte in enumerate(status, start + begin):
                if low <= seq < high:
                    marks[seq - first] = 1 + (byte if byte in STATE_OF_STATUS else OK)
    return marks


__all__ = ["DetachedStore"]
