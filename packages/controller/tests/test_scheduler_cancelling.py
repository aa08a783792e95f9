"""Cancelling: what waits, what engines hold, what runs, and what dies for it."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.instructions import KillRunning
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import EngineId
from ipyfleet_protocol.messages import PlacedRange, SeqRange


def cancel(bench: Any, first: int, count: int, **options: Any) -> None:
    """Take back tasks of the bench's first client."""
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(first, count)], **options))


def tick(bench: Any, after_s: float) -> list[KillRunning]:
    """Let time pass; return the engines that are to be killed."""
    bench.now += after_s
    return [out for out in bench.feed(ev.TickEvent()) if isinstance(out, KillRunning)]


def test_an_engine_is_told_to_interrupt(bench: Any) -> None:
    """The tasks at an engine are named by ordinal, with the wish to interrupt one that runs."""
    bench.join(0)
    bench.submit(0, 2, placement="direct", targets=[0, 0])
    cancel(bench, 1, 1, interrupt=True)
    [drop] = bench.drops
    assert drop.interrupt and drop.ranges == [PlacedRange(1, 1, 1)]


def test_force_kills_after_the_grace_and_insists(bench: Any) -> None:
    """Not before the grace is over, then again and again while the engine holds the task."""
    bench.join(0)
    bench.submit(0, 1)
    cancel(bench, 0, 1, interrupt=True, force=True, grace_s=2.0)
    assert bench.now + 2.0 in bench.wakes
    assert tick(bench, 1.9) == []
    assert tick(bench, 0.2) == [KillRunning(EngineId(0), [PlacedRange(0, 1, 0)])]
    assert tick(bench, 0.1) == []
    assert len(tick(bench, 0.2)) == 1
    bench.answer(0, status=m.ABORTED)
    assert tick(bench, 10.0) == []


def test_no_force_no_kill(bench: Any) -> None:
    """A task that goes on although it was interrupted is left alone."""
    bench.join(0)
    bench.submit(0, 1)
    cancel(bench, 0, 1, interrupt=True)
    assert tick(bench, 100.0) == []


@pytest.mark.parametrize("retries", [0, 3])
def test_a_cancelled_task_dies_with_its_engine(bench: Any, retries: int) -> None:
    """It ends as aborted, is not tried again; what waited behind it runs elsewhere at no cost."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 4, retries=retries)
    assert len(bench.held[0]) == 4
    cancel(bench, 0, 2, interrupt=True, force=True)
    bench.join(1)
    bench.lose(0, running=bench.core.state.engines[EngineId(0)].head.ordinal)
    assert [bench.error(seq).ename for seq in (0, 1)] == ["TaskAborted"] * 2
    assert sorted((seq, attempt) for _, seq, attempt, _ in bench.held[1]) == [(2, 0), (3, 0)]


def test_a_cancelled_task_that_fails_is_not_tried_again(bench: Any) -> None:
    """Its error is the end of it, whatever attempts are left; its neighbours have theirs."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 3, retries=1)
    cancel(bench, 1, 1)
    bench.answer(0, 3, status=m.FAILED)
    assert (bench.CLIENT, 1) in bench.ended
    assert (bench.CLIENT, 0) not in bench.ended and (bench.CLIENT, 2) not in bench.ended


def test_a_recall_under_way_does_not_revive_cancelled_tasks(bench: Any) -> None:
    """Cancelled between the recall and its answer: the tasks end, and are not placed again."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 1000)
    bench.join(1)
    first, last = bench.recalls[0]
    cancel(bench, 0, 1000)
    bench.give_back(0)
    assert bench.held[1] == []
    gone = [seq for seq in range(1000) if (bench.CLIENT, seq) in bench.ended]
    assert len(gone) == last - first + 1
    assert {bench.error(seq).ename for seq in gone} == {"TaskAborted"}
