"""Who goes first and who waits: priorities, turns, resources, timeouts, tasks turned down."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.explaining import explain
from ipyfleet_controller.scheduler.instructions import DeliverResults
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Dependency, TaskRange


def why(bench: Any, seq: int) -> str:
    """Return the last sentence about a task that has not ended."""
    told = explain(bench.core.state, bench.CLIENT, seq, bench.now)
    assert told is not None
    return str(told[-1])


def pass_time(bench: Any, seconds: float) -> None:
    """Let time go by and the scheduler look at it."""
    bench.now += seconds
    bench.feed(ev.TickEvent())


# -- priorities and turns ---------------------------------------------------------------------


def test_higher_priorities_go_first_and_equal_ones_in_order(make_bench: Any) -> None:
    """Of one client's waiting tasks the highest priority is placed first, then the oldest."""
    bench = make_bench(hwm=1)
    bench.join(0)
    bench.submit(0, 1)
    for first, priority in ((1, 0), (3, -5), (5, 7), (7, 0), (9, 7)):
        bench.submit(first, 2, priority=priority)
    order = [bench.answer(0)[0][1] for _ in range(11)]
    assert order == [0, 5, 6, 9, 10, 1, 2, 7, 8, 3, 4]


def test_priorities_do_not_matter_between_clients(make_bench: Any) -> None:
    """However urgent a client calls its tasks, others have their turns."""
    bench = make_bench(hwm=1)
    bench.join(0)
    bench.submit(0, 50, priority=1000)
    bench.submit(0, 5, bench.OTHER)
    for _ in range(12):
        bench.answer(0)
    assert sum(client == bench.OTHER for client, _ in bench.ended) == 5


def test_an_unknown_kind_of_task_has_its_turn_beside_saturated_engines(bench: Any) -> None:
    """A client with a new function is served though another's known tasks would fill all engines
    for ever.
    """
    bench.join(0, 1)
    bench.warm()
    bench.submit(0, 14_000)
    bench.submit(0, 10, bench.OTHER, digest=b"new " * 4)
    for _ in range(24):
        for engine in (0, 1):
            bench.answer(engine, 200, task_s=1e-5)
        bench.now += 0.002
    assert sum(client == bench.OTHER for client, _ in bench.ended) == 10
    assert bench.core.state.waiting.n_tasks > 2000


def test_a_client_that_waits_for_one_engine_does_not_keep_the_turn(make_bench: Any) -> None:
    """The turn goes past clients that cannot be served, and all others share."""
    bench = make_bench(hwm=1)
    bench.join(0, 1)
    bench.submit(0, 1, PeerId(b"first" * 3 + b"-"), targets=[0])
    bench.submit(1, 100, PeerId(b"first" * 3 + b"-"), targets=[0])
    bench.submit(0, 100)
    bench.submit(0, 100, bench.OTHER)
    for _ in range(20):
        bench.answer(1)
    counts = [sum(client == c for client, _ in bench.ended) for c in (bench.CLIENT, bench.OTHER)]
    assert abs(counts[0] - counts[1]) <= 2


def test_tasks_for_some_engines_keep_their_place_among_those_for_any(make_bench: Any) -> None:
    """FIFO holds for an engine over all tasks of a client that it may run."""
    bench = make_bench(hwm=1)
    bench.join(0)
    bench.submit(0, 1)
    for first in range(1, 13, 2):
        bench.submit(first, 1)
        bench.submit(first + 1, 1, targets=[0])
    assert [bench.answer(0)[0][1] for _ in range(13)] == list(range(13))


# -- resources --------------------------------------------------------------------------------


def test_tasks_go_where_the_resources_are(bench: Any) -> None:
    """A task runs only on engines that have at least what it asks for."""
    bench.join(0)
    bench.join(1, gpu=1)
    bench.join(2, gpu=2, mem=16)
    bench.submit(0, 20, resources={"gpu": 2, "mem": 8})
    bench.submit(20, 20, resources={"gpu": 1})
    bench.run_all()
    places = [bench.ended_at[bench.CLIENT, seq] for seq in range(40)]
    assert set(places[:20]) == {2}
    assert set(places[20:]) <= {1, 2}


