"""What tasks wait for and where they run, as users see it, on real clusters."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ipyfleet as ipf
from ipyfleet_testing.waiting import wait_until

CLUSTER_ENGINES = 3
TIMEOUT_S = 60

# These run on engines, which cannot import this module: they bring what they need.


def mark_and_wait(gate: str, value: Any = None) -> Any:
    """Say by a file beside the gate that the task has begun; return when the gate is there."""
    import os
    import time
    from pathlib import Path

    Path(gate + ".begun").touch()
    while not os.path.exists(gate):
        time.sleep(0.002)
    return value


def append(path: str, word: str) -> str:
    """Write a line to a file."""
    with open(path, "a") as file:
        file.write(word + "\n")
    return word


def fail(text: str = "boom") -> None:
    """Fail."""
    raise ValueError(text)


def engine_pid() -> int:
    """The engine's process."""
    import os

    return os.getpid()


def pid_unless(pids: list[int], error: type[Exception]) -> int:
    """The engine's process; an error, after some output, on some of the engines."""
    import os

    print("tried", os.getpid())
    if os.getpid() in pids:
        raise error(f"not on {os.getpid()}")
    return os.getpid()


SCRIPT = """
def is_number(wanted):
    return number == wanted

def where(x):
    return number, x

def down(n):
    return [number] + (down(n - 1) if n else [])

def required():
    return colorsys.__name__, p.basename("a/b"), given + len("x")
"""
"""Functions of a user's script: their globals are the engine's namespace."""


class Gate:
    """A task that waits until the test lets it go."""

    def __init__(self, path: Path, send: Callable[..., ipf.AsyncResult], value: Any = None) -> None:
        self._path = path
        self.result = send(mark_and_wait, os.fspath(path), value)

    @property
    def has_begun(self) -> bool:
        """Whether an engine runs it."""
        return Path(f"{self._path}.begun").exists()

    def open(self) -> None:
        """Let it end."""
        self._path.touch()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[..., Gate]]:
    """Make gates: ``gates(view.apply_async, value)``; all of them are opened at the end."""
    made: list[Gate] = []

    def make(send: Callable[..., ipf.AsyncResult], value: Any = None) -> Gate:
        made.append(Gate(tmp_path / f"gate-{len(made)}", send, value))
        return made[-1]

    yield make
    for gate in made:
        gate.open()
        gate.result.wait(TIMEOUT_S)


@pytest.fixture
def view(client: ipf.Client) -> ipf.LoadBalancedView:
    """A balanced view."""
    return client.load_balanced_view()


def is_waiting(client: ipf.Client, result: ipf.AsyncResult) -> bool:
    """Whether the controller has a task and says that it waits."""
    return "waiting" in str(client.explain(result.msg_ids[0]))


# -- after ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["result", "msg_id", "list", "set", "Dependency", "direct"])
def test_after(client: ipf.Client, view: Any, gates: Any, form: str) -> None:
    """A task begins when what it waits for has ended, and not before, though engines are idle."""
    on_first = client[0] if form == "direct" else client.load_balanced_view(targets=[0])
    gate = gates(on_first.apply_async)
    result = gate.result
    forms = {
        "msg_id": result.msg_ids[0],
        "list": [result],
        "set": set(result.msg_ids),
        "Dependency": ipf.Dependency(result),
    }
    with view.temp_flags(after=forms.get(form, result)):
        later = view.apply_async(engine_pid)
    wait_until(lambda: gate.has_begun and is_waiting(client, later))
    # Those engines are free: what came later has run.
    client[1:].apply_sync(engine_pid)
    assert not later.ready()
    gate.open()
    later.get(TIMEOUT_S)
    assert later.started >= result.completed
    assert later.after == result.msg_ids


def test_a_map_after_a_map(view: Any) -> None:
    """Every task of a map waits for every task of another."""
    first = view.map_async(lambda x: x * x, range(500))
    with view.temp_flags(after=first):
        second = view.map_async(lambda x: x + 1, range(500))
    assert second.get(TIMEOUT_S) == list(range(1, 501))
    assert min(second.started) >= max(first.completed)


