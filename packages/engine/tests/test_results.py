"""Results are collected into few messages that say which task each belongs to."""

from __future__ import annotations

import math

from ipyfleet_engine.kept import KeptResults
from ipyfleet_engine.output import OutputBatch
from ipyfleet_engine.results import ResultBuffer, cancelled_results
from ipyfleet_engine.tasks import QueuedSlice
from ipyfleet_protocol.codec import decode, encode, split
from ipyfleet_protocol.columns import Payloads, PayloadWriter, read_float64, read_uint32
from ipyfleet_protocol.messages import (
    ABORTED,
    FAILED,
    OK,
    HeldTasks,
    Output,
    OutputItem,
    PlacedRange,
    Results,
    TaskSlice,
)


def make_slice(
    client: bytes, first: int, ordinal: int, count: int, attempt: int = 0
) -> QueuedSlice:
    """Return a slice of tasks without payload."""
    writer = PayloadWriter()
    for _ in range(count):
        writer.append(b"")
    columns, frames = writer.finish()
    info = TaskSlice(
        client, first, count, attempt, ordinal, "apply", False, False, "", None, columns
    )
    return QueuedSlice(info, Payloads(columns, frames))


def check(message: object, frames: list[object]) -> Results:
    """Pass a message through the codec's checks."""
    assert isinstance(message, Results)
    decoded = decode(encode(message))
    assert isinstance(decoded, Results)
    split(decoded, frames)  # type: ignore[arg-type]
    return decoded


def test_contiguous_tasks_share_a_slice_whatever_messages_brought_them() -> None:
    """Tasks whose seqs and ordinals go on share one slice, also across slices that arrived."""
    buffer = ResultBuffer(engine_id=7)
    a, b = make_slice(b"c" * 16, 10, 0, 2), make_slice(b"c" * 16, 12, 2, 1)
    buffer.append(a, 0, OK, (1.0, 2.0), 0, b"x")
    buffer.append(a, 1, FAILED, (2.0, 3.0), 0, b"yy")
    buffer.append(b, 0, OK, (3.0, 4.0), 0, b"")
    [(message, frames)] = buffer.take()
    results = check(message, frames)
    [piece] = results.slices
    assert (results.engine, piece.first, piece.count, piece.ordinal) == (7, 10, 3, 0)
    assert piece.status == bytes([OK, FAILED, OK])
    assert list(read_float64(piece.completed)) == [2.0, 3.0, 4.0]
    assert piece.outputs == b""
    assert [bytes(Payloads(piece.columns, frames).pickle(i)) for i in range(3)] == [
        b"x",
        b"yy",
        b"",
    ]
    assert buffer.take() == []


def test_a_gap_in_seq_or_ordinal_or_another_attempt_begins_a_slice() -> None:
    """Slices are contiguous in both numbers and of one attempt."""
    buffer = ResultBuffer()
    for piece in (
        make_slice(b"c" * 16, 0, 0, 1),
        make_slice(b"c" * 16, 2, 1, 1),
        make_slice(b"c" * 16, 3, 3, 1),
        make_slice(b"c" * 16, 4, 4, 1, attempt=1),
    ):
        buffer.append(piece, 0, OK, (0.0, 0.0), 0, b"r")
    [(message, frames)] = buffer.take()
    found = [(p.first, p.ordinal, p.attempt) for p in check(message, frames).slices]
    assert found == [(0, 0, 0), (2, 1, 0), (3, 3, 0), (4, 4, 1)]


def test_each_client_gets_a_message_of_its_own() -> None:
    """Results of several clients are not mixed."""
    buffer = ResultBuffer()
    for client in (b"a" * 16, b"b" * 16, b"a" * 16):
        buffer.append(make_slice(client, 0, 0, 1), 0, OK, (0.0, 0.0), 0, client[:1])
    messages = {m.client: check(m, f) for m, f in buffer.take() if isinstance(m, Results)}
    assert [len(m.slices) for m in messages.values()] == [2, 1]


