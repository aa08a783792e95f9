"""What clients say of ended and waiting tasks to a controller that was started anew."""

from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.departing import PATIENCE_S
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.messages import Dependency, TaskRange


def on(bench: Any, seq: int, **options: bool) -> Dependency:
    """A dependency on a task of the client."""
    return Dependency([TaskRange(bench.CLIENT, seq, 1)], **options)


def resubmit(bench: Any, *groups: m.Group) -> None:
    """Gather these groups, and engine 0."""
    bench.feed(ev.GatherEvent())
    bench.join(0)
    for group in groups:
        _, frames = bench.make_group(group.first, group.count)
        bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
    bench.feed(ev.ResubmittedEvent(bench.CLIENT))
    bench.feed(ev.GatheredEvent([]))


def make(bench: Any, first: int, count: int, again: dict[str, Any], **options: Any) -> m.Group:
    """A group as a client submits it again."""
    group, _ = bench.make_group(first, count, **options)
    for name, value in again.items():
        setattr(group, name, value)
    return group


def endings(bench: Any) -> dict[int, str]:
    """How tasks ended: "ok", or the name of the error."""
    return {
        seq: "ok" if status == m.OK else bench.error(seq).ename
        for (_, seq), (status, _) in bench.ended.items()
    }


# Of group 1 … 4 the last is open; 0 is in a group that has ended.
ENDED = bytes((1 + m.OK, 1 + m.FAILED, 1 + m.ABORTED, 0))


def test_how_tasks_ended_counts_for_those_that_wait_for_them(bench: Any) -> None:
    """A task after one that failed cannot run, one after its failure does; no records needed."""
    failed = [m.EndedRange(0, 1, m.FAILED)]
    waiting = [
        make(bench, 5, 1, {}, after=on(bench, 0)),
        make(bench, 6, 1, {}, after=on(bench, 0, success=False, failure=True)),
        make(bench, 7, 1, {}, after=on(bench, 1)),
        make(bench, 8, 1, {}, after=on(bench, 2)),
        make(bench, 9, 1, {}, after=on(bench, 3)),
        make(bench, 10, 1, {}, after=on(bench, 3, success=False, failure=True)),
        make(bench, 11, 1, {}, after=on(bench, 4)),
    ]
    first = make(bench, 1, 4, {"ended": ENDED, "failed_before": failed})
    resubmit(bench, first, *waiting)
    bench.run_all()
    assert endings(bench) == {
        4: "ok",
        5: "ImpossibleDependency",
        6: "ok",
        7: "ok",
        8: "ImpossibleDependency",
        9: "ImpossibleDependency",
        10: "ok",
        11: "ok",
    }


@pytest.mark.parametrize(
    ("waited_s", "left_s"), [(0, 60), (50, 10), (56, PATIENCE_S), (1000, PATIENCE_S)]
)
def test_a_timeout_goes_on(bench: Any, waited_s: float, left_s: float) -> None:
    """A task that has waited has only the rest of its time; a moment, for who may have it."""
    busy = make(bench, 0, 1, {})
    late = make(bench, 1, 1, {"waited_ms": 1000 * waited_s}, timeout_s=60.0, targets=[0])
    bench.places = False
    resubmit(bench, busy, late)
    bench.now += left_s - 0.5
    bench.feed(ev.TickEvent())
    assert not bench.ended
    bench.now += 1.0
    bench.feed(ev.TickEvent())
    assert endings(bench) == {1: "TaskTimeout"}