def test_any_of_several(view: Any, gates: Any) -> None:
    """``all=False`` waits for the first that ends."""
    gate = gates(view.apply_async)
    quick = view.apply_async(engine_pid)
    with view.temp_flags(after=ipf.Dependency([gate.result, quick], all=False)):
        later = view.apply_async(engine_pid)
    later.get(TIMEOUT_S)
    assert not gate.result.ready()


def test_after_failures(view: Any) -> None:
    """Which ends count is the dependency's to say."""
    good, bad = view.apply_async(engine_pid), view.apply_async(fail)
    outcomes = {}
    for success, failure, need_all in itertools.product([True, False], repeat=3):
        if not (success or failure):
            continue
        rule = ipf.Dependency([good, bad], need_all, success, failure)
        with view.temp_flags(after=rule):
            outcomes[success, failure, need_all] = view.apply_async(engine_pid)
    for (success, failure, need_all), result in outcomes.items():
        error = result.exception(TIMEOUT_S)
        is_met = (success and failure) or not need_all
        assert (error is None) == is_met, (success, failure, need_all, error)
        assert is_met or isinstance(error, ipf.ImpossibleDependency)


def test_after_tasks_of_another_client(cluster: Any, view: Any, gates: Any) -> None:
    """Results of another client of the program, and its msg_ids as strings, can be waited for."""
    with contextlib.closing(cluster.connect_client_sync()) as other:
        theirs = other.load_balanced_view()
        gate = gates(theirs.apply_async)
        with view.temp_flags(after=gate.result):
            by_result = view.apply_async(engine_pid)
        with view.temp_flags(after=gate.result.msg_ids[0]):
            by_id = view.apply_async(engine_pid)
        # Right after it is submitted, many times: the two clients' messages race.
        for _ in range(20):
            with view.temp_flags(after=theirs.apply_async(engine_pid)):
                assert view.apply_async(engine_pid).get(TIMEOUT_S)
        assert not by_result.ready()
        assert not by_id.ready()
        gate.open()
        assert by_result.get(TIMEOUT_S)
        assert by_id.get(TIMEOUT_S)


def test_a_cancelled_task_counts_as_failed(view: Any, gates: Any) -> None:
    """What waits for a task that is cancelled cannot run; what waits for its failure can."""
    gate = gates(view.apply_async)
    with view.temp_flags(after=gate.result):
        never = view.apply_async(engine_pid)
    with view.temp_flags(after=never):
        child = view.apply_async(engine_pid)
    with view.temp_flags(after=ipf.Dependency(never, success=False, failure=True)):
        consequence = view.apply_async(engine_pid)
    assert never.cancel()
    assert isinstance(child.exception(TIMEOUT_S), ipf.ImpossibleDependency)
    assert consequence.get(TIMEOUT_S)
    assert not gate.result.ready()


# -- follow -----------------------------------------------------------------------------------


def test_follow(view: Any) -> None:
    """Tasks run where those ran that they follow, whichever engine that was."""
    leaders = [view.apply_async(engine_pid) for _ in range(12)]
    followers = []
    for leader in leaders:
        with view.temp_flags(follow=leader):
            followers.append(view.map_async(lambda x, f=engine_pid: f(), range(3)))
    for leader, follower in zip(leaders, followers, strict=True):
        assert set(follower.get(TIMEOUT_S)) == {leader.get()}
    assert followers[0].metadata[0].follow == leaders[0].msg_ids


def test_follow_any_of_several(client: ipf.Client, view: Any) -> None:
    """``all=False`` runs where one of them ran; all of several places is no place."""
    parts = client[:2].apply_async(engine_pid)
    with view.temp_flags(follow=ipf.Dependency(parts, all=False)):
        either = view.map_async(lambda x, f=engine_pid: f(), range(6))
    with view.temp_flags(follow=parts):
        both = view.apply_async(engine_pid)
    assert set(either.get(TIMEOUT_S)) <= set(parts.get())
    with pytest.raises(ipf.ImpossibleDependency, match="no engine can be where all have run"):
        both.get(TIMEOUT_S)


def test_follow_and_targets(client: ipf.Client, view: Any) -> None:
    """A task that follows to where its view may not run is impossible."""
    leader = client[0].apply_async(engine_pid)
    with view.temp_flags(follow=leader, targets=[1, 2]):
        lost = view.apply_async(engine_pid)
    with view.temp_flags(follow=leader, targets=[0, 1]):
        found = view.apply_async(engine_pid)
    assert isinstance(lost.exception(TIMEOUT_S), ipf.ImpossibleDependency)
    assert found.get(TIMEOUT_S) == leader.get()