def test_a_resource_that_nobody_has_is_waited_for(bench: Any) -> None:
    """The task waits, says for what, does not hold up others, and runs when an engine has it."""
    bench.join(0)
    bench.join(1, mem=4)
    bench.submit(0, 1, resources={"gpu": 1})
    bench.submit(1, 1, resources={"gpu": 1, "mem": 2})
    bench.submit(2, 10)
    assert why(bench, 0) == "waiting: no engine has gpu=1"
    bench.run_all()
    assert len(bench.ended) == 10
    bench.join(2, gpu=1)
    assert bench.seqs(2) == [0]
    assert why(bench, 1) == "waiting: no engine has gpu=1 and mem=2"
    bench.join(3, gpu=1, mem=2)
    bench.run_all()
    assert bench.ended_at[bench.CLIENT, 1] == 3


def test_a_target_without_the_resource_is_impossible(bench: Any) -> None:
    """No engine that is still to come could be the target."""
    bench.join(0, 1)
    bench.submit(0, 1, targets=[0, 1], resources={"gpu": 1})
    assert bench.error(0).ename == "ImpossibleDependency"
    assert "none of its targets has gpu=1" in bench.error(0).evalue


def test_tasks_that_nobody_may_run_do_not_upset_the_level(bench: Any) -> None:
    """Work is shared evenly among idle engines though a thousand tasks wait for a resource."""
    bench.join(0, 1)
    bench.warm()
    bench.submit(0, 1000, resources={"gpu": 1})
    bench.submit(1000, 10)
    assert len(bench.held[0]) == len(bench.held[1]) == 5


# -- timeouts ---------------------------------------------------------------------------------


def test_what_has_found_no_place_in_time_ends(bench: Any) -> None:
    """`timeout_s` bounds the wait for a place and not the run; the error says what was waited
    for.
    """
    bench.join(0)
    bench.submit(0, 3, timeout_s=2.0)
    bench.submit(3, 1, timeout_s=2.0, resources={"gpu": 1})
    bench.submit(4, 1, timeout_s=2.0, after=Dependency([TaskRange(bench.CLIENT, 0, 1)]))
    pass_time(bench, 1.9)
    assert not bench.ended
    assert max(bench.wakes) == pytest.approx(102.0)
    pass_time(bench, 0.1)
    assert {bench.error(seq).ename for seq in (1, 2, 3, 4)} == {"TaskTimeout"}
    assert "no place within its timeout of 2 s: engine 0 had other things" in bench.error(1).evalue
    assert "no engine has gpu=1" in bench.error(3).evalue
    assert "has not ended (after)" in bench.error(4).evalue
    pass_time(bench, 100)
    bench.answer(0)
    assert bench.ended[bench.CLIENT, 0][0] == m.OK


def test_each_attempt_has_its_own_time(bench: Any) -> None:
    """A task that ran and failed waits for its next attempt as long as for the first."""
    bench.join(0)
    bench.submit(0, 1, retries=1, timeout_s=2.0)
    pass_time(bench, 1.5)
    bench.places = False
    bench.answer(0, status=m.FAILED)
    pass_time(bench, 1.0)
    assert not bench.ended
    pass_time(bench, 1.1)
    assert bench.error(0).ename == "TaskTimeout"


def test_timeouts_that_nobody_needs_any_more_are_forgotten(bench: Any) -> None:
    """A hundred thousand calls with a timeout of an hour that all ran leave nothing behind."""
    bench.join(0)
    bench.places = False
    for seq in range(5000):
        bench.submit(seq, 1, timeout_s=3600.0) if seq < 5 else _submit_unchecked(bench, seq)
        if seq % 100 == 99:
            bench.core.handle(ev.PlaceEvent(), bench.now)
            _end_all_unchecked(bench)
    assert len(bench.core.state.timeouts) < 2100


def _submit_unchecked(bench: Any, seq: int) -> None:
    group, frames = bench.make_group(seq, 1, timeout_s=3600.0)
    bench.core.handle(ev.SubmitEvent(bench.CLIENT, [group], [frames]), bench.now)


