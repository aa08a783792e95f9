"""Results that the controller makes itself, and results of which only a part may go on.

What lives here: `ending_slice` and `deliver` (errors for tasks that end without an engine's word)
and `keep_parts`. What must not: state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ipyfleet_protocol.codec import encode_part, split
from ipyfleet_protocol.columns import Frame, Payloads, float64_column, uint32_column
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import (
    ABORTED,
    FAILED,
    Columns,
    ErrorInfo,
    Results,
    ResultSlice,
)

from .instructions import DeliverResults
from .runs import Run

NO_ENGINE = -1

SLICES_PER_MESSAGE = 1024
"""Slices of results that one message of our own carries at most."""

_NAN = float64_column([math.nan])


def own_error(
    ename: str, evalue: str = "", *, engine_id: int = NO_ENGINE, uuid: str = "", method: str = ""
) -> ErrorInfo:
    """Return an error that the system itself makes; `ename` is a class of
    `ipyfleet_protocol.errors`.
    """
    return ErrorInfo(ename, evalue, [], engine_id, uuid, method, own=True)


def ending_slice(run: Run, error: ErrorInfo) -> tuple[ResultSlice, list[Frame]]:
    """Return the results that end all tasks of a run with an error, aborted if it is a
    `TaskAborted`.
    """
    count = len(run)
    status = ABORTED if error.ename == "TaskAborted" else FAILED
    info = encode_part(error)
    piece = ResultSlice(
        first=run.first_seq,
        count=count,
        attempt=run.attempt,
        ordinal=-1,
        status=bytes((status,)) * count,
        started=_NAN * count,
        completed=_NAN * count,
        outputs=b"",
        columns=Columns(sizes=uint32_column([len(info)]) * count),
    )
    return piece, [info * count]


def keep_parts(
    message: Results, frames: Sequence[Frame], parts: Iterable[tuple[int, int, int]]
) -> tuple[Results, list[Frame]]:
    """Return a message with only some of the results of another.

    Args:
        message: checked results.
        frames: their frames.
        parts: ``(slice number, start, stop)`` of what to keep.
    """
    pieces = []
    kept: list[Frame] = []
    split_frames = split(message, frames)
    for number, start, stop in parts:
        piece = message.slices[number]
        columns, part_frames = Payloads(piece.columns, split_frames[number].payload).part(
            start, stop
        )
        pieces.append(
            ResultSlice(
                first=piece.first + start,
                count=stop - start,
                attempt=piece.attempt,
                ordinal=piece.ordinal + start,
                status=piece.status[start:stop],
                started=piece.started[8 * start : 8 * stop],
                completed=piece.completed[8 * start : 8 * stop],
                outputs=piece.outputs[4 * start : 4 * stop],
                columns=columns,
            )
        )
        kept += part_frames
    return Results(message.client, message.engine, pieces), kept


def deliver(endings: Sequence[tuple[Run, ErrorInfo]]) -> list[DeliverResults]:
    """Return what tells clients that runs have ended with errors; few messages for each client."""
    by_client: dict[PeerId, list[tuple[Run, ErrorInfo]]] = {}
    for run, error in endings:
        by_client.setdefault(run.group.client, []).append((run, error))
    out = []
    for client, items in by_client.items():
        for at in range(0, len(items), SLICES_PER_MESSAGE):
            slices: list[ResultSlice] = []
            frames: list[Frame] = []
            for run, error in items[at : at + SLICES_PER_MESSAGE]:
                piece, part = ending_slice(run, error)
                slices.append(piece)
                frames += part
            out.append(DeliverResults(Results(client, NO_ENGINE, slices), frames))
    return out
