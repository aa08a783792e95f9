"""Tasks that wait for other tasks: `after` and `follow`."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.explaining import explain
from ipyfleet_controller.scheduler.group import State, TaskGroup
from ipyfleet_controller.scheduler.instructions import EndedTask
from ipyfleet_controller.scheduler.tracker import UNSURE
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import EngineId, format_msg_id
from ipyfleet_protocol.messages import Dependency, SeqRange, TaskRange


def on(bench: Any, *seqs: int, client: Any = None, **rule: bool) -> Dependency:
    """Return a dependency on single tasks."""
    return Dependency([TaskRange(client or bench.CLIENT, seq, 1) for seq in seqs], **rule)


def why(bench: Any, seq: int) -> str:
    """Return the last sentence about a task that has not ended."""
    told = explain(bench.core.state, bench.CLIENT, seq, bench.now)
    assert told is not None
    return str(told[-1])


def both(bench: Any) -> dict[int, int]:
    """Let two engines hold one task each; return which holds which: ``{seq: engine}``."""
    bench.join(0, 1)
    bench.submit(0, 1)
    bench.submit(1, 1)
    return {bench.seqs(engine)[0]: engine for engine in (0, 1)}


def test_a_task_waits_until_those_before_it_have_ended(bench: Any) -> None:
    """`after` holds tasks back though engines are idle, and lets them go at once when it is met."""
    at = both(bench)
    bench.submit(2, 3, after=on(bench, 0, 1))
    bench.answer(at[0])
    assert not bench.held[at[0]]
    assert why(bench, 3) == "waiting: 1 of 2 tasks have not ended (after)"
    bench.answer(at[1])
    assert bench.held[0]
    assert bench.held[1]
    bench.run_all()
    assert len(bench.ended) == 5


def test_one_of_several_is_enough_without_all(bench: Any) -> None:
    """With all=False the first task that ends as wanted lets go; failures before it do not."""
    at = both(bench)
    bench.submit(2, 1, after=on(bench, 0, 1, all=False))
    bench.answer(at[0], status=m.FAILED)
    assert bench.core.state.n_blocked == 1
    bench.answer(at[1])
    assert bench.core.state.n_blocked == 0
    bench.run_all()
    assert bench.ended[bench.CLIENT, 2][0] == m.OK


@pytest.mark.parametrize(
    ("success", "failure", "end", "runs"),
    [
        (True, False, m.OK, True),
        (True, False, m.FAILED, False),
        (True, False, m.ABORTED, False),
        (False, True, m.OK, False),
        (False, True, m.FAILED, True),
        (False, True, m.ABORTED, True),
        (True, True, m.FAILED, True),
        (True, True, m.OK, True),
    ],
)
@pytest.mark.parametrize("known", ["while it runs", "in its group", "long ago"])
def test_which_ends_count(
    bench: Any, success: bool, failure: bool, end: int, runs: bool, known: str
) -> None:
    """`success` wants values, `failure` errors and aborts; alike whether the task runs when the
    other is submitted, has ended while its group has not, or is only remembered.
    """
    bench.join(0)
    bench.submit(0, 2 if known == "in its group" else 1)
    dependency = on(bench, 0, success=success, failure=failure)
    if known == "while it runs":
        bench.submit(2, 1, after=dependency)
    bench.answer(0, status=end)
    if known != "while it runs":
        bench.submit(2, 1, after=dependency)
    assert ((bench.CLIENT, 2) in bench.ended) != runs
    bench.run_all()
    assert (bench.ended[bench.CLIENT, 2][0] == m.OK) == runs
    if not runs:
        error = bench.error(2)
        assert error.ename == "ImpossibleDependency"
        assert f"after: task {format_msg_id(bench.CLIENT, 0)}, which had to" in error.evalue


def test_a_failure_runs_through_a_graph(bench: Any) -> None:
    """What depends on a task that cannot run cannot run either; what waits for failures can."""
    bench.join(0)
    bench.submit(0, 1)
    bench.submit(1, 1, after=on(bench, 0))
    bench.submit(2, 1, after=on(bench, 1))
    bench.submit(3, 1, after=on(bench, 2, success=False, failure=True))
    bench.submit(4, 1, after=on(bench, 2, 3, all=False))
    bench.answer(0, status=m.FAILED)
    assert [bench.error(seq).ename for seq in (1, 2)] == ["ImpossibleDependency"] * 2
    bench.run_all()
    assert [bench.ended[bench.CLIENT, seq][0] for seq in (3, 4)] == [m.OK] * 2


def test_a_chain_of_thousands_fails_without_recursion(make_bench: Any) -> None:
    """Failing the first of a long chain ends all others, in few messages, in one event."""
    bench = make_bench()
    bench.join(0)
    bench.submit(0, 1)
    n = 20_000
    group, frames = bench.make_group(1, 1)
    for seq in range(1, n):
        link = m.Group(seq, 1, m.Options(after=on(bench, seq - 1)), group.function, group.columns)
        bench.core.handle(ev.SubmitEvent(bench.CLIENT, [link], [frames]), bench.now)
    assert bench.core.state.n_blocked == n - 1
    out = bench.core.handle(bench.results(0, bench.held[0], [m.FAILED]), bench.now)
    ended = [piece for what in out for piece in what.message.slices]
    assert sum(piece.count for piece in ended) == n
    assert len(out) < n / 500
    assert bench.core.state.n_blocked == 0


def test_a_cancelled_task_is_a_failure_for_those_that_wait(bench: Any) -> None:
    """Cancelling a task that waits ends what depends on it; blocked tasks can be cancelled, too."""
    bench.join(0)
    bench.submit(0, 3)
    bench.submit(3, 4, after=on(bench, 2))
    bench.submit(7, 1, after=on(bench, 3))
    bench.submit(8, 1, after=on(bench, 5))
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(3, 1)]))
    assert bench.error(3).ename == "TaskAborted"
    assert "was aborted" in bench.error(7).evalue
    assert bench.core.state.n_blocked == 4
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(2, 1)]))
    assert [bench.error(seq).ename for seq in (4, 5, 6, 8)] == ["ImpossibleDependency"] * 4


def test_dependencies_reach_across_clients_and_placements(bench: Any) -> None:
    """A task may wait for one of another client, and for a direct one."""
    bench.join(0, 1)
    bench.submit(0, 1, bench.OTHER, placement="direct", targets=[1])
    bench.submit(0, 2, follow=on(bench, 0, client=bench.OTHER))
    assert not bench.held[0]
    bench.answer(1)
    assert bench.seqs(1) == [0, 1]
    assert not bench.held[0]


def test_invalid_dependencies_are_answered_at_once(bench: Any) -> None:
    """A task that nobody knows, one that is still to come, and the task itself."""
    bench.join(0)
    bench.submit(0, 1)
    bench.submit(1, 1, after=on(bench, 7))
    assert bench.error(1).ename == "InvalidDependency"
    assert f"{format_msg_id(bench.CLIENT, 7)} is not known; no such" in bench.error(1).evalue
    bench.submit(2, 3, follow=on(bench, 4))
    assert "cannot wait for itself" in bench.error(3).evalue
    bench.submit(5, 1, after=on(bench, 0, client=bench.OTHER))
    assert bench.error(5).ename == "InvalidDependency"
    bench.submit(6, 1, after=Dependency([TaskRange(bench.CLIENT, 0, 10)]))
    assert bench.error(6).ename == "InvalidDependency"
    assert bench.core.state.n_blocked == 0


def test_calls_in_one_message_may_depend_on_one_another(bench: Any) -> None:
    """Groups of one message are taken in one after the other, an ended one as such."""
    bench.join(0)
    groups = [
        bench.make_group(0, 1),
        bench.make_group(1, 1, after=on(bench, 0)),
        bench.make_group(2, 1, after=on(bench, 9)),
        bench.make_group(3, 1, after=on(bench, 2)),
    ]
    bench.feed(ev.SubmitEvent(bench.CLIENT, [g for g, _ in groups], [f for _, f in groups]))
    assert bench.error(2).ename == "InvalidDependency"
    assert bench.error(3).ename == "ImpossibleDependency"
    bench.run_all()
    assert bench.ended[bench.CLIENT, 1][0] == m.OK


# -- follow -----------------------------------------------------------------------------------


def test_a_task_follows_another_to_its_engine(bench: Any) -> None:
    """`follow` waits for the tasks' ends, then for their engine, however busy that is."""
    at = both(bench)
    bench.submit(2, 2, follow=on(bench, 0))
    bench.submit(4, 1)
    bench.answer(at[1])
    assert bench.seqs(at[1]) == [4]
    bench.answer(at[0])
    assert bench.seqs(at[0])[0] == 2
    bench.run_all()
    assert [bench.ended_at[bench.CLIENT, seq] for seq in (2, 3)] == [at[0]] * 2