def _end_all_unchecked(bench: Any) -> None:
    engine = bench.core.state.engines[0]
    while engine.head is not None:
        piece = engine.head
        tasks = [
            (bench.CLIENT, piece.group.seq(piece.start) + i, 0, piece.ordinal + i)
            for i in range(piece.n_tasks)
        ]
        bench.core.handle(bench.results(0, tasks), bench.now)
        bench.core.handle(ev.PlaceEvent(), bench.now)


# -- turned down ------------------------------------------------------------------------------


def test_a_task_turned_down_goes_elsewhere_at_no_charge(bench: Any) -> None:
    """An engine that answers UNMET never gets the task again; attempts are not counted."""
    bench.join(0, 1, 2)
    bench.submit(0, 1)
    seen = []
    for _ in range(2):
        [engine] = [engine for engine, held in bench.held.items() if held]
        assert bench.held[engine][0][2] == 0
        seen.append(engine)
        bench.answer(engine, status=m.UNMET)
    bench.run_all()
    assert bench.ended[bench.CLIENT, 0][0] == m.OK
    assert bench.ended_at[bench.CLIENT, 0] not in seen


def test_when_all_have_turned_it_down_the_task_ends(bench: Any) -> None:
    """Nothing waits for ever without saying so: the error names the engines and the last reason."""
    bench.join(0, 1)
    bench.submit(0, 1, retries=3)
    for _ in range(2):
        [engine] = [engine for engine, held in bench.held.items() if held]
        bench.answer(engine, status=m.UNMET)
    error = bench.error(0)
    assert error.ename == "ImpossibleDependency"
    assert "every engine that may run the task has turned it down (0, 1): UnmetDependency: no" in (
        error.evalue
    )


def test_with_a_timeout_a_task_turned_down_waits_for_new_engines(bench: Any) -> None:
    """A timeout is for those who expect more engines; then it is TaskTimeout that ends the wait."""
    bench.join(0)
    bench.submit(0, 2, timeout_s=10.0)
    bench.answer(0, status=m.UNMET)
    bench.answer(0, status=m.UNMET)
    assert why(bench, 0) == "waiting: all engines that may run it have turned it down (0)"
    bench.join(1)
    assert bench.seqs(1) == [0]
    bench.answer(1, status=m.UNMET)
    bench.answer(1)
    assert bench.ended_at[bench.CLIENT, 1] == 1
    pass_time(bench, 10.1)
    assert bench.error(0).ename == "TaskTimeout"


def test_when_all_targets_have_turned_it_down_a_timeout_does_not_help(bench: Any) -> None:
    """No engine that comes later could be a target."""
    bench.join(0, 1)
    bench.submit(0, 1, targets=[1], timeout_s=100.0)
    bench.answer(1, status=m.UNMET)
    assert bench.error(0).ename == "ImpossibleDependency"
    assert "of 1, 1 turned it down: UnmetDependency" in bench.error(0).evalue


def test_after_a_death_a_task_turned_down_elsewhere_waits_for_the_replacement(bench: Any) -> None:
    """The only engine that would run it died and comes back with a new number: the task runs."""
    bench.join(0, 1)
    bench.places = False
    bench.submit(0, 1, retries=1)
    bench.feed(ev.PlaceEvent())
    [engine] = [engine for engine, held in bench.held.items() if held]
    bench.answer(engine, status=m.UNMET)
    bench.feed(ev.PlaceEvent())
    bench.places = True
    bench.lose(1 - engine)
    pass_time(bench, 1.0)
    assert not bench.ended
    bench.join(2)
    assert bench.seqs(2) == [0]
    bench.answer(2, status=m.UNMET)
    pass_time(bench, 5.0)
    assert bench.error(0).ename == "ImpossibleDependency"


