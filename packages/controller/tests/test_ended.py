"""What is remembered of tasks that have ended."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_controller.scheduler.ended import EndedTasks, runs_of
from ipyfleet_controller.scheduler.group import State, TaskGroup
from ipyfleet_controller.scheduler.tracker import NOWHERE
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import PeerId
from ipyfleet_testing.calls import PythonCalls

CLIENT = PeerId(b"client-" + b"0" * 9)
OTHER = PeerId(b"client-" + b"1" * 9)


@pytest.fixture(scope="module")
def make_tasks() -> Any:
    """Returns a group whose tasks have ended as said, each at the engine said."""

    def make(
        first: int, states: Sequence[int], engines: Sequence[int], client: PeerId = CLIENT
    ) -> TaskGroup:
        columns = m.Columns(bytes(4 * len(states)))
        group = m.Group(first, len(states), m.Options(), None, columns)
        tasks = TaskGroup(client, group, [b""])
        tasks.states[:] = bytes(states)
        for index, engine in enumerate(engines):
            if engine >= 0:
                tasks.note_place(index, index + 1, engine)
        return tasks

    return make


def _one_by_one(ended: EndedTasks, client: PeerId, first: int, end: int) -> dict[int, Any]:
    return {
        seq: (int(state), int(engine))
        for low, high, state, engine in ended.find(client, first, end)
        for seq in range(low, high)
    }


@given(data=st.data())
def test_it_remembers_how_and_where_each_task_ended(make_tasks: Any, data: Any) -> None:
    """Whatever groups end in whatever order, each task is found as it ended, and no other."""
    ended = EndedTasks()
    expected: dict[int, tuple[int, int]] = {}
    groups = []
    first = 0
    for _ in range(data.draw(st.integers(1, 6))):
        first += data.draw(st.integers(0, 3))
        ends = data.draw(
            st.lists(st.tuples(st.sampled_from([2, 3, 4]), st.integers(-1, 2)), min_size=1)
        )
        groups.append(make_tasks(first, [s for s, _ in ends], [e for _, e in ends]))
        expected |= {first + i: end for i, end in enumerate(ends)}
        first += len(ends)
    for group in data.draw(st.permutations(groups)):
        ended.note(group)
    assert _one_by_one(ended, CLIENT, 0, first + 5) == expected
    low = data.draw(st.integers(0, first))
    high = data.draw(st.integers(low, first))
    assert _one_by_one(ended, CLIENT, low, high) == {
        seq: end for seq, end in expected.items() if low <= seq < high
    }
    assert not ended.find(OTHER, 0, first)


def test_of_a_group_only_what_has_ended_is_told(make_tasks: Any) -> None:
    """Tasks that wait or run are left out; those that ended without an engine are nowhere."""
    group = make_tasks(10, [0, 1, 2, 2, 3, 4], [-1, -1, 5, 5, 5, -1])
    assert list(runs_of(group, 0, 6)) == [
        (12, 13, State.OK, 5),
        (13, 14, State.OK, 5),
        (14, 15, State.FAILED, 5),
        (15, 16, State.ABORTED, NOWHERE),
    ]
    assert list(runs_of(group, 3, 5)) == [(13, 14, State.OK, 5), (14, 15, State.FAILED, 5)]


def test_a_task_that_has_ended_costs_some_bytes(make_tasks: Any) -> None:
    """Placed a hundred at a time a task costs less than a byte; at worst, each at another engine
    than its neighbours, 21 and what arrays keep in reserve.
    """
    usual, worst, count = EndedTasks(), EndedTasks(), 200_000
    lots = Random(0)
    for first in range(0, count, 4000):
        group = make_tasks(first, [2] * 4000, ())
        for start in range(0, 4000, 100):
            group.note_place(start, start + 100, lots.randrange(8))
        usual.note(group)
        worst.note(make_tasks(first, [2] * 4000, [seq % 4 for seq in range(4000)]))
    usual.tidy()
    worst.tidy()
    assert _size(usual) < count / 2
    assert _size(worst) < 25 * count
    assert worst.find(CLIENT, count - 1, count) == [(count - 1, count, State.OK, 3)]


def test_the_last_result_of_a_group_does_not_wait_for_the_books(make_tasks: Any) -> None:
    """However its tasks are spread over engines, noting it is one step; who asks sees it noted."""
    ended = EndedTasks()
    group = make_tasks(0, [2] * 1000, [seq % 4 for seq in range(1000)])
    with PythonCalls() as calls:
        ended.note(group)
    assert calls == ["note"]
    assert ended.find(CLIENT, 998, 999) == [(998, 999, State.OK, 2)]


def _size(ended: EndedTasks) -> int:
    columns = ended._clients[CLIENT]
    parts: list[array[int] | bytearray] = [
        columns.firsts, columns.counts, columns.states, columns.engines
    ]  # fmt: skip
    return sum(map(sys.getsizeof, parts))


def test_the_oldest_are_forgotten_beyond_the_bound(make_tasks: Any) -> None:
    """First the tasks of the client that has had none end for longest, of one client the oldest."""
    ended = EndedTasks(max_runs=100)
    ended.note(make_tasks(0, [2, 3] * 20, [], OTHER))
    for first in range(0, 300, 10):
        ended.note(make_tasks(first, [2, 3] * 5, []))
        ended.tidy()
        assert ended.n_runs <= 100
    assert not ended.find(OTHER, 0, 100)
    assert not ended.find(CLIENT, 0, 10)
    assert len(ended.find(CLIENT, 290, 300)) == 10


def test_a_dependency_on_a_forgotten_task_says_so(bench: Any) -> None:
    """The error tells a task that is forgotten from one that never was."""
    bench.core.state.ended = EndedTasks(max_runs=2)
    bench.join(0)
    for seq in range(6):
        bench.submit(seq, 1)
        bench.answer(0, status=seq % 2)
    bench.submit(6, 1, after=m.Dependency([m.TaskRange(CLIENT, 0, 1)]))
    assert bench.error(6).ename == "InvalidDependency"
    assert "so long ago that neither the controller nor its records know" in bench.error(6).evalue
