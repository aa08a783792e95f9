"""The queue of tasks: order, recall, drop, abort."""

from __future__ import annotations

from ipyfleet_engine.tasks import Fate, QueuedSlice, TaskQueue
from ipyfleet_protocol.columns import Payloads, PayloadWriter
from ipyfleet_protocol.messages import SeqRange, TaskSlice

CLIENT, OTHER = b"c" * 16, b"o" * 16


def make_slice(
    ordinal: int, count: int, *, client: bytes = CLIENT, first: int = 0, method: str = "apply"
) -> QueuedSlice:
    """Return a slice of tasks."""
    writer = PayloadWriter()
    for i in range(count):
        writer.append(b"%d" % i)
    columns, frames = writer.finish()
    info = TaskSlice(
        client,
        first,
        count,
        0,
        ordinal,
        method,
        False,
        False,
        "",
        None,
        columns,  # type: ignore[arg-type]
    )
    return QueuedSlice(info, Payloads(columns, frames))


def claim_all(queue: TaskQueue) -> list[tuple[int, Fate]]:
    """Claim every task; return ordinals and fates."""
    out = []
    while (claim := queue.claim()) is not None:
        piece, index, fate = claim
        out.append((piece.info.ordinal + index, fate))
    return out


def ordinals_run(queue: TaskQueue) -> list[int]:
    """Claim every task; return the ordinals of those to run."""
    return [ordinal for ordinal, fate in claim_all(queue) if fate is Fate.RUN]


def test_tasks_come_in_the_order_of_their_ordinals() -> None:
    """Slices are worked off one after the other, each from its first task to its last."""
    queue = TaskQueue()
    queue.append(make_slice(0, 2))
    queue.append(make_slice(2, 3))
    assert len(queue) == 5
    assert ordinals_run(queue) == [0, 1, 2, 3, 4]
    assert queue.claim() is None


def test_recalled_tasks_are_not_run() -> None:
    """What is given back is skipped without a word; the rest runs."""
    queue = TaskQueue()
    queue.append(make_slice(0, 6))
    assert queue.recall(3, 4) == (3, 4)
    assert claim_all(queue) == [(i, Fate.RUN) for i in (0, 1, 2, 5)]


def test_claimed_tasks_are_not_given_back() -> None:
    """A recall that reaches back to started tasks gives only the others; first > last for none."""
    queue = TaskQueue()
    queue.append(make_slice(0, 4))
    queue.claim()
    queue.claim()
    assert queue.recall(0, 3) == (2, 3)
    assert claim_all(queue) == []
    first, last = queue.recall(0, 1)
    assert first > last


def test_tasks_that_have_not_arrived_can_be_recalled() -> None:
    """A task that is still in the socket when it is recalled is skipped when it arrives."""
    queue = TaskQueue()
    assert queue.recall(0, 1) == (0, 1)
    queue.append(make_slice(0, 3))
    assert ordinals_run(queue) == [2]


def test_dropped_tasks_end_as_cancelled() -> None:
    """Drop names tasks by client and seq; another client's of the same seq run."""
    queue = TaskQueue()
    queue.append(make_slice(0, 3, first=10))
    queue.append(make_slice(3, 2, first=10, client=OTHER))
    queue.drop(CLIENT, [SeqRange(11, 1)])
    fates = dict(claim_all(queue))
    assert fates[1] is Fate.CANCELLED
    assert [o for o, fate in fates.items() if fate is Fate.RUN] == [0, 2, 3, 4]


def test_a_drop_waits_for_tasks_that_arrive_later_until_it_is_forgotten() -> None:
    """A drop holds for tasks that arrive after it, until the owner says that none can."""
    queue = TaskQueue()
    queue.drop(CLIENT, [SeqRange(0, 2)])
    queue.append(make_slice(0, 2))
    assert claim_all(queue) == [(0, Fate.CANCELLED), (1, Fate.CANCELLED)]
    assert queue.has_drops()
    queue.forget_drops()
    assert not queue.has_drops()


def test_a_failed_execute_aborts_the_clients_queued_executes_only() -> None:
    """Apply tasks, other clients' tasks, and what arrives later are not aborted."""
    queue = TaskQueue()
    queue.append(make_slice(0, 2, method="execute"))
    queue.append(make_slice(2, 1, method="apply"))
    queue.append(make_slice(3, 1, method="execute", client=OTHER))
    queue.append(make_slice(4, 1, method="execute"))
    queue.claim()
    queue.abort_executes(CLIENT)
    queue.append(make_slice(5, 1, method="execute"))
    assert claim_all(queue) == [
        (1, Fate.ABORTED),
        (2, Fate.RUN),
        (3, Fate.RUN),
        (4, Fate.ABORTED),
        (5, Fate.RUN),
    ]
