"""What operations cost, in counts: messages, wake-ups, blobs, Python calls, objects. Never in time.

Each bound is a little above what was counted when it was written, so that what makes an operation
dearer fails here and not in a bench that somebody reads months later.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipyfleet_client import Client
from ipyfleet_testing.calls import PythonCalls

TRIPS = 200
CALLS = 2000
ITEMS = 20_000


def noop(item: int = 0) -> int:
    """Do nothing."""
    return item


def _messages(client: Client) -> int:
    """Return the messages that have passed through the controller, in and out."""
    counters = client.metrics()["messages"]
    return int(counters["received"] + counters["sent"])


@contextlib.contextmanager
def _counted(count: Callable[[], int]) -> Iterator[list[int]]:
    """Yield a list that has, afterwards, by how much a count has grown."""
    grown: list[int] = []
    before = count()
    yield grown
    grown.append(count() - before)


def _least(count: Callable[[], int], action: Callable[[], object]) -> int:
    """Return by how much a count grows when something is done: of three times the best.

    How much travels together depends on how long whoever receives it takes, and so on whom the
    machine lets run meanwhile.
    """
    counts = []
    for _ in range(3):
        with _counted(count) as grown:
            action()
        counts += grown
    return min(counts)


def _wakeups(pid: int) -> int:
    """Return how often threads of a process went to sleep by themselves, and so were woken."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


@pytest.mark.parametrize("kind", ["direct", "balanced"])
def test_a_lone_call_is_four_messages(client: Client, kind: str) -> None:
    """Submit, RunTasks, and Results twice; acknowledgements are one in hundreds."""
    view: Any = client[0] if kind == "direct" else client.load_balanced_view()
    view.apply_sync(noop)
    with _counted(lambda: _messages(client)) as grown:
        for _ in range(TRIPS):
            view.apply_sync(noop)
    assert 4 * TRIPS <= grown[0] <= 4 * TRIPS + 40


def test_a_call_to_all_engines_is_one_message_for_each_and_one_back(client: Client) -> None:
    """Three for each engine and one of the client's, however many engines there are."""
    view = client[:]
    view.apply_sync(noop)
    n_messages = 3 * len(view) + 1
    with _counted(lambda: _messages(client)) as grown:
        for _ in range(TRIPS):
            view.apply_sync(noop)
    assert grown[0] <= n_messages * TRIPS + 40


def test_separate_calls_travel_together(client: Client) -> None:
    """A loop of apply_async takes fewer messages than an eighth of its calls."""
    view = client.load_balanced_view()
    view.apply_sync(noop)

    def call() -> None:
        results = [view.apply_async(noop, item) for item in range(CALLS)]
        assert [result.get(60) for result in results] == list(range(CALLS))

    assert _least(lambda: _messages(client), call) < CALLS / 8


def test_the_tasks_of_a_map_travel_together(client: Client) -> None:
    """A map of no-ops takes a message for dozens of tasks."""
    view = client.load_balanced_view()
    view.map_sync(noop, range(1000))
    n_messages = _least(lambda: _messages(client), lambda: view.map_sync(noop, range(ITEMS)))
    assert n_messages < ITEMS / 16


def test_a_lone_call_wakes_nobody_who_has_nothing_to_do(client: Client) -> None:
    """Each of four messages wakes the one thread that it is for; a few more wake by chance."""
    view = client[0]
    engine = view.apply_sync(os.getpid)
    pids = [os.getpid(), client.session.info.pid, engine]
    for _ in range(20):
        view.apply_sync(noop)

    def call() -> None:
        for _ in range(TRIPS):
            view.apply_sync(noop)

    assert _least(lambda: sum(map(_wakeups, pids)), call) <= 6 * TRIPS


def test_an_idle_cluster_sends_nothing(client: Client) -> None:
    """Not even acknowledgements, once the last ones are through."""
    client[:].apply_sync(noop)
    nap = client.load_balanced_view().apply_async(_nap, 3.0)
    nap.wait(60)
    with _counted(lambda: _messages(client)) as grown:
        client.load_balanced_view().apply_async(_nap, 2.0).wait(60)
    # The task itself, two questions for the counters, and what acknowledges them.
    assert grown[0] <= 16


