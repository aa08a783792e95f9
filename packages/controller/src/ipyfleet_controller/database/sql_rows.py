"""Rows of the tables to entries and chunks.

What lives here: what reads rows, in the order of the columns in `sql_text`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

from ipyfleet_protocol.codec import decode_part
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Columns

from . import sql_text as text
from .base import GroupEntry
from .output import OutputRecord
from .recorded import Chunk
from .sql_connection import Connection

Row: TypeAlias = tuple[Any, ...]


def read_entry(row: Row) -> GroupEntry:
    """Return the entry in a row of `GROUP_COLUMNS`."""
    _, client, first, count, label, method, placement, name, submitted = row[:9]
    return GroupEntry(
        bytes(client),
        first,
        count,
        bytes(label).decode(errors="surrogatepass"),
        method,
        placement,
        bytes(name).decode(errors="surrogatepass"),
        submitted,
        bytes(row[13]),
    )


def read_chunk(connection: Connection, row: Row) -> Chunk:
    """Return the chunk in a row of `CHUNK_COLUMNS`; its frames are read when they are needed."""
    number, start, count, engine_id, engine_uuid, received, *rest = row
    status, started, completed, sizes, buffer_counts, flags, loss = rest
    return Chunk(
        start,
        count,
        engine_id,
        engine_uuid,
        received,
        bytearray(status),
        bytes(started),
        bytes(completed),
        Columns(bytes(sizes), bytes(buffer_counts), bytes(flags)),
        partial(_read_frames, connection, number, start, bool(buffer_counts)),
        loss,
    )


def read_outputs(connection: Connection, number: int) -> list[OutputRecord]:
    """Return the output of a group's tasks, in the order in which it came."""
    return [
        item
        for (content,) in connection.rows(text.OUTPUTS_OF, (number,))
        for item in decode_part(bytes(content), list[OutputRecord])
    ]


def _read_frames(connection: Connection, number: int, start: int, has_buffers: bool) -> list[Frame]:
    frames: list[Frame] = [row[0] for row in connection.rows(text.PACKED, (number, start))]
    if has_buffers:
        frames += [row[0] for row in connection.rows(text.BUFFERS_OF_CHUNK, (number, start))]
    return frames


__all__ = ["Row", "read_chunk", "read_entry", "read_outputs"]