# -- what cannot be ---------------------------------------------------------------------------


def test_failures_cascade(view: Any, gates: Any) -> None:
    """What depends on what cannot run ends at once, however long the chain, and says why."""
    gate = gates(view.apply_async)
    with view.temp_flags(after=gate.result):
        chain = [view.apply_async(fail)]
    for _ in range(50):
        with view.temp_flags(after=chain[-1]):
            chain.append(view.apply_async(engine_pid))
    gate.open()
    errors = [result.exception(TIMEOUT_S) for result in chain]
    assert isinstance(errors[0], ipf.RemoteError)
    assert all(type(error) is ipf.ImpossibleDependency for error in errors[1:])
    assert chain[0].msg_ids[0] in str(errors[1])
    assert any("failure=True" in note for note in errors[-1].__notes__)


def test_unknown_tasks(view: Any) -> None:
    """A task of which nobody has heard is an InvalidDependency that names it."""
    own, foreign = view.apply_async(engine_pid).msg_ids[0], "0" * 31 + "1_7"
    stem = own.partition("_")[0]
    for msg_id in (foreign, f"{stem}_123456789"):
        with view.temp_flags(after=[own, msg_id]):
            error = view.apply_async(engine_pid).exception(TIMEOUT_S)
        assert type(error) is ipf.InvalidDependency
        assert isinstance(error, ipf.ImpossibleDependency)
        assert msg_id in str(error)
        assert any("ar.msg_ids" in note for note in error.__notes__)


def test_timeouts(client: ipf.Client, gates: Any) -> None:
    """A task waits for so long and no longer, and the error says for what."""
    view = client.load_balanced_view(targets=[0])
    gate = gates(view.apply_async)
    wait_until(lambda: gate.has_begun)
    # Long enough for a task to begin on an engine that is free, whatever the machine does.
    limit_s = 1.5
    free = client.load_balanced_view(targets=[1], timeout=limit_s)
    with free.temp_flags(after=gate.result):
        blocked = free.apply_async(engine_pid)
    with view.temp_flags(timeout=limit_s):
        queued = view.apply_async(engine_pid)
    with view.temp_flags(timeout=TIMEOUT_S):
        patient = view.apply_async(engine_pid)
    runs_longer = free.apply_async(lambda s: __import__("time").sleep(s), limit_s + 0.5)
    for result, reason in ((blocked, "has not ended"), (queued, "other things to do")):
        error = result.exception(TIMEOUT_S)
        assert type(error) is ipf.TaskTimeout
        assert f"{limit_s} s" in str(error)
        assert reason in str(error)
    assert runs_longer.get(TIMEOUT_S) is None
    gate.open()
    assert patient.get(TIMEOUT_S)


# -- engines that turn tasks down -------------------------------------------------------------


def test_unmet_tasks_go_elsewhere(client: ipf.Client, view: Any) -> None:
    """A task that raises UnmetDependency is tried at each engine, and costs no retries."""
    pids = client[:].apply_sync(engine_pid)
    results = [view.apply_async(pid_unless, pids[:2], ipf.UnmetDependency) for _ in range(6)]
    for result in results:
        assert result.get(TIMEOUT_S) == pids[2]
        assert result.engine_id == 2
        assert result.wait_for_output(TIMEOUT_S)
        assert result.stdout == f"tried {pids[2]}\n"


def test_unmet_everywhere(client: ipf.Client, view: Any) -> None:
    """A task that all engines turn down ends, and says which did and why."""
    pids = client[:].apply_sync(engine_pid)
    with pytest.raises(ipf.ImpossibleDependency, match=r"\(0, 1, 2\).*not on \d+"):
        view.apply_async(pid_unless, pids, ipf.UnmetDependency).get(TIMEOUT_S)
    with view.temp_flags(timeout=3), pytest.raises(ipf.TaskTimeout, match="turned it down"):
        view.apply_async(pid_unless, pids, ipf.UnmetDependency).get(TIMEOUT_S)
    missing = ipf.require("no_such_module")(abs)
    with pytest.raises(ipf.ImpossibleDependency, match="abs requires no_such_module"):
        view.apply_async(missing, 1).get(TIMEOUT_S)
    with pytest.raises(ipf.UnmetDependency, match="abs requires no_such_module"):
        client[0].apply_async(missing, 1).get(TIMEOUT_S)
    with pytest.raises(ipf.CompositeError) as caught:
        client[:].apply_async(missing, 1).get(TIMEOUT_S)
    assert "[0-2:apply] UnmetDependency" in str(caught.value)


