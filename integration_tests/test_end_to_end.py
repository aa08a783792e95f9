"""The system as a user meets it: client, controller and engines as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import ipyfleet as ipf
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def rc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipf.Client]:
    """A client of two engines."""
    with ipf.Cluster(n=2, profile_dir=os.fspath(tmp_path_factory.mktemp("profile"))) as client:
        yield client


def test_results_have_the_shape_of_the_targets(rc: ipf.Client) -> None:
    """One engine gives a value, a list of engines a list, even a list of one."""
    assert rc[0].apply_sync(lambda: 5) == 5
    assert rc[:].apply_sync(lambda: 5) == [5, 5]
    assert rc[[1]].apply_sync(lambda: 5) == [5]
    assert len(set(rc[:].apply_sync(os.getpid))) == 2


def test_map_of_many_small_tasks(rc: ipf.Client) -> None:
    """Each item of a long map is a task of its own, and results come in the items' order."""
    view = rc.load_balanced_view()
    result = view.map_async(lambda x: x + 1, range(5000))
    assert list(result.get(TIMEOUT_S)) == list(range(1, 5001))
    assert len(set(result.msg_ids)) == 5000
    assert set(result.engine_id) <= {0, 1}


def test_a_map_uses_all_engines(rc: ipf.Client, tmp_path: Path) -> None:
    """Two tasks of a map can wait for one another."""

    def meet(folder: str, number: int) -> int:
        import os
        import time

        open(f"{folder}/{number}", "w").close()
        while len(os.listdir(folder)) < 2:
            time.sleep(0.002)
        return number

    result = rc.load_balanced_view().map_async(meet, [str(tmp_path)] * 50, range(50))
    assert result.get(TIMEOUT_S) == list(range(50))
    assert set(result.engine_id) == {0, 1}


def test_results_arrive_while_others_run(rc: ipf.Client, tmp_path: Path) -> None:
    """Iterating over a map yields what is done while a later task still runs."""

    def wait_for(seconds: float, begun: str) -> float:
        import pathlib
        import time

        pathlib.Path(begun).touch()
        time.sleep(seconds)
        return seconds

    begun = [tmp_path / str(number) for number in range(4)]
    result = rc.load_balanced_view().map_async(
        wait_for, [0, 0, 0, 600], [str(path) for path in begun]
    )
    assert list(islice(result, 3)) == [0, 0, 0]
    assert not result.ready()
    wait_until(begun[-1].exists)
    rc.send_signal(signal.SIGINT)
    with pytest.raises(ipf.error.RemoteError) as caught:
        result.get(TIMEOUT_S)
    assert "KeyboardInterrupt" in str(caught.value)


def test_no_engine_idles_while_tasks_wait_behind_a_long_one(rc: ipf.Client) -> None:
    """Short tasks that were placed behind a long one finish elsewhere while it runs."""

    def wait_for(seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    rc.load_balanced_view().map_sync(wait_for, [0.001] * 200)
    durations = [0.001] * 100 + [20.0] + [0.001] * 200
    result = rc.load_balanced_view().map_async(wait_for, durations, ordered=False)
    arrived = list(islice(result, 300))
    assert arrived == [0.001] * 300
    assert not result.ready()
    rc.send_signal(signal.SIGINT)
    result.wait(TIMEOUT_S)


def test_large_arrays_arrive_intact_and_writable(rc: ipf.Client) -> None:
    """Arrays travel through shared memory, arrive writable, and leave no file behind."""
    array = np.arange(2_000_000, dtype=float)
    rc[:].push({"array": array}, block=True)
    rc[:].execute("array[0] = 42.0; total = float(array.sum())", block=True)
    assert rc[:]["total"] == [array.sum() + 42.0] * 2
    back = rc[0]["array"]
    assert back[0] == 42.0 and np.array_equal(back[1:], array[1:])
    back[1] = 7.0
    assert array[0] == 0.0


def test_errors_carry_the_engine_and_its_traceback(rc: ipf.Client) -> None:
    """A remote exception arrives with its class, text, engine and traceback."""

    def divide(a: int, b: int) -> float:
        return a / b

    with pytest.raises(ipf.error.RemoteError) as caught:
        rc[1].apply_sync(divide, 1, 0)
    assert str(caught.value).startswith("[1:apply] ZeroDivisionError: division by zero")
    assert any("divide" in line for line in caught.value.render_traceback())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ipf.error.CompositeError, match="one or more exceptions raised in: divide"):
        rc[:].apply_sync(divide, 1, 0)


