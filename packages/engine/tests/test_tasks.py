"""The queue of tasks: order, recall, drop, abort."""

from __future__ import annotations

import pytest

from ipyfleet_engine.tasks import Fate, QueuedSlice, Suspended, TaskQueue
from ipyfleet_protocol.columns import Payloads, PayloadWriter
from ipyfleet_protocol.messages import HeldTasks, PlacedRange, TaskSlice

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


def test_dropped_tasks_are_not_run() -> None:
    """Tasks that nobody has claimed are named in the answer, and skipped without a word."""
    queue = TaskQueue()
    queue.append(make_slice(0, 3, first=10))
    assert queue.drop([PlacedRange(11, 1, 1, 2)]) == [PlacedRange(11, 1, 1, 2)]
    assert claim_all(queue) == [(0, Fate.RUN), (2, Fate.RUN)]


def test_claimed_tasks_are_not_dropped() -> None:
    """A drop that reaches back to started tasks drops only the others."""
    queue = TaskQueue()
    queue.append(make_slice(0, 4, first=10))
    queue.claim()
    queue.claim()
    assert queue.last_claimed == 1
    assert queue.drop([PlacedRange(10, 1, 0), PlacedRange(11, 3, 1)]) == [PlacedRange(12, 2, 2)]
    assert claim_all(queue) == []


def test_tasks_that_have_not_arrived_can_be_dropped() -> None:
    """A task that is still in the socket when it is dropped is skipped when it arrives."""
    queue = TaskQueue()
    queue.drop([PlacedRange(0, 2, 0)])
    queue.append(make_slice(0, 3))
    assert ordinals_run(queue) == [2]


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


def test_a_suspended_queue_tells_what_it_has_and_takes_no_more() -> None:
    """What waits and what was claimed last is told, recalled tasks are not; the rest goes on."""
    queue = TaskQueue()
    queue.append(make_slice(0, 4))
    queue.append(make_slice(4, 2, client=OTHER, first=7))
    queue.claim()
    queue.claim()
    queue.recall(2, 2)
    held, next_ordinal = queue.suspend()
    assert held == [
        HeldTasks(CLIENT, 1, 1, 1),
        HeldTasks(CLIENT, 3, 1, 3),
        HeldTasks(OTHER, 7, 2, 4),
    ]
    assert next_ordinal == 6
    with pytest.raises(Suspended):
        queue.extend([make_slice(6, 1)])
    assert ordinals_run(queue) == [3, 4, 5]
    queue.resume()
    queue.append(make_slice(6, 1))
    assert ordinals_run(queue) == [6]


def test_the_next_ordinal_is_above_all_that_were_named() -> None:
    """Tasks that were recalled before they arrived are not mistaken for later ones."""
    queue = TaskQueue()
    queue.append(make_slice(0, 1))
    queue.recall(1, 4)
    assert queue.suspend() == ([HeldTasks(CLIENT, 0, 1, 0)], 5)
    queue.drop([PlacedRange(9, 3, 5)])
    assert queue.suspend()[1] == 8
    queue.resume()
    queue.append(make_slice(8, 1))
    assert ordinals_run(queue) == [0, 8]


def test_an_empty_queue_holds_nothing() -> None:
    """When all tasks have been claimed and the next was asked for, none is held."""
    queue = TaskQueue()
    queue.append(make_slice(0, 3))
    claim_all(queue)
    assert queue.suspend() == ([], 3)