def test_one_cannot_follow_to_two_engines_at_once(bench: Any) -> None:
    """With all=True and tasks that ran at two engines there is no place; it is said at once."""
    at = both(bench)
    bench.submit(2, 1, follow=on(bench, 0, 1))
    bench.answer(at[0])
    bench.answer(at[1])
    assert bench.error(2).ename == "ImpossibleDependency"
    assert "follow: the tasks that it is to follow, all of them, ran on engines 0, 1" in (
        bench.error(2).evalue
    )
    bench.submit(3, 1, follow=on(bench, 0, 1))
    assert bench.error(3).ename == "ImpossibleDependency"


def test_following_any_gains_places_as_tasks_end(bench: Any) -> None:
    """With all=False each task that ends as wanted adds its engine, though some wait already."""
    at = both(bench)
    bench.submit(2, 3, follow=on(bench, 0, 1, all=False))
    bench.answer(at[0])
    assert bench.seqs(at[0]) == [2, 3]
    bench.answer(at[1])
    assert bench.seqs(at[1]) == [4]


def test_a_place_that_is_gone_may_be_followed_by_another(bench: Any) -> None:
    """When the engine of the one dies, tasks wait for the other; when that one is gone too, or
    ended otherwise, they end.
    """
    at = both(bench)
    bench.submit(2, 1, follow=on(bench, 0, 1, all=False))
    bench.places = False
    bench.answer(at[0])
    bench.lose(at[0])
    assert "are gone; others have not" in why(bench, 2)
    bench.answer(at[1], status=m.FAILED)
    assert bench.error(2).ename == "ImpossibleDependency"
    assert f"ran on engine {at[0]}, which it cannot run on" in bench.error(2).evalue