def _nap(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _hold(gate: str) -> None:
    import os
    import time

    while not os.path.exists(gate):
        time.sleep(0.002)


def _copied() -> int:
    """Return how many bytes this process has written to files and read from them."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["wchar"]) + int(counters["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count I/O")
@pytest.mark.parametrize("move", ["push", "push to all", "scatter", "pull", "gather"])
def test_an_array_is_moved_by_one_copy(client: Client, move: str) -> None:
    """Its bytes are written into shared memory once, by all together, and read by nobody.

    The controller is left out: it reads what it records.
    """
    view, one = client[:], client[0]
    array = np.arange(1 << 21, dtype="float64")
    view.scatter("part", array, block=True)
    one.push({"array": array}, block=True)
    moves: dict[str, Callable[[], Any]] = {
        "push": lambda: one.push({"pushed": array}, block=True),
        "push to all": lambda: view.push({"pushed": array}, block=True),
        "scatter": lambda: view.scatter("pushed", array, block=True),
        "pull": lambda: one["array"],
        "gather": lambda: view.gather("part", block=True),
    }
    with _counted(lambda: _copied() + sum(view.apply_sync(_copied))) as grown:
        moved = moves[move]()
    assert array.nbytes <= grown[0] < 1.02 * array.nbytes
    if move in ("pull", "gather"):
        assert (moved == array).all()


def test_a_gathered_array_takes_no_memory_of_its_own(client: Client) -> None:
    """Its pages are those that the engines have written, until somebody writes into them."""
    view = client[:]
    array = np.arange(1 << 21, dtype="float64")
    view.scatter("part", array, block=True)
    gathered = view.gather("part", block=True)
    assert (gathered == array).all()
    assert _private_bytes(gathered) == 0
    gathered[0] = 1
    assert 0 < _private_bytes(gathered) < 1 << 16
    assert view.gather("part", block=True)[0] == 0


def _private_bytes(array: Any) -> int:
    """Return how much of an array is in pages that only this process has."""
    first = array.__array_interface__["data"][0]
    total, is_in = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(" ")
        if "-" in name:
            start, end = (int(address, 16) for address in name.split("-"))
            is_in = first < end and start < first + array.nbytes
        elif is_in and name == "Anonymous:":
            total += int(value.split()[0]) * 1024
    return total


def test_a_map_holds_few_objects(client: Client) -> None:
    """No object for each task: results are kept as they came, in some hundred pieces."""
    view = client.load_balanced_view()
    view.map_async(noop, range(1000)).wait(60)
    gc.collect()
    kept = []

    def call() -> None:
        kept.append(view.map_async(noop, range(ITEMS)))
        assert kept[-1].wait(60)
        gc.collect()

    assert _least(lambda: len(gc.get_objects()), call) < ITEMS / 10


def test_a_call_of_the_client_makes_few_calls(client: Client, tmp_path: Path) -> None:
    """Python functions that apply_async runs in the caller's thread while others are under way."""
    view, gate = client.load_balanced_view(), tmp_path / "gate"
    results = [view.apply_async(_hold, str(gate)) for _ in client.ids]
    results += [view.apply_async(noop) for _ in range(100)]
    try:
        with PythonCalls() as calls:
            results += [view.apply_async(noop) for _ in range(100)]
    finally:
        gate.touch()
    for result in results:
        result.get(60)
    assert len(calls) < 100 * 25


@pytest.mark.parametrize("kind", ["direct", "balanced"])
def test_a_lone_call_takes_few_steps(client: Client, kind: str) -> None:
    """Python functions that the client runs from a call to its value, in the caller's thread."""
    view: Any = client[0] if kind == "direct" else client.load_balanced_view()
    view.apply_sync(noop)
    with PythonCalls() as calls:
        for _ in range(TRIPS):
            view.apply_sync(noop)
    assert len(calls) < TRIPS * 75


def test_an_engine_takes_few_steps_from_one_task_to_the_next(client: Client) -> None:
    """Python functions in its main thread, where each task's result is a message of its own.

    After a task that has slept each of them takes some 5 µs, since the CPU's caches are cold.
    """
    view = client[0]
    first = view.apply_async(_count_calls)
    naps = [view.apply_async(_nap, 0.002) for _ in range(100)]
    n_calls = view.apply_async(_stop_counting).get(60)
    assert first.get(60) is None and all(nap.get(60) is None for nap in naps)
    assert n_calls < 100 * 30


def _count_calls() -> None:
    import builtins

    from ipyfleet_testing.calls import PythonCalls

    builtins.calls = PythonCalls()
    builtins.calls.start()


def _stop_counting() -> int:
    import builtins

    builtins.calls.stop()
    n_calls = len(builtins.calls)
    del builtins.calls
    return n_calls


def test_a_lone_answer_wakes_the_caller_only(client: Client) -> None:
    """The I/O thread sleeps through calls that wait for their values, however busy the machine."""
    view = client[0]
    view.apply_sync(noop)
    thread = client.session.wire._thread.native_id
    status = Path(f"/proc/self/task/{thread}/status")

    def wakeups() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    def call() -> None:
        for _ in range(TRIPS):
            view.apply_sync(noop)

    assert _least(wakeups, call) < TRIPS / 10
