"""What clients ask of a database, as their questions put it.

What lives here: functions that the database's thread calls, and the packing of what they find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import TaskRange

from ..scheduler.group import State
from ..scheduler.instructions import EndedTask
from .base import STATUS_NAMES, TaskDatabase

RECORDS_PER_PACKING = 256
"""Packing holds the interpreter, so many records are packed in parts, between which the loop may
go on."""

ENDED_MAX_TASKS = 100_000
"""Tasks of which it can be asked at a time how they ended."""

_STATES = dict(zip(STATUS_NAMES, (State.OK, State.FAILED, State.ABORTED), strict=True))

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


def ended_tasks(
    database: TaskDatabase, tasks: Sequence[TaskRange], engines: Mapping[str, EngineId]
) -> list[EndedTask]:
    """Return how tasks ended, of those that are known to have; neighbours that ended alike as one.

    Args:
        database: asked for records.
        tasks: which; of more than `ENDED_MAX_TASKS` nothing is returned.
        engines: those that are there, by their hex ids. A task that ended elsewhere ended nowhere:
            another cluster's engine may have had the same number.
    """
    if sum(piece.count for piece in tasks) > ENDED_MAX_TASKS:
        return []
    found: list[EndedTask] = []
    for piece in tasks:
        client = PeerId(piece.client)
        wanted = {"$gte": piece.first, "$lt": piece.first + piece.count}
        query = {"client_uuid": client.hex(), "seq": wanted, "status": {"$ne": None}}
        records = database.find(query, ["seq", "status", "engine_uuid"])
        for record in sorted(records, key=lambda record: int(record["seq"])):
            seq, state = record["seq"], _STATES[record["status"]]
            engine = engines.get(record["engine_uuid"] or "", EngineId(-1))
            last = found[-1] if found else None
            if last is not None and (client, seq, state, engine) == (last.client, *last[2:]):
                found[-1] = last._replace(end=seq + 1)
            else:
                found.append(EndedTask(client, seq, seq + 1, state, engine))
    return found


def pack(content: Any) -> bytes:
    """Return the msgpack of an answer."""
    if not isinstance(content, list) or len(content) <= RECORDS_PER_PACKING:
        return _encode(content)
    parts = [b"\xdd", len(content).to_bytes(4, "big")]
    for begin in range(0, len(content), RECORDS_PER_PACKING):
        parts += [_encode(record) for record in content[begin : begin + RECORDS_PER_PACKING]]
    return b"".join(parts)


__all__ = ["ended_tasks", "pack", "read_results"]