def test_of_a_slice_only_what_was_turned_down_moves(bench: Any) -> None:
    """Values, failures and refusals in one message each go their way."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 4, timeout_s=9.0)
    tasks, bench.held[0] = bench.held[0], []
    bench.feed(bench.results(0, tasks, [m.OK, m.UNMET, m.FAILED, m.UNMET]))
    assert sorted(seq for client, seq in bench.ended if client == bench.CLIENT) == [0, 2]
    bench.join(1)
    assert bench.seqs(1) == [1, 3]


def test_a_cancelled_task_that_is_turned_down_ends_as_aborted(bench: Any) -> None:
    """Whoever took it back does not want it elsewhere."""
    bench.join(0, 1)
    bench.submit(0, 1)
    [engine] = [engine for engine, held in bench.held.items() if held]
    bench.feed(ev.CancelEvent(bench.CLIENT, [m.SeqRange(0, 1)]))
    bench.answer(engine, status=m.UNMET)
    assert bench.error(0).ename == "TaskAborted"


def test_a_direct_task_cannot_be_turned_down(bench: Any) -> None:
    """There is no other place for it: clients see a failure."""
    bench.join(0)
    bench.submit(0, 2, placement="direct", targets=[0, 0])
    bench.answer(0, status=m.UNMET)
    assert bench.ended[bench.CLIENT, 0][0] == m.FAILED
    assert bench.error(0).ename == "UnmetDependency"


def test_a_failed_task_comes_back_only_when_no_other_engine_is_left(bench: Any) -> None:
    """An engine that failed it is used again after all others have failed it, too, and before
    giving up.
    """
    bench.join(0, 1)
    bench.submit(0, 1, retries=5)
    [first] = [engine for engine, held in bench.held.items() if held]
    bench.answer(first, status=m.FAILED)
    assert bench.seqs(1 - first) == [0]
    bench.answer(1 - first, status=m.UNMET)
    assert bench.seqs(first) == [0]
    bench.answer(first)
    assert bench.ended[bench.CLIENT, 0][0] == m.OK


# -- cost -------------------------------------------------------------------------------------


def _calls(make_bench: Any, n_queued: int) -> list[int]:
    """Return how many calls some events take with so many tasks queued by each of two clients."""
    bench = make_bench()
    handle = bench.core.handle
    bench.join(*range(4))
    bench.warm()
    for client in (bench.CLIENT, bench.OTHER):
        for first in range(0, n_queued, 4096):
            group, frames = bench.make_group(first, min(4096, n_queued - first), retries=1)
            handle(ev.SubmitEvent(client, [group], [frames]), bench.now)
    n_calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    counts = []

    def measure(event: Any) -> Any:
        nonlocal n_calls
        n_calls = 0
        sys.setprofile(count)
        out = handle(event, bench.now)
        sys.setprofile(None)
        counts.append(n_calls)
        return out

    measure(ev.PlaceEvent())
    for _ in range(20):
        bench.now += 0.002
        engine = bench.core.state.engines[EngineId(1)]
        piece = engine.head
        tasks = [
            (piece.group.client, piece.group.seq(piece.start + i), 0, piece.ordinal + i)
            for i in range(5)
        ]
        out = measure(bench.results(1, tasks, [m.OK] * 4 + [m.FAILED]))
        assert any(isinstance(what, DeliverResults) for what in out)
        measure(ev.PlaceEvent())
    last = engine.next_ordinal - 1
    engine.recall = (last - 9, last)
    measure(ev.RecalledEvent(EngineId(1), last - 9, last))
    measure(ev.PlaceEvent())
    middle = n_queued // 2
    measure(ev.CancelEvent(bench.CLIENT, [m.SeqRange(middle, 3)]))
    measure(ev.EngineLeavingEvent(EngineId(3)))
    measure(ev.EngineLostEvent(EngineId(3), "it died"))
    measure(ev.PlaceEvent())
    return counts


def test_an_event_costs_the_same_with_a_million_tasks_queued(make_bench: Any) -> None:
    """Counted in function calls: results, retries, placing, recalls, cancelling and an engine's
    death take as many beside two thousand queued tasks as beside two million.
    """
    few, many = _calls(make_bench, 20_000), _calls(make_bench, 1_000_000)
    for before, after in zip(few, many, strict=True):
        assert after <= 1.5 * before + 40, (few, many)
