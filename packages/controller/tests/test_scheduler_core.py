"""The scheduler's behaviour, event by event."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.group import TRANSITIONS, IllegalTransition, State, TaskGroup
from ipyfleet_controller.scheduler.instructions import DeliverResults, Refuse, SendTasks
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import EngineId
from ipyfleet_protocol.messages import PlacedRange, SeqRange


def test_an_engine_gets_one_task_of_an_unknown_kind_then_up_to_twice_as_many(bench: Any) -> None:
    """Slices start with one task and at most double while as many come back."""
    bench.join(0)
    bench.submit(0, 10_000)
    bench.run_all(task_s=1e-6)
    sizes = bench.sizes[0]
    assert sizes[0] == 1
    held = 1
    for size in sizes[1:]:
        assert size <= 2 * held
        held = max(held, size)
    assert held > 500
    assert len(bench.ended) == 10_000


def test_prefetch_is_measured_in_time(bench: Any) -> None:
    """Of tasks of 1 ms an engine holds about ten, of tasks of 1 s one."""
    bench.join(0)
    bench.submit(0, 500)
    while len(bench.ended) < 400:
        bench.answer(0, task_s=1e-3)
    assert 5 <= len(bench.held[0]) <= 11
    bench.submit(500, 100, digest=b"slow" * 4)
    while len(bench.ended) < 520:
        bench.answer(0, task_s=1.0 if bench.held[0][0][1] >= 500 else 1e-3)
    assert len(bench.held[0]) == 1


def test_hwm_bounds_what_an_engine_holds(make_bench: Any) -> None:
    """With hwm=1 an engine never holds two tasks."""
    bench = make_bench(hwm=1)
    bench.join(0, 1)
    bench.submit(0, 50)
    while len(bench.ended) < 50:
        assert all(len(held) <= 1 for held in bench.held.values())
        for engine in (0, 1):
            bench.answer(engine, task_s=1e-6)


def test_direct_tasks_are_sent_at_once_and_in_order(bench: Any) -> None:
    """Direct tasks reach their engine in the order of submission, ahead of waiting balanced
    ones.
    """
    bench.join(0, 1)
    bench.submit(0, 100)
    bench.submit(100, 4, placement="direct", targets=[0, 1, 0, 1], method="execute", shared=True)
    bench.submit(104, 2, placement="direct", targets=[0, 0], method="execute")
    assert bench.seqs(0)[-4:] == [100, 102, 104, 105]
    assert bench.seqs(1)[-2:] == [101, 103]


def test_without_engines_balanced_tasks_fail_at_once(bench: Any) -> None:
    """A balanced task with no engine in the cluster ends as NoEnginesRegistered."""
    bench.submit(0, 3)
    assert [bench.error(seq).ename for seq in range(3)] == ["NoEnginesRegistered"] * 3
    assert bench.error(0).own


def test_direct_tasks_to_unknown_engines_name_the_engine(bench: Any) -> None:
    """A direct task to an engine that is not there fails at once and says which it was."""
    bench.join(0)
    bench.submit(0, 2, placement="direct", targets=[0, 7], method="execute")
    assert bench.seqs(0) == [0]
    assert bench.error(1).ename == "EngineError"
    assert "no engine 7" in bench.error(1).evalue
    assert "the engines are 0" in bench.error(1).evalue


def test_an_engines_death_fails_what_ran_and_moves_what_waited(bench: Any) -> None:
    """The running balanced task ends as EngineError with the reason; the others run elsewhere."""
    bench.join(0)
    bench.submit(0, 40)
    for _ in range(5):
        bench.answer(0, 1000, task_s=1e-6)
    bench.submit(40, 20)
    running = bench.seqs(0)[0]
    assert len(bench.seqs(0)) > 1
    bench.join(1)
    bench.lose(0, "killed by SIGKILL")
    bench.run_all()
    assert "killed by SIGKILL" in bench.error(running).evalue
    assert bench.error(running).ename == "EngineError"
    assert [s for (_, seq), (s, _) in bench.ended.items() if seq != running] == [m.OK] * 59


def test_the_task_that_the_agent_names_is_blamed(bench: Any) -> None:
    """When it is known which task ran, that one fails, and not the oldest unanswered one."""
    bench.join(0, 1)
    bench.submit(0, 3, placement="direct", targets=[0, 0, 0], method="execute")
    bench.submit(3, 64)
    for _ in range(6):
        bench.answer(1, 1000, task_s=1e-6)
    bench.answer(0, 3)
    bench.submit(67, 64)
    held = bench.held[0]
    assert len(held) > 2
    blamed = held[2]
    bench.lose(0, "exit code 3", running=blamed[3])
    bench.run_all()
    assert bench.error(blamed[1]).ename == "EngineError"
    assert bench.ended[held[0][0], held[0][1]][0] == m.OK


def test_a_failed_task_with_retries_runs_on_another_engine(bench: Any) -> None:
    """A failure is not told while attempts are left; the next attempt avoids the engine that
    failed.
    """
    bench.join(0, 1)
    bench.submit(0, 1, retries=2)
    first = next(engine for engine in (0, 1) if bench.held[engine])
    bench.answer(first, status=m.FAILED)
    assert not bench.ended
    other = 1 - first
    assert bench.held[other][0][1:3] == (0, 1)
    bench.answer(other, status=m.FAILED)
    [engine] = [engine for engine in (0, 1) if bench.held[engine]]
    bench.answer(engine, status=m.FAILED)
    assert bench.error(0).ename == "ValueError"


def test_of_a_slice_only_the_failures_run_again(bench: Any) -> None:
    """Results of a slice in which some tasks failed and have attempts left go on without these."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 64, retries=1)
    tasks = bench.held[0][:4]
    bench.held[0] = bench.held[0][4:]
    bench.feed(bench.results(0, tasks, [m.OK, m.FAILED, m.OK, m.FAILED]))
    ended = [(task[0], task[1]) in bench.ended for task in tasks]
    assert ended == [True, False, True, False]
    bench.run_all()
    assert all((bench.CLIENT, seq) in bench.ended for seq in range(64))