def test_a_lost_engine_cannot_be_followed_to(bench: Any) -> None:
    """Following to an engine that is gone is impossible, before and after submission."""
    at = both(bench)
    bench.answer(at[0])
    bench.lose(at[0], "it left")
    bench.submit(2, 1, follow=on(bench, 0))
    assert bench.error(2).ename == "ImpossibleDependency"
    assert "it left" in bench.error(2).evalue
    bench.places = False
    bench.submit(3, 1, targets=[at[0], at[1]], follow=on(bench, 1))
    bench.answer(at[1])
    bench.lose(at[1])
    assert bench.error(3).ename == "ImpossibleDependency"


def test_who_ran_nowhere_cannot_be_followed(bench: Any) -> None:
    """A task that was cancelled before it ran counts for `after`, and is no place to follow to."""
    bench.join(0)
    bench.submit(0, 3)
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(2, 1)]))
    bench.submit(3, 1, after=on(bench, 2, success=False, failure=True))
    bench.submit(4, 1, follow=on(bench, 2, success=False, failure=True))
    assert "ran on no engine" in bench.error(4).evalue
    bench.run_all()
    assert bench.ended[bench.CLIENT, 3][0] == m.OK


def test_many_that_wait_for_the_same_share_one_tracker(bench: Any) -> None:
    """A thousand calls after one map cost one count per end, not a thousand."""
    bench.join(0)
    bench.places = False
    bench.submit(0, 100)
    whole = Dependency([TaskRange(bench.CLIENT, 0, 100)])
    for seq in range(100, 300):
        bench.submit(seq, 1, after=whole)
    bench.feed(ev.PlaceEvent())
    tasks, bench.held[0] = bench.held[0], []
    bench.feed(bench.results(0, tasks))
    assert len(bench.core.state.groups[bench.CLIENT].live()[0].watches._ranges) == 1
    bench.feed(ev.PlaceEvent())
    bench.places = True
    bench.run_all()
    assert len(bench.ended) == 300