def test_output_counts_and_buffers_are_per_task() -> None:
    """Counts of output items and buffers are those of their tasks; zero for the others."""
    buffer = ResultBuffer()
    piece = make_slice(b"c" * 16, 0, 0, 3)
    buffer.append(piece, 0, OK, (0.0, 0.0), 0, b"a")
    buffer.append(piece, 1, OK, (0.0, 0.0), 4, b"b", [(b"large", False), (b"handle", True)])
    buffer.append(piece, 2, ABORTED, (math.nan, math.nan), 0, b"c")
    [(message, frames)] = buffer.take()
    [found] = check(message, frames).slices
    assert list(read_uint32(found.outputs)) == [0, 4, 0]
    payloads = Payloads(found.columns, frames)
    assert [len(payloads.buffer_frames(i)) for i in range(3)] == [0, 2, 0]
    assert payloads.buffer_blobs(1) == b"\0\1"
    assert math.isnan(read_float64(found.started)[2])


def test_output_leaves_before_the_results() -> None:
    """The output of a task precedes the message that says that it has ended."""
    buffer = ResultBuffer()
    buffer.append(make_slice(b"c" * 16, 0, 0, 1), 0, OK, (0.0, 0.0), 1, b"")
    buffer.append_output(OutputBatch(b"c" * 16, [OutputItem(0, 0, "stdout", b"hi")], []))
    assert [type(message) for message, _ in buffer.take()] == [Output, Results]


def test_messages_of_results_are_numbered_over_all_clients() -> None:
    """The numbers grow by one with each message, whoever's results are in it."""
    buffer = ResultBuffer()
    for client in (b"c" * 16, b"d" * 16):
        buffer.append(make_slice(client, 0, 0, 1), 0, OK, (1.0, 2.0), 0, b"")
    first = [check(*outgoing).number for outgoing in buffer.take()]
    message, frames = cancelled_results(b"c" * 16, 0, b"e", [PlacedRange(5, 1, 2)])
    assert [*first, check(*buffer.number(message, frames)).number] == [1, 2, 3]


def test_what_is_held_is_what_waits_and_what_is_kept() -> None:
    """Ended tasks are held until their client has them, sent or not; the last one is told."""
    buffer = ResultBuffer()
    buffer.kept = KeptResults()
    assert buffer.held() == ([], -1)
    piece = make_slice(b"c" * 16, 10, 0, 3)
    for index in range(2):
        buffer.append(piece, index, OK, (1.0, 2.0), 0, b"x")
    assert buffer.held() == ([HeldTasks(b"c" * 16, 10, 2, 0)], 1)
    buffer.take()
    buffer.append(piece, 2, OK, (1.0, 2.0), 0, b"x")
    assert buffer.held() == ([HeldTasks(b"c" * 16, 10, 3, 0)], 2)
    buffer.kept.taken(b"c" * 16, 1)
    assert buffer.held() == ([HeldTasks(b"c" * 16, 12, 1, 2)], 2)
    buffer.take()
    buffer.kept.taken(b"c" * 16, 2)
    assert buffer.held() == ([], 2)


def test_a_lone_result_says_what_it_would_say_among_others() -> None:
    """It is made in fewer steps, and nobody sees a difference."""
    piece = make_slice(b"c" * 16, 10, 5, 3, attempt=2)
    lone, usual = ResultBuffer(engine_id=7), ResultBuffer(engine_id=7)
    for buffer in (lone, usual):
        buffer.append(piece, 1, FAILED, (1.5, math.nan), 0, b"error")
        assert (buffer.n_bytes, buffer.last_ended) == (5, 6)
    assert usual.held() == ([HeldTasks(b"c" * 16, 11, 1, 6, 2)], 6)
    [(alone, frames)], [(message, others)] = lone.take(), usual.take()
    assert encode(alone) == encode(message)
    assert frames == others == [b"error"]
    assert lone.n_bytes == usual.n_bytes == 0
    assert lone.take() == usual.take() == []