def test_tasks_behind_a_long_one_are_recalled(bench: Any) -> None:
    """When an engine hangs in a task and another is idle, everything behind that task moves."""
    bench.join(0, 1)
    bench.warm()
    bench.submit(0, 256)
    hangs, *behind = bench.seqs(0)
    bench.answer(1, 1000, task_s=1e-6)
    assert 0 not in bench.recalls
    bench.now = max(bench.wakes)
    bench.feed(ev.PlaceEvent())
    bench.give_back(0)
    assert bench.seqs(0) == [hangs]
    assert bench.seqs(1) == behind


def test_a_recall_that_brings_nothing_is_not_repeated_at_once(bench: Any) -> None:
    """An engine that gave nothing back is left alone for a while."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 64)
    bench.join(1)
    bench.now += 0.003
    bench.feed(ev.PlaceEvent())
    bench.give_back(0, everything=False)
    bench.feed(ev.PlaceEvent())
    assert 0 not in bench.recalls
    bench.now = max(bench.wakes) + 0.001
    bench.feed(ev.PlaceEvent())
    assert 0 in bench.recalls


def test_an_engine_that_makes_progress_keeps_its_part(bench: Any) -> None:
    """From an engine with much to do and an idle one beside it, half of the work moves."""
    bench.join(0)
    bench.warm()
    bench.submit(0, 1000)
    assert len(bench.held[0]) == 1000
    bench.join(1)
    assert 0 in bench.recalls
    bench.give_back(0)
    assert 490 < len(bench.held[0]) < 510
    assert 490 < len(bench.held[1]) < 510


def test_cancelled_tasks_that_wait_end_as_aborted(bench: Any) -> None:
    """Cancel ends what waits and asks engines to drop what they hold."""
    bench.join(0)
    bench.submit(0, 10)
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(0, 10)]))
    assert {bench.error(seq).ename for seq in range(1, 10)} == {"TaskAborted"}
    [drop] = bench.drops
    assert (drop.client, drop.ranges) == (bench.CLIENT, [PlacedRange(0, 1, 0)])
    bench.answer(0)
    assert bench.ended[bench.CLIENT, 0][0] == m.OK


def test_stale_results_are_dropped(bench: Any) -> None:
    """A result for an ordinal that is not outstanding reaches nobody."""
    bench.join(0)
    bench.submit(0, 1)
    event = bench.results(0, bench.held[0])
    bench.answer(0)
    assert bench.core.handle(event, bench.now) == []


def test_results_that_are_all_good_are_forwarded_untouched(bench: Any) -> None:
    """The usual results message is not taken apart."""
    bench.join(0)
    bench.submit(0, 1)
    event = bench.results(0, bench.held[0])
    [deliver] = bench.core.handle(event, bench.now)
    assert isinstance(deliver, DeliverResults)
    assert deliver.untouched
    assert deliver.message is event.message


def test_a_function_travels_to_each_engine_once(bench: Any) -> None:
    """The body is attached for an engine that lacks it, and only then."""
    bench.join(0)
    sent = []
    for first, body in ((0, True), (1, False), (2, True)):
        group, frames = _group(first, body)
        out = bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
        [run] = [what for what in out if isinstance(what, SendTasks)]
        sent.append((run.slices[0].function.frames, run.frames[:-1]))
        bench.answer(0)
    assert sent == [(1, [b"body"]), (0, []), (0, [])]


def test_a_function_nobody_sent_fails_the_task(bench: Any) -> None:
    """A digest without a body that is not known ends the tasks with an error, not with silence."""
    bench.join(0)
    bench.submit(0, 2, body=False)
    assert bench.error(1).ename == "KernelError"


def _group(first: int, body: bool) -> Any:
    from ipyfleet_protocol.codec import SliceFrames
    from ipyfleet_protocol.columns import PayloadWriter

    writer = PayloadWriter()
    writer.append(b"args")
    columns, frames = writer.finish()
    function = m.Function(b"f" * 16, "f", True, "", int(body))
    return (
        m.Group(first, 1, m.Options(), function, columns),
        SliceFrames([b"body"] if body else [], frames),
    )


def test_payloads_are_freed_when_the_last_task_has_ended(bench: Any) -> None:
    """Nothing of a group stays in the scheduler once it has ended."""
    bench.join(0)
    bench.submit(0, 100)
    [group] = bench.core.state.groups[bench.CLIENT].live()
    bench.run_all(task_s=1e-6)
    assert group.frames is None
    bench.feed(ev.ClientLeftEvent(bench.CLIENT))
    assert len(bench.core.state.functions) == 0


def test_a_small_client_does_not_wait_for_a_big_one(bench: Any) -> None:
    """Clients take turns: ten tasks beside twenty thousand are soon done."""
    bench.join(0)
    for first in range(0, 20_000, 10_000):
        bench.core.handle(_big(first), bench.now)
    bench.submit(0, 10, bench.OTHER)
    for _ in range(12):
        bench.answer(0, 1000, task_s=1e-5)
    assert sum(client == bench.OTHER for client, _ in bench.ended) == 10


def _big(first: int) -> ev.SubmitEvent:
    from ipyfleet_protocol.codec import SliceFrames
    from ipyfleet_protocol.columns import PayloadWriter
    from ipyfleet_protocol.ids import PeerId

    writer = PayloadWriter()
    writer.extend([b"x"] * 10_000)
    columns, frames = writer.finish()
    function = m.Function(b"f" * 16, "f", True, "", 1)
    group = m.Group(first, 10_000, m.Options(), function, columns)
    return ev.SubmitEvent(PeerId(b"client-" + b"0" * 9), [group], [SliceFrames([b"body"], frames)])


def test_tasks_wait_a_while_for_a_new_engine_when_the_last_one_died(bench: Any) -> None:
    """After the last engine's death queued tasks run on one that joins soon, else they fail."""
    bench.join(0)
    bench.submit(0, 3)
    bench.lose(0)
    bench.submit(3, 1)
    assert len(bench.ended) == 1
    bench.now += 1.0
    bench.feed(ev.TickEvent())
    bench.join(1)
    bench.run_all()
    assert len(bench.ended) == 4
    bench.submit(4, 2)
    bench.lose(1)
    bench.now = max(bench.wakes)
    bench.feed(ev.TickEvent())
    assert bench.error(5).ename == "NoEnginesRegistered"


