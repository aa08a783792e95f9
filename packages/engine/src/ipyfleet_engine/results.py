"""Finished tasks on their way out: collected into as few messages as can be.

What lives here: `ResultBuffer`. What must not: sockets, locks, user code. The owner holds a lock
around every call, since one thread appends and two take.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from ipyfleet_protocol.columns import (
    Frame,
    PayloadWriter,
    float64_column,
    pack_float64,
    pack_pickles,
    uint32_column,
)
from ipyfleet_protocol.messages import (
    ABORTED,
    Columns,
    HeldTasks,
    Message,
    Output,
    PlacedRange,
    Results,
    ResultSlice,
)

from .kept import KeptResults, joined
from .output import OutputBatch
from .tasks import QueuedSlice

Outgoing = tuple[Message, list[Frame]]
"""A message and its payload frames."""


class _Run:
    """Results with contiguous seqs and ordinals, being collected."""

    __slots__ = (
        "attempt",
        "completed",
        "first",
        "next_seq",
        "ordinal",
        "outputs",
        "pickles",
        "started",
        "status",
        "writer",
    )

    def __init__(self, first: int, attempt: int, ordinal: int) -> None:
        self.first = first
        self.next_seq = first
        self.attempt = attempt
        self.ordinal = ordinal
        self.status = bytearray()
        self.started: list[float] = []
        self.completed: list[float] = []
        self.outputs: array[int] | None = None
        # Of the tasks after the last one that has large buffers; the others' are in the writer.
        self.pickles: list[bytes | memoryview] = []
        self.writer: PayloadWriter | None = None

    def append_large(
        self, pickle: bytes | memoryview, buffers: Sequence[tuple[Frame, bool]]
    ) -> None:
        if self.writer is None:
            self.writer = PayloadWriter()
        self.writer.extend(self.pickles)
        self.pickles = []
        self.writer.append(pickle, buffers)

    def finish(self) -> tuple[ResultSlice, list[Frame]]:
        if self.writer is None:
            columns, frames = pack_pickles(self.pickles)
        else:
            self.writer.extend(self.pickles)
            columns, frames = self.writer.finish()
        piece = ResultSlice(
            first=self.first,
            count=len(self.status),
            attempt=self.attempt,
            ordinal=self.ordinal,
            status=bytes(self.status),
            started=float64_column(self.started),
            completed=float64_column(self.completed),
            outputs=b"" if self.outputs is None else uint32_column(self.outputs),
            columns=columns,
        )
        return piece, frames


_Lone = tuple[QueuedSlice, int, int, tuple[float, float], bytes | memoryview]
"""A result that is alone in the buffer and has nothing but a pickle: what `append` was given.