def test_output_belongs_to_its_task(rc: ipf.Client) -> None:
    """What a task prints is found in its own result, whatever ran before, after or beside it."""

    def talk(word: str) -> None:
        import sys

        print("said", word)
        print("cried", word, file=sys.stderr)

    results = [rc[:].apply_async(talk, f"word{n}") for n in range(5)]
    for n, result in enumerate(results):
        result.get(TIMEOUT_S)
        result.wait_for_output(TIMEOUT_S)
        assert result.stdout == [f"said word{n}\n"] * 2
        assert result.stderr == [f"cried word{n}\n"] * 2


def test_execute_runs_cells(rc: ipf.Client) -> None:
    """An engine is IPython: magics, top-level await, results and errors of cells."""
    result = rc[0].execute(
        "%cd -q /\nimport asyncio, os\nawait asyncio.sleep(0)\nos.getcwd()", silent=False
    )
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    assert result.execute_result["data"]["text/plain"] == "'/'"
    with pytest.raises(ipf.error.RemoteError, match="NameError"):
        rc[0].execute("no_such_name").get(TIMEOUT_S)


def test_await_and_async_functions(rc: ipf.Client) -> None:
    """Results can be awaited, and an async function is awaited on the engine."""

    async def double(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return 2 * x

    async def main() -> list[int]:
        return list(await rc.load_balanced_view().map_async(double, range(10)))

    assert asyncio.run(main()) == [2 * x for x in range(10)]


def test_lazy_map_over_an_endless_iterator(rc: ipf.Client) -> None:
    """imap takes from its input only as results are taken."""
    taken = 0

    def count() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    stream = rc.load_balanced_view().imap(lambda x: x * x, count())
    assert [next(stream) for _ in range(100)] == [n * n for n in range(1, 101)]
    stream.cancel()
    assert taken < 10_000  # a window of tiny tasks ahead, not the whole input


def test_many_threads_share_a_client(rc: ipf.Client) -> None:
    """Threads that submit and wait at once each get their own results."""

    def work(number: int) -> None:
        view = rc.load_balanced_view()
        for n in range(20):
            value = view.apply_async(lambda a, b: (a, b), number, n).get(TIMEOUT_S)
            assert value == (number, n)
        assert view.map_sync(lambda x: x * 3, range(50)) == [x * 3 for x in range(50)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8), timeout=TIMEOUT_S)) == [None] * 8


def test_two_clients_do_not_mix(rc: ipf.Client) -> None:
    """A second client has its own tasks and results, and sees the same namespaces."""
    assert rc.cluster is not None
    with rc.cluster.connect_client_sync() as other:
        rc[:].push({"shared": 11}, block=True)
        assert other[:]["shared"] == [11, 11]
        mine = rc[0].apply_async(lambda: "mine")
        theirs = other[0].apply_async(lambda: "theirs")
        assert (mine.get(TIMEOUT_S), theirs.get(TIMEOUT_S)) == ("mine", "theirs")


def _start_and_wait(timer: threading.Timer, result: ipf.AsyncResult) -> None:
    timer.start()
    result.get(TIMEOUT_S)


def test_ctrl_c_leaves_the_client_usable(rc: ipf.Client) -> None:
    """Ctrl-C in a blocking call returns at once; the client goes on."""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    result = rc[0].apply_async(time.sleep, 30)
    with pytest.raises(KeyboardInterrupt):
        _start_and_wait(timer, result)
    assert not result.ready()
    timer.join()
    result.abort()
    assert rc[0].apply_async(lambda: 3).get(TIMEOUT_S) == 3


def test_death_of_an_engine(tmp_path: os.PathLike[str]) -> None:
    """A killed engine fails its own work with the cause; balanced work goes on elsewhere."""
    with ipf.Cluster(n=2, profile_dir=os.fspath(tmp_path)) as client:
        pids = client[:].apply_sync(os.getpid)
        direct = client[0].apply_async(time.sleep, 60)
        waiting = client[0].apply_async(os.getpid)
        view = client.load_balanced_view(retries=1)
        balanced = view.map_async(lambda x: x + 1, range(100))
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ipf.error.EngineError, match="SIGKILL"):
            direct.get(TIMEOUT_S)
        with pytest.raises(ipf.error.EngineError):
            waiting.get(TIMEOUT_S)
        assert list(balanced.get(TIMEOUT_S)) == list(range(1, 101))
        assert client.ids == [1]
        with pytest.raises(IndexError):
            client[0]
