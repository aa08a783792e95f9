"""What clients ask of a database, as their questions put it.

What lives here: functions that the database's thread calls, and the packing of what they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ipyfleet_protocol.columns import Frame

from .base import TaskDatabase

RECORDS_PER_PACKING = 256
"""Packing holds the interpreter, so many records are packed in parts, between which the loop may
go on."""

_encode = msgspec.msgpack.Encoder().encode


def read_results(
    database: TaskDatabase, msg_ids: Sequence[str], status_only: bool
) -> tuple[dict[str, Any], list[Frame]]:
    """Return records by msg_id, with ``frames``, the number of frames that each task's result has,
    and the frames; None for an unknown task.
    """
    records: dict[str, Any] = {}
    frames: list[Frame] = []
    for msg_id in msg_ids:
        record = database.get(msg_id)
        records[msg_id] = record
        if record is None or status_only:
            continue
        record["outputs"] = database.outputs(msg_id)
        result = database.result(msg_id)
        record["frames"] = len(result.frames) if result else 0
        record["blobs"] = b""  # all inline; a client that reads records of old looks for it
        frames += result.frames if result else []
    return records, frames


def pack(content: Any) -> bytes:
    """Return the msgpack of an answer."""
    if not isinstance(content, list) or len(content) <= RECORDS_PER_PACKING:
        return _encode(content)
    parts = [b"\xdd", len(content).to_bytes(4, "big")]
    for begin in range(0, len(content), RECORDS_PER_PACKING):
        parts += [_encode(record) for record in content[begin : begin + RECORDS_PER_PACKING]]
    return b"".join(parts)


__all__ = ["pack", "read_results"]