def test_conditions(client: ipf.Client, view: Any) -> None:
    """`@depend` finds the engine whose namespace says yes, for a map, too."""
    client[:].scatter("number", client.ids, flatten=True, block=True)
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, script)
    is_number, where = script["is_number"], script["where"]
    there = ipf.depend(is_number, 1)(where)
    assert view.map_async(there, range(20)).get(TIMEOUT_S) == [(1, x) for x in range(20)]
    chunks = view.map_async(there, range(20), chunksize=5)
    assert chunks.get(TIMEOUT_S) == [(1, x) for x in range(20)]
    assert view.apply_async(ipf.dependent(there, is_number, 1), 5).get(TIMEOUT_S) == (1, 5)
    down = script["down"] = ipf.depend(is_number, 2)(script["down"])
    assert view.apply_async(down, 3).get(TIMEOUT_S) == [2, 2, 2, 2]
    required = ipf.require("colorsys", "os.path as p", len, given=3)(script["required"])
    assert view.apply_async(required).get(TIMEOUT_S) == ("colorsys", "b", 4)


def test_retries_go_elsewhere(client: ipf.Client, view: Any) -> None:
    """A task that fails runs again on another engine first; its result is the last attempt's."""
    pids = client[:].apply_sync(engine_pid)
    view.retries = 2
    for good in range(3):
        bad = [pid for pid in pids if pid != pids[good]]
        results = [view.apply_async(pid_unless, bad, OSError) for _ in range(4)]
        assert [result.get(TIMEOUT_S) for result in results] == [pids[good]] * 4
        for result in results:
            assert result.wait_for_output(TIMEOUT_S)
            tried = [int(line.split()[1]) for line in result.stdout.splitlines()]
            assert tried[-1] == pids[good]
            assert set(tried[:-1]) <= set(bad)
            assert len(tried) == len(set(tried))
    error = view.apply_async(pid_unless, pids, OSError).exception(TIMEOUT_S)
    assert isinstance(error, ipf.RemoteError)
    assert error.ename == "OSError"


# -- order and place --------------------------------------------------------------------------


def test_priority(client: ipf.Client, gates: Any, tmp_path: Path) -> None:
    """Of what waits, higher priorities go first, equal ones in the order of submission."""
    view = client.load_balanced_view(targets=[0])
    gate = gates(view.apply_async)
    wait_until(lambda: gate.has_begun)
    log = tmp_path / "log"
    plan = [(priority, f"{priority}/{k}") for k in range(4) for priority in (0, 5, -5, 1)]
    results = []
    for priority, word in plan:
        with view.temp_flags(priority=priority):
            results.append(view.apply_async(append, os.fspath(log), word))
    # The last is with the controller, so all are.
    wait_until(lambda: is_waiting(client, results[-1]))
    gate.open()
    client.wait(results, TIMEOUT_S)
    ran = log.read_text().split()
    expected = [word for _, word in sorted(plan, key=lambda item: -item[0])]
    assert ran == expected


def test_fairness(cluster: Any, client: ipf.Client, gates: Any) -> None:
    """A client with thousands of tasks does not keep one with a few waiting until the end."""
    busy = client.load_balanced_view()
    closed = [gates(client[engine].apply_async) for engine in client.ids]
    wait_until(lambda: all(gate.has_begun for gate in closed))
    many = busy.map_async(lambda x: __import__("time").sleep(0.001), range(6000))
    wait_until(lambda: client.queue_status()["unassigned"] > 1000)
    with contextlib.closing(cluster.connect_client_sync()) as other:
        few = other.load_balanced_view().map_async(abs, range(10))
        for gate in closed:
            gate.open()
        assert few.get(TIMEOUT_S) == list(range(10))
    assert many.wait(TIMEOUT_S)
    # By the engines' clocks: this process may be slow to look.
    assert sum(end < max(few.completed) for end in many.completed) < 4000