def test_without_engines_released_tasks_do_not_wait_for_ever(bench: Any) -> None:
    """Tasks whose turn comes when no engine is left end like any others."""
    bench.join(0)
    bench.submit(0, 1)
    bench.submit(1, 1, after=on(bench, 0, success=False, failure=True))
    bench.lose(0)
    assert (bench.CLIENT, 1) not in bench.ended
    bench.now = max(bench.wakes)
    bench.feed(ev.TickEvent())
    assert bench.error(1).ename == "NoEnginesRegistered"
    assert bench.core.state.live_ids() == frozenset[EngineId]()


# -- tasks that only the records know ---------------------------------------------------------


def test_forgotten_tasks_are_looked_up(bench: Any) -> None:
    """What the controller does not know is asked of the records, and the task waits meanwhile."""
    bench.join(0, 1)
    bench.records = None
    bench.submit(0, 2, follow=on(bench, 5, 6, client=bench.OTHER))
    [question] = bench.questions
    assert question.tasks == [TaskRange(bench.OTHER, 5, 1), TaskRange(bench.OTHER, 6, 1)]
    assert why(bench, 0) == "waiting: the records are asked how tasks ended that it depends on"
    found = [EndedTask(bench.OTHER, 4, 8, State.OK, EngineId(1))]
    for key in ((bench.OTHER, 5), (bench.OTHER, 6)):
        bench.ended[key], bench.ended_at[key] = (m.OK, b""), 1
    bench.feed(ev.EndedFoundEvent(question.number, found))
    assert bench.seqs(1) == [0]
    assert not bench.held[0]
    bench.run_all()


def test_a_failure_in_the_records_counts(bench: Any) -> None:
    """What was found to have failed is impossible; what was not found is invalid."""
    bench.join(0)
    bench.records = [EndedTask(bench.OTHER, 3, 4, State.FAILED, EngineId(0))]
    bench.submit(0, 1, after=on(bench, 3, client=bench.OTHER))
    bench.submit(1, 1, after=on(bench, 0))
    bench.submit(2, 1, after=on(bench, 4, client=bench.OTHER))
    assert [bench.error(seq).ename for seq in range(3)] == [
        "ImpossibleDependency",
        "ImpossibleDependency",
        "InvalidDependency",
    ]


def test_what_is_looked_up_can_be_cancelled_and_times_out(bench: Any) -> None:
    """Records that do not answer keep nobody waiting for ever; a late answer does no harm."""
    bench.join(0)
    bench.records = None
    bench.submit(0, 2, after=on(bench, 9, client=bench.OTHER))
    bench.submit(2, 1, after=on(bench, 9, client=bench.OTHER), timeout_s=1.0)
    bench.feed(ev.CancelEvent(bench.CLIENT, [SeqRange(1, 1)]))
    assert bench.error(1).ename == "TaskAborted"
    bench.now += 1.0
    bench.feed(ev.TickEvent())
    assert "the records are asked" in bench.error(2).evalue
    for question in bench.questions:
        bench.feed(ev.EndedFoundEvent(question.number, []))
    assert bench.error(0).ename == "InvalidDependency"
    assert len(bench.ended) == 3


def test_who_is_only_taken_to_have_ended_well_is_looked_up_too(bench: Any) -> None:
    """After a restart a client does not submit again what has ended: the records know how. Where
    they do not, it is taken to have ended well, nowhere.
    """
    bench.join(0)
    group, frames = bench.make_group(10, 1)
    bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
    gap = bench.make_group(0, 10)
    tasks = TaskGroup(bench.CLIENT, gap[0], gap[1].payload)
    tasks.states[:] = bytes((State.OK,)) * 10
    bench.core.state.ended.note(tasks, UNSURE)
    bench.records = [EndedTask(bench.CLIENT, 2, 3, State.FAILED, EngineId(0))]
    group, frames = bench.make_group(11, 1, after=on(bench, 2))
    bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
    assert bench.error(11).ename == "ImpossibleDependency"
    group, frames = bench.make_group(12, 1, after=on(bench, 3))
    bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
    bench.run_all()
    assert bench.ended[bench.CLIENT, 12][0] == m.OK
    group, frames = bench.make_group(13, 1, follow=on(bench, 4))
    bench.feed(ev.SubmitEvent(bench.CLIENT, [group], [frames]))
    assert "not known any more" in bench.error(13).evalue