The result of every task is alone that takes longer than a message. Its message is made without a
`_Run`, in a third of the steps. Where the task has slept, and the CPU's caches are cold, a step
takes twenty times as long.
"""


class ResultBuffer:
    """Collects results and the output that belongs to them until they are sent.

    Attributes:
        engine_id: where they come from.
        n_bytes: of their payloads.
        kept: what was sent and may have to be sent again; None to keep nothing.
        last_ended: the ordinal of the task that ended last; -1 before the first.
    """

    def __init__(self, engine_id: int = -1) -> None:
        self.engine_id = engine_id
        self.n_bytes = 0
        self.kept: KeptResults | None = None
        self.last_ended = -1
        self._number = 0
        self._lone: _Lone | None = None
        self._runs: dict[bytes, list[_Run]] = {}
        self._last: _Run | None = None
        self._last_client = b""
        self._outputs: list[OutputBatch] = []

    def append(
        self,
        piece: QueuedSlice,
        index: int,
        status: int,
        times: tuple[float, float],
        n_outputs: int,
        pickle: bytes | memoryview,
        buffers: Sequence[tuple[Frame, bool]] = (),
    ) -> None:
        """Add how one task ended.

        Args:
            piece, index: the task.
            status: `OK`, `FAILED`, `ABORTED` or `UNMET`.
            times: when it started and when it completed.
            n_outputs: number of output items that it published.
            pickle, buffers: the payload, as for `PayloadWriter.append`.
        """
        if self._lone is not None:
            self._spill(self._lone)
        elif not (self._runs or self._outputs or n_outputs or buffers):
            self._lone = piece, index, status, times, pickle
            self.n_bytes = len(pickle)
            self.last_ended = piece.info.ordinal + index
            return
        info = piece.info
        seq = piece.first + index
        ordinal = info.ordinal + index
        run = self._last
        if (
            run is None
            or run.next_seq != seq
            or self.last_ended + 1 != ordinal
            or run.attempt != info.attempt
            or self._last_client != piece.client
        ):
            run = self._begin(piece, index)
        self.last_ended = ordinal
        if n_outputs and run.outputs is None:
            run.outputs = array("I", bytes(4 * len(run.status)))
        if run.outputs is not None:
            run.outputs.append(n_outputs)
        run.next_seq = seq + 1
        run.status.append(status)
        run.started.append(times[0])
        run.completed.append(times[1])
        self.n_bytes += len(pickle)
        if buffers:
            run.append_large(pickle, buffers)
            self.n_bytes += sum(len(frame) for frame, _ in buffers)
        else:
            run.pickles.append(pickle)

    def _begin(self, piece: QueuedSlice, index: int) -> _Run:
        """Begin a run with this task."""
        info = piece.info
        run = _Run(piece.first + index, info.attempt, info.ordinal + index)
        self._runs.setdefault(piece.client, []).append(run)
        self._last = run
        self._last_client = piece.client
        return run

    def _spill(self, lone: _Lone) -> None:
        """Begin a run with what was alone until now."""
        self._lone = None
        piece, index, status, (started, completed), pickle = lone
        run = self._begin(piece, index)
        run.next_seq += 1
        run.status.append(status)
        run.started.append(started)
        run.completed.append(completed)
        run.pickles.append(pickle)

    def append_output(self, batch: OutputBatch) -> None:
        """Add output that has to leave before the results of its task."""
        self._outputs.append(batch)

    def take(self) -> list[Outgoing]:
        """Return the messages that say all this, output first, and start anew."""
        if self._lone is not None:
            return [self._take_lone(self._lone)]
        out: list[Outgoing] = []
        for batch in self._outputs:
            out.append((Output(batch.client, self.engine_id, batch.items), batch.frames))
        for client, runs in self._runs.items():
            slices, frames = [], []
            for run in runs:
                piece, parts = run.finish()
                slices.append(piece)
                frames += parts
            out.append(self.number(Results(client, self.engine_id, slices), frames))
        self._runs = {}
        self._last = None
        self._outputs = []
        self.n_bytes = 0
        return out

    def _take_lone(self, lone: _Lone) -> Outgoing:
        self._lone = None
        self.n_bytes = 0
        piece, index, status, (started, completed), pickle = lone
        info = piece.info
        part = ResultSlice(
            piece.first + index,
            1,
            info.attempt,
            info.ordinal + index,
            bytes((status,)),
            pack_float64(started),
            pack_float64(completed),
            b"",
            Columns(len(pickle).to_bytes(4, "little")),
        )
        return self.number(Results(piece.client, self.engine_id, [part]), [pickle])

    def number(self, message: Results, frames: list[Frame]) -> Outgoing:
        """Number a message of results that is about to be sent, and keep it."""
        self._number += 1
        message.number = self._number
        if self.kept is not None:
            self.kept.add(message, frames)
        return message, frames

    def held(self) -> tuple[list[HeldTasks], int]:
        """Return the tasks whose results are here or kept, and the last one that has ended."""
        if self._lone is not None:
            self._spill(self._lone)
        tasks = [
            HeldTasks(client, run.first, len(run.status), run.ordinal, run.attempt)
            for client, runs in self._runs.items()
            for run in runs
        ]
        if self.kept is not None:
            tasks += self.kept.tasks()
        return joined(tasks), self.last_ended


def cancelled_results(
    client: bytes, engine_id: int, info: bytes, ranges: Sequence[PlacedRange]
) -> tuple[Results, list[Frame]]:
    """Return results of tasks that have never run.

    Args:
        client: whose tasks.
        engine_id: where they were.
        info: the packed `ErrorInfo` of each.
        ranges: which.
    """
    never = float64_column([math.nan])
    size = uint32_column([len(info)])
    slices = [
        ResultSlice(
            first=piece.first,
            count=piece.count,
            attempt=piece.attempt,
            ordinal=piece.ordinal,
            status=bytes((ABORTED,)) * piece.count,
            started=never * piece.count,
            completed=never * piece.count,
            outputs=b"",
            columns=Columns(sizes=size * piece.count),
        )
        for piece in ranges
    ]
    return Results(client, engine_id, slices), [info * piece.count for piece in ranges]