def test_resources(cluster_factory: Any) -> None:
    """Tasks run where there is what they need; they wait where it is to come."""
    cluster = cluster_factory(1)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        view = rc.load_balanced_view(resources={"gpu": 1, "mem": 8})
        assert repr(rc) == "<Client: 1 engines>"
        waiting = view.map_async(lambda x: x, range(10))
        wait_until(lambda: "no engine has gpu=1" in str(rc.explain(waiting.msg_ids[0])))
        assert not waiting.ready()
        cluster.start_engines_sync(1, engine_args=["--resources", "mem=4"])
        rc.wait_for_engines(2, timeout=TIMEOUT_S)
        with view.temp_flags(resources={"mem": 3}):
            assert view.apply_async(abs, -1).get(TIMEOUT_S) == 1
        assert not waiting.ready()
        cluster.start_engines_sync(2, engine_args=["--resources", "gpu=2,mem=16"])
        assert waiting.get(TIMEOUT_S) == list(range(10))
        assert set(waiting.engine_id) <= {2, 3}
        rc.wait_for_engines(4, timeout=TIMEOUT_S)
        assert repr(rc) == "<Client: 4 engines; gpu=2 on [2, 3], mem=16 on [2, 3], mem=4 on [1]>"
        assert "<td>gpu=2, mem=16</td>" in rc._repr_html_()


def test_the_engine_that_is_followed_dies(cluster_factory: Any) -> None:
    """What had to run where an engine is gone cannot run, and what waits for that neither."""
    with contextlib.closing(cluster_factory(2).connect_client_sync()) as rc:
        view = rc.load_balanced_view()
        leader = view.apply_async(engine_pid)
        pid, engine = leader.get(TIMEOUT_S), leader.engine_id
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: engine not in rc.ids)
        with view.temp_flags(follow=leader):
            lost = view.apply_async(engine_pid)
        with view.temp_flags(after=lost):
            child = view.apply_async(engine_pid)
        with view.temp_flags(after=leader):
            fine = view.apply_async(engine_pid)
        for result in (lost, child):
            assert isinstance(result.exception(TIMEOUT_S), ipf.ImpossibleDependency)
        assert fine.get(TIMEOUT_S) != pid


# -- afterwards -------------------------------------------------------------------------------


def test_records_and_resubmission(client: ipf.Client, view: Any) -> None:
    """The database can be asked who waited for whom; what is submitted again waits again."""
    first = view.apply_async(engine_pid)
    flags = {"after": first, "follow": first, "timeout": 50, "priority": 3, "retries": 1}
    with view.temp_flags(**flags, label="waits"):
        second = view.apply_async(engine_pid)
    assert second.get(TIMEOUT_S) == first.get(TIMEOUT_S)
    query = {"after": {"$all": first.msg_ids}}
    fields = ["after", "follow", "timeout", "priority", "retries", "label", "resources"]
    expected = {
        "after": first.msg_ids,
        "follow": first.msg_ids,
        "timeout": 50.0,
        "priority": 3,
        "retries": 1,
        "label": "waits",
        "resources": None,
    }
    wait_until(lambda: client.db_query(query, keys=["msg_id"]))
    assert client.db_query(query, keys=fields) == [{"msg_id": second.msg_ids[0], **expected}]
    again = client.resubmit(second)
    assert again.get(TIMEOUT_S) == first.get()
    assert (again.after, again.follow) == (first.msg_ids, first.msg_ids)
    [record] = client.db_query({"msg_id": again.msg_ids[0]}, keys=fields)
    assert record == {"msg_id": again.msg_ids[0], **expected}


def test_a_graph_of_tasks(view: Any) -> None:
    """In a random graph of 150 tasks none begins before all that it needs have ended."""
    rng = random.Random(7)
    needs = {node: rng.sample(range(node), min(node, rng.randrange(4))) for node in range(150)}
    results: dict[int, ipf.AsyncResult] = {}
    for node, needed in needs.items():
        with view.temp_flags(after=[results[k] for k in needed]):
            results[node] = view.apply_async(lambda n: __import__("time").sleep(0.001) or n, node)
    assert [results[node].get(TIMEOUT_S) for node in needs] == list(needs)
    for node, needed in needs.items():
        for k in needed:
            assert results[node].started >= results[k].completed