def test_tasks_whose_targets_are_gone_fail(bench: Any) -> None:
    """A balanced task that may only run on engines that died cannot wait for them."""
    bench.join(0, 1)
    bench.submit(0, 3, targets=[1])
    bench.lose(1, "it left")
    assert bench.error(2).ename == "EngineError"
    assert "it left" in bench.error(2).evalue
    bench.submit(3, 1, targets=[1, 5])
    assert "its targets are 1, 5" in bench.error(3).evalue


def test_nothing_is_placed_at_an_engine_that_leaves(bench: Any) -> None:
    """Between the news of an engine's end and the end, it gets nothing and its results count."""
    bench.join(0, 1)
    bench.submit(0, 2, placement="direct", targets=[0, 0], method="execute")
    bench.feed(ev.EngineLeavingEvent(EngineId(0)))
    bench.submit(2, 2)
    assert bench.seqs(0) == [0, 1]
    bench.answer(0)
    assert bench.ended[bench.CLIENT, 0][0] == m.OK


def test_sequence_numbers_must_grow(bench: Any) -> None:
    """A group that overlaps an earlier one is refused."""
    bench.join(0)
    bench.submit(5, 5)
    group, frames = _group(7, True)
    out = bench.core.handle(ev.SubmitEvent(bench.CLIENT, [group], [frames]), bench.now)
    assert [type(instruction) for instruction in out] == [Refuse]


def test_the_story_of_a_task_tells_where_it_was(bench: Any) -> None:
    """`story` names each step of one task."""
    bench.join(3)
    bench.submit(0, 1)
    steps = [step.split(" ", 1)[1] for step in bench.core.story(bench.CLIENT, 0)]
    assert steps == ["submitted", "placed at engine 3", "PLACED"]


@pytest.mark.parametrize("source", State)
@pytest.mark.parametrize("target", State)
def test_only_the_transitions_of_the_table_are_possible(source: State, target: State) -> None:
    """A task goes where the table says or the attempt raises and changes nothing."""
    from ipyfleet_protocol.ids import PeerId

    group, frames = _group(0, True)
    tasks = TaskGroup(PeerId(b"c" * 16), group, frames.payload)
    tasks.states[0] = source
    if target in TRANSITIONS[source]:
        tasks.move(0, 1, source, target)
        assert tasks.states[0] == target
    else:
        with pytest.raises(IllegalTransition):
            tasks.move(0, 1, source, target)
        assert tasks.states[0] == source
