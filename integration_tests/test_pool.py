"""Pools, method by method of `multiprocessing.pool`."""

from __future__ import annotations

import multiprocessing
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ipyfleet as ipf

TIMEOUT_S = 30


@pytest.fixture
def pool(client: ipf.Client) -> Iterator[ipf.Pool]:
    """A pool of two engines."""
    with ipf.Pool(view=client) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that tasks wait for; it is there after the test at the latest."""
    path = tmp_path / "gate"
    yield os.fspath(path)
    path.touch()


def waiter() -> Callable[[str], str]:
    """Return a function that waits for a file; it travels by value."""

    def wait_for(path: str) -> str:
        import os
        import time

        give_up = time.monotonic() + 30
        while not os.path.exists(path) and time.monotonic() < give_up:
            time.sleep(0.005)
        return path

    return wait_for


def test_apply(pool: ipf.Pool) -> None:
    """`apply(func, args, kwds)` calls and returns the value; errors are the function's own."""
    assert pool.apply(int, ("ff",), {"base": 16}) == 255
    assert pool.apply(dict) == {}
    with pytest.raises(ZeroDivisionError) as caught:
        pool.apply(operator.truediv, (1, 0))
    assert isinstance(caught.value.__cause__, ipf.RemoteError)


def test_apply_async(pool: ipf.Pool, gate: str) -> None:
    """The result tells whether it is ready and successful, waits, and times out."""
    result = pool.apply_async(waiter(), (gate,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.01)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    with pytest.raises(TimeoutError):
        result.get(timeout=0)
    Path(gate).touch()
    assert result.get(TIMEOUT_S) == gate
    assert result.ready() and result.successful()
    failed = pool.apply_async(operator.truediv, (1, 0))
    failed.wait(TIMEOUT_S)
    assert failed.ready() and not failed.successful()


def test_callbacks(pool: ipf.Pool) -> None:
    """The callback gets the value, the error callback the exception, and never the other."""
    seen: list[object] = []
    done = threading.Semaphore(0)

    def note(value: object) -> None:
        seen.append(value)
        done.release()

    pool.apply_async(abs, (-1,), callback=note, error_callback=note)
    assert done.acquire(timeout=TIMEOUT_S)
    pool.apply_async(operator.truediv, (1, 0), callback=note, error_callback=note)
    assert done.acquire(timeout=TIMEOUT_S)
    pool.map_async(abs, [-1, -2], callback=note, error_callback=note)
    assert done.acquire(timeout=TIMEOUT_S)
    assert [seen[0], type(seen[1]), seen[2]] == [1, ZeroDivisionError, [1, 2]]


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_map(pool: ipf.Pool, chunksize: int | None) -> None:
    """`map` returns the list of values in order, for any iterable and chunksize."""
    assert pool.map(abs, (k for k in range(-50, 0)), chunksize) == list(range(50, 0, -1))
    assert pool.map_async(abs, range(-3, 0), chunksize).get(TIMEOUT_S) == [3, 2, 1]
    assert pool.map(abs, []) == []


def test_map_raises_the_first_error(pool: ipf.Pool) -> None:
    """A map that fails raises the exception of the first item that failed."""
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda x: 1 // x, [1, 0, "a"])


def test_starmap(pool: ipf.Pool) -> None:
    """The items of `starmap` are unpacked as arguments, as many as each has."""
    assert pool.starmap(pow, [(2, 3), (2, 3, 5), [3, 2]]) == [8, 3, 9]
    assert pool.starmap_async(pow, [(2, 3)]).get(TIMEOUT_S) == [8]


def test_imap(pool: ipf.Pool) -> None:
    """`imap` yields in order; an item's error is raised in its place, the others follow."""
    assert list(pool.imap(abs, range(-500, 0), chunksize=10)) == list(range(500, 0, -1))
    values = pool.imap(lambda x: 6 // x, [1, 0, 3])
    assert next(values) == 6
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert values.next(timeout=TIMEOUT_S) == 2
    with pytest.raises(StopIteration):
        values.next()


def test_imap_unordered(pool: ipf.Pool, gate: str) -> None:
    """`imap_unordered` yields what is there, and times out on what is not."""
    values = pool.imap_unordered(waiter(), [gate, os.devnull, os.devnull])
    assert [next(values), next(values)] == [os.devnull] * 2
    with pytest.raises(multiprocessing.TimeoutError):
        values.next(timeout=0.01)
    Path(gate).touch()
    assert list(values) == [gate]


def test_close_and_join(client: ipf.Client) -> None:
    """After `close` no call is taken; `join` waits for those that were made."""
    pool = ipf.Pool(view=client)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    results = [pool.apply_async(abs, (-k,)) for k in range(100)]
    values = pool.imap(abs, range(100))
    pool.close()
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(ValueError, match="not running"):
            call(abs, (-1,))
    for mapping in (pool.map, pool.map_async, pool.starmap, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="not running"):
            mapping(abs, [(-1,)])
    pool.join()
    assert all(result.ready() for result in results)
    assert list(values) == list(range(100))


def test_terminate(client: ipf.Client, gate: str) -> None:
    """`terminate`, and leaving the `with` statement, take back what has not started."""
    with ipf.Pool(view=client) as pool:
        result = pool.map_async(waiter(), [gate] * 100)
    Path(gate).touch()
    with pytest.raises(ipf.TaskAborted):
        result.get(TIMEOUT_S)
    pool.terminate()
    pool.join()


def test_processes(client: ipf.Client) -> None:
    """`processes` bounds the engines that are used; a view keeps to its own."""
    with ipf.Pool(1, view=client) as pool:
        assert set(pool.starmap(os.getpid, [()] * 10)) == {client[0].apply_sync(os.getpid)}
    with ipf.Pool(view=client.load_balanced_view([1])) as pool:
        assert set(pool.starmap(os.getpid, [()] * 10)) == {client[1].apply_sync(os.getpid)}
    with pytest.raises(ValueError, match="at least 1"):
        ipf.Pool(0, view=client)


def test_initializer(client: ipf.Client) -> None:
    """`initializer(*initargs)` runs on each engine before anything else."""
    with ipf.Pool(initializer=os.putenv, initargs=("POOLED", "yes"), view=client) as pool:
        assert pool.apply(os.path.exists, ("/",))
    with pytest.raises(TypeError, match="callable"):
        ipf.Pool(initializer=5, view=client)  # type: ignore[arg-type]


SCRIPT = """
import math
import numpy as np
import ipyfleet as multiprocessing

some_data = np.arange(25)
table = None

def bootstrap(data, nsamples, f):
    samples = data[np.random.randint(len(data), size=(nsamples, len(data)))]
    return [f(s) for s in samples]

def mapped_bootstrap(n):
    return len(bootstrap(some_data, n, np.mean)) + math.floor(0.5)

def fill(n):
    global table
    table = list(range(n))

def look_up(k):
    return table[k]

pool = multiprocessing.Pool(processes=2)
result = pool.apply_async(bootstrap, (some_data, 1000, np.mean))
assert len(result.get()) == 1000
pool.close()
pool.join()

pool = multiprocessing.Pool(processes=2)
print(pool.map_async(mapped_bootstrap, [250] * 4).get())
some_data = "changed after the pool saw it"
print(pool.map(mapped_bootstrap, [1]))
pool.close()
pool.join()

with multiprocessing.Pool(2, initializer=fill, initargs=(10,)) as pool:
    print(pool.map(look_up, [3, 4]), len(pool._view))
"""


def test_a_script_of_multiprocessing_runs(tmp_path: Path) -> None:
    """Functions see the script's globals, an initializer sets them, and a pool brings engines."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, os.fspath(script)],
        env={**os.environ, "IPYTHONDIR": os.fspath(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["[250, 250, 250, 250]", "[1]", "[3, 4] 2"]
