"""Executors, clause by clause of what the Python library reference says of `concurrent.futures`."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest

import ipyfleet as ipf
from ipyfleet_testing.cluster import ClusterFactory
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 30


@pytest.fixture
def executor(client: ipf.Client) -> Iterator[ipf.ViewExecutor]:
    """An executor on two engines."""
    with client.executor() as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that tasks wait for; it is there after the test at the latest."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def block(executor: ipf.ViewExecutor, gate: Path, count: int = 2) -> list[futures.Future[str]]:
    """Submit tasks that wait for the gate."""
    held = as_hold()
    return [executor.submit(held, os.fspath(gate)) for _ in range(count)]


def as_hold() -> Callable[[str], str]:
    """Return a function that waits for a file; no two are the same, so nobody knows how long."""
    mark = os.urandom(8)

    def held(path: str) -> str:
        import os
        import time

        give_up = time.monotonic() + 30
        while mark and not os.path.exists(path) and time.monotonic() < give_up:
            time.sleep(0.005)
        return path

    return held


# -- Executor.submit --------------------------------------------------------------------------


def test_submit_calls_and_returns_a_future(executor: ipf.ViewExecutor) -> None:
    """`submit(fn, *args, **kwargs)` returns a Future of the call's value."""
    future = executor.submit(int, "ff", base=16)
    assert isinstance(future, futures.Future)
    assert future.result(TIMEOUT_S) == 255


def test_submit_takes_any_keyword(executor: ipf.ViewExecutor) -> None:
    """Keywords named as the parameters of `submit` reach the function."""
    assert executor.submit(dict, self=1, fn=2).result(TIMEOUT_S) == {"self": 1, "fn": 2}


def test_calls_run_side_by_side(executor: ipf.ViewExecutor, tmp_path: Path) -> None:
    """As many calls run at a time as there are engines: two can wait for one another."""

    def meet(mine: str, other: str) -> bool:
        import os
        import time

        open(mine, "w").close()
        give_up = time.monotonic() + 20
        while not os.path.exists(other) and time.monotonic() < give_up:
            time.sleep(0.005)
        return os.path.exists(other)

    a, b = os.fspath(tmp_path / "a"), os.fspath(tmp_path / "b")
    both = [executor.submit(meet, a, b), executor.submit(meet, b, a)]
    assert [future.result(TIMEOUT_S) for future in both] == [True, True]


def test_thousands_of_short_calls(executor: ipf.ViewExecutor) -> None:
    """Short calls are sent ahead of results, so that a loop of submits is fast; all are there."""
    many = [executor.submit(operator.mul, k, 2) for k in range(3000)]
    assert [future.result(TIMEOUT_S) for future in many] == list(range(0, 6000, 2))


def test_futures_are_results_of_the_view(executor: ipf.ViewExecutor) -> None:
    """A future is an AsyncResult, too, with what the call has printed and where it ran."""
    future = executor.submit(print, "hello")
    assert future.result(TIMEOUT_S) is None
    assert isinstance(future, ipf.AsyncResult)
    assert future.wait_for_output(TIMEOUT_S)
    assert future.stdout == "hello\n"
    assert future.engine_id in (0, 1)


# -- Executor.map -----------------------------------------------------------------------------


def test_map_is_ordered_and_as_short_as_its_shortest_input(executor: ipf.ViewExecutor) -> None:
    """`map` yields in the order of the items, and stops with the shortest iterable."""
    assert list(executor.map(operator.add, range(100), range(50))) == list(range(0, 100, 2))
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs)) == []


def test_map_collects_its_input_at_once(executor: ipf.ViewExecutor) -> None:
    """The iterables are collected when `map` is called, and calls run before one iterates."""
    taken = []
    values = executor.map(abs, (taken.append(k) or k for k in range(20)))
    assert taken == list(range(20))
    assert list(values) == taken


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_in_chunks(executor: ipf.ViewExecutor, chunksize: int) -> None:
    """`chunksize` changes nothing of the values."""
    assert list(executor.map(abs, range(-10, 0), chunksize=chunksize)) == list(range(10, 0, -1))


def test_map_refuses_a_chunksize_of_zero(executor: ipf.ViewExecutor) -> None:
    """A chunksize below 1 raises ValueError, as in the library."""
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(abs, [1], chunksize=0)


def test_map_times_out(executor: ipf.ViewExecutor, gate: Path) -> None:
    """`__next__` raises TimeoutError if a value is not there `timeout` seconds after the call."""
    values = executor.map(as_hold(), [os.fspath(gate)], timeout=0.05)
    with pytest.raises(futures.TimeoutError):
        next(values)
    with pytest.raises(StopIteration):
        next(values)


def test_map_raises_where_the_call_did(executor: ipf.ViewExecutor) -> None:
    """An exception is raised when its value is asked for, as the type that the function raised."""
    values = executor.map(lambda x: 10 // x, [5, 2, 0, 1])
    assert [next(values), next(values)] == [2, 5]
    with pytest.raises(ZeroDivisionError) as caught:
        next(values)
    assert isinstance(caught.value.__cause__, ipf.RemoteError)


def test_map_with_a_buffersize_takes_items_as_results_are_taken(
    executor: ipf.ViewExecutor,
) -> None:
    """`buffersize` bounds how far the input is read ahead, so that it may be endless."""
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    values = executor.map(abs, endless(), buffersize=4)
    assert [next(values) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(abs, [1], buffersize=0)


def test_map_takes_back_what_nobody_waits_for(
    executor: ipf.ViewExecutor, client: ipf.Client, gate: Path
) -> None:
    """Closing the iterator cancels the calls that have not started."""
    values = executor.map(as_hold(), [os.fspath(gate)] * 50, timeout=0.01)
    with pytest.raises(TimeoutError):
        next(values)
    wait_until(lambda: len(client.outstanding) < 10, timeout_s=TIMEOUT_S)


# -- Executor.shutdown ------------------------------------------------------------------------


def test_no_submit_after_shutdown(client: ipf.Client) -> None:
    """After `shutdown`, `submit` and `map` raise RuntimeError."""
    executor = client.executor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    executor.shutdown()


def test_shutdown_waits(client: ipf.Client) -> None:
    """`shutdown(wait=True)` returns when all calls have ended, maps included."""
    executor = client.executor()
    many = [executor.submit(operator.neg, k) for k in range(200)]
    values = executor.map(abs, range(200))
    executor.shutdown(wait=True)
    assert all(future.done() for future in many)
    assert not client.outstanding
    assert list(values) == list(range(200))


def test_shutdown_without_waiting(client: ipf.Client, gate: Path) -> None:
    """`shutdown(wait=False)` returns at once; the calls go on, those not yet started too."""
    executor = client.executor()
    blocked = block(executor, gate, 4)
    executor.shutdown(wait=False)
    assert not any(future.done() for future in blocked)
    gate.touch()
    assert [f.result(TIMEOUT_S) for f in blocked] == [os.fspath(gate)] * 4


def test_shutdown_cancels_what_has_not_started(client: ipf.Client, gate: Path) -> None:
    """`cancel_futures=True` cancels pending futures, and leaves those alone that run."""
    executor = client.executor()
    running = block(executor, gate)
    wait_until(lambda: all(future.running() for future in running))
    pending = block(executor, gate, 5)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    assert not any(future.done() for future in running)
    gate.touch()
    executor.shutdown(wait=True)
    assert all(future.result(0) for future in running)


def test_shutdown_cancels_maps(client: ipf.Client, gate: Path) -> None:
    """The iterator of a map whose calls were cancelled by `shutdown` raises CancelledError."""
    executor = client.executor()
    values = executor.map(as_hold(), [os.fspath(gate)] * 30)
    executor.shutdown(wait=False, cancel_futures=True)
    wait_until(lambda: len(client.outstanding) < 10, timeout_s=TIMEOUT_S)
    gate.touch()
    with pytest.raises(futures.CancelledError):
        list(values)


def test_leaving_the_context_shuts_down(client: ipf.Client) -> None:
    """A `with` statement ends as `shutdown(wait=True)` does."""
    with client.executor() as executor:
        future = executor.submit(abs, -1)
    assert future.done()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)


def test_shutdown_leaves_engines_alone(client: ipf.Client) -> None:
    """Shutting down an executor stops no engine, and a view gets a new executor after it."""
    view = client.load_balanced_view()
    with view.executor as executor:
        assert view.executor is executor
    assert view.executor.submit(abs, -1).result(TIMEOUT_S) == 1
    assert len(client.ids) == 2


def test_the_program_ends_when_its_futures_have(cluster: ipf.Cluster, tmp_path: Path) -> None:
    """The interpreter waits for pending futures at its end, whatever `wait` was."""
    code = f"""
import sys, ipyfleet as ipf
def touch(k):
    open({os.fspath(tmp_path)!r} + f"/{{k}}", "w").close()
rc = ipf.Client(profile_dir={cluster.profile_dir!r}, cluster_id={cluster.cluster_id!r})
executor = rc.executor()
for k in range(20):
    executor.submit(touch, k)
executor.shutdown(wait=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT_S)
    assert len(list(tmp_path.iterdir())) == 20


# -- Future -----------------------------------------------------------------------------------


def test_cancel_before_the_start(executor: ipf.ViewExecutor, gate: Path) -> None:
    """A call that waits can be cancelled: it is cancelled and done, never runs, and says so."""
    block(executor, gate)
    future = executor.submit(abs, -1)
    assert not future.running() and not future.done()
    assert future.cancel()
    assert future.cancelled() and future.done() and not future.running()
    assert future.cancel(), "cancelling twice is no failure"
    with pytest.raises(futures.CancelledError):
        future.result(TIMEOUT_S)
    with pytest.raises(futures.CancelledError):
        future.exception(TIMEOUT_S)


def test_cancel_of_what_runs(executor: ipf.ViewExecutor, gate: Path) -> None:
    """A call that runs cannot be cancelled, and goes on."""
    (future,) = block(executor, gate, 1)
    wait_until(future.running, timeout_s=TIMEOUT_S)
    assert not future.cancel()
    assert not future.cancelled() and not future.done() and future.running()
    gate.touch()
    assert future.result(TIMEOUT_S) == os.fspath(gate)
    assert not future.cancelled() and future.done() and not future.running()


def test_cancel_of_what_has_ended(executor: ipf.ViewExecutor) -> None:
    """A call that has ended cannot be cancelled."""
    future = executor.submit(abs, -1)
    future.result(TIMEOUT_S)
    assert not future.cancel() and not future.cancelled()


def test_cancelled_for_good_or_not_at_all(
    executor: ipf.ViewExecutor, tmp_path: Path, gate: Path
) -> None:
    """What `cancel` says holds: True, and the call never ran; False, and it has a value."""

    def touch(path: str, gate: str) -> bool:
        import os
        import time

        open(path, "w").close()
        while gate and not os.path.exists(gate):
            time.sleep(0.002)
        return True

    # From one of them on they are held, so that some still wait when they are cancelled.
    held = ["" if k < 250 else os.fspath(gate) for k in range(500)]
    many = [executor.submit(touch, os.fspath(tmp_path / str(k)), held[k]) for k in range(500)]
    verdicts = [future.cancel() for future in reversed(many)][::-1]
    gate.touch()
    executor.shutdown()
    ran = [(tmp_path / str(k)).exists() for k in range(500)]
    assert ran == [not verdict for verdict in verdicts]
    assert [future.cancelled() for future in many] == verdicts
    assert True in verdicts


def test_result_times_out(executor: ipf.ViewExecutor, gate: Path) -> None:
    """`result` and `exception` raise TimeoutError after `timeout` seconds, and the call goes on."""
    (future,) = block(executor, gate, 1)
    for wait in (future.result, future.exception):
        with pytest.raises(futures.TimeoutError):
            wait(0.01)
        with pytest.raises(futures.TimeoutError):
            wait(-1)
    gate.touch()
    assert future.result(TIMEOUT_S)


def test_result_raises_the_same_exception(executor: ipf.ViewExecutor) -> None:
    """`result` raises what the call raised, caused by a RemoteError with the engine's traceback."""
    future = executor.submit(operator.truediv, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        future.result(TIMEOUT_S)
    cause = caught.value.__cause__
    assert isinstance(cause, ipf.RemoteError)
    assert cause.ename == "ZeroDivisionError"
    assert any("ZeroDivisionError" in line for line in cause.traceback)
    assert future.exception() is caught.value
    assert future.done() and not future.running()


def test_get_raises_as_any_asyncresult(executor: ipf.ViewExecutor) -> None:
    """`get`, which futures of the library do not have, raises the RemoteError as for any view."""
    future = executor.submit(operator.truediv, 1, 0)
    with pytest.raises(ipf.RemoteError) as caught:
        future.get(TIMEOUT_S)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_that_cannot_travel(executor: ipf.ViewExecutor) -> None:
    """Of an exception that cannot be pickled there is the RemoteError, which names it."""

    def fail() -> None:
        class Odd(Exception):
            def __reduce__(self) -> str:
                raise TypeError("no")

        raise Odd("hm")

    with pytest.raises(ipf.RemoteError, match="Odd: hm"):
        executor.submit(fail).result(TIMEOUT_S)


def test_exception_of_a_success(executor: ipf.ViewExecutor) -> None:
    """`exception` returns None if the call raised nothing."""
    assert executor.submit(abs, -1).exception(TIMEOUT_S) is None


def test_callbacks(executor: ipf.ViewExecutor) -> None:
    """Callbacks get the future, in the order in which they were added, also if one raises."""
    seen: list[tuple[int, object]] = []
    done = threading.Event()
    logged = []
    future = executor.submit(abs, -1)

    def note(number: int) -> Callable[[object], None]:
        return lambda it: seen.append((number, it))

    def fail(_: object) -> None:
        logged.append(1)
        raise ValueError("logged, not raised")

    for callback in (note(1), fail, note(2), lambda _: done.set()):
        future.add_done_callback(callback)
    assert done.wait(TIMEOUT_S)
    assert seen == [(1, future), (2, future)] and logged == [1]
    future.add_done_callback(note(3))
    assert seen[-1] == (3, future), "of a future that is done, at once"


def test_callbacks_of_the_cancelled(executor: ipf.ViewExecutor, gate: Path) -> None:
    """A future that is cancelled calls its callbacks, too."""
    block(executor, gate)
    future = executor.submit(abs, -1)
    called = threading.Event()
    future.add_done_callback(lambda it: called.set())
    future.cancel()
    assert called.wait(TIMEOUT_S)


def test_a_callback_may_submit_and_wait(executor: ipf.ViewExecutor) -> None:
    """A callback may use the executor, and wait for what it submits."""
    values: list[int] = []
    done = threading.Event()

    def more(_: object) -> None:
        values.append(executor.submit(abs, -2).result(TIMEOUT_S))
        done.set()

    executor.submit(abs, -1).add_done_callback(more)
    assert done.wait(TIMEOUT_S)
    assert values == [2]


# -- module functions -------------------------------------------------------------------------


def test_wait_over_mixed_futures(executor: ipf.ViewExecutor, gate: Path) -> None:
    """`concurrent.futures.wait` takes our futures beside those of threads."""
    with futures.ThreadPoolExecutor(1) as threads:
        held = block(executor, gate, 2)
        mixed = [*held, threads.submit(abs, -1), executor.submit(operator.truediv, 1, 0)]
        first = futures.wait(mixed, TIMEOUT_S, return_when=futures.FIRST_COMPLETED)
        assert first.done and first.done <= set(mixed[2:])
        some = futures.wait(mixed, 0.01)
        assert set(held) <= some.not_done
        gate.touch()
        error = futures.wait(mixed, TIMEOUT_S, return_when=futures.FIRST_EXCEPTION)
        assert mixed[3] in error.done
        assert futures.wait(mixed, TIMEOUT_S).not_done == set()


def test_as_completed_over_mixed_futures(executor: ipf.ViewExecutor, gate: Path) -> None:
    """`as_completed` yields each future once, what is done or cancelled first."""
    with futures.ThreadPoolExecutor(1) as threads:
        held = block(executor, gate, 2)
        cancelled = executor.submit(abs, -1)
        cancelled.cancel()
        quick = threads.submit(abs, -2)
        completed = futures.as_completed([*held, cancelled, quick], TIMEOUT_S)
        assert {next(completed), next(completed)} == {cancelled, quick}
        gate.touch()
        assert set(completed) == set(held)
        with pytest.raises(futures.TimeoutError):
            list(futures.as_completed([futures.Future()], 0.01))


def test_futures_can_be_awaited(executor: ipf.ViewExecutor) -> None:
    """`asyncio.wrap_future`, `await` and `run_in_executor` take executor and futures."""

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        wrapped = asyncio.wrap_future(executor.submit(abs, -1))
        run = loop.run_in_executor(executor, abs, -2)
        try:
            await executor.submit(operator.truediv, 1, 0)
        except ZeroDivisionError as error:
            return [await wrapped, await run, type(error)]
        return []

    assert asyncio.run(main()) == [1, 2, ZeroDivisionError]


def test_many_threads_submit(executor: ipf.ViewExecutor) -> None:
    """Any number of threads may use one executor."""
    with futures.ThreadPoolExecutor(8) as threads:
        values = threads.map(lambda k: executor.submit(abs, -k).result(TIMEOUT_S), range(200))
        assert list(values) == list(range(200))


# -- engines and views ------------------------------------------------------------------------


def test_an_engine_that_dies(cluster_factory: ClusterFactory) -> None:
    """The call that ran there ends with EngineError; the others go on elsewhere."""
    with cluster_factory(n=2).connect_client_sync() as client, client.executor() as executor:

        def die() -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

        future = executor.submit(die)
        others = [executor.submit(abs, -k) for k in range(50)]
        with pytest.raises(ipf.EngineError):
            future.result(TIMEOUT_S)
        assert isinstance(future.exception(), ipf.EngineError)
        assert [other.result(TIMEOUT_S) for other in others] == list(range(50))
        assert executor.submit(abs, -1).result(TIMEOUT_S) == 1


def test_a_client_that_closes(cluster: ipf.Cluster, gate: Path) -> None:
    """Futures that are outstanding when the client is closed end with an error, queued ones too."""
    client = cluster.connect_client_sync()
    executor = client.executor()
    held = block(executor, gate, 5)
    client.close()
    for future in held:
        assert isinstance(future.exception(TIMEOUT_S), ipf.KernelError)
    with pytest.raises(ipf.ClientClosed):
        executor.submit(abs, -1)
    executor.shutdown()


def test_executor_of_a_direct_view(client: ipf.Client) -> None:
    """Through a direct view each call runs on each target and its value is the list of theirs."""
    with client[:].executor as executor:
        pids = executor.submit(os.getpid).result(TIMEOUT_S)
        assert pids == client[:].apply_sync(os.getpid)
        assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
    with client[1].executor as executor:
        assert executor.submit(os.getpid).result(TIMEOUT_S) == pids[1]


def test_targets_and_flags(client: ipf.Client) -> None:
    """`rc.executor(targets)` keeps to them; the view's flags hold for calls made meanwhile."""
    with client.executor([1]) as executor:
        many = [executor.submit(os.getpid) for _ in range(10)]
        assert {future.result(TIMEOUT_S) for future in many} == {client[1].apply_sync(os.getpid)}
        with executor.view.temp_flags(label="mine"):
            future = executor.submit(abs, -1)
        future.result(TIMEOUT_S)
        assert future.metadata["label"] == "mine"
        assert executor._max_workers == 1


def test_interrupting_a_wait(executor: ipf.ViewExecutor, gate: Path) -> None:
    """Ctrl-C ends the wait for a future at once, and future and executor can be used on."""
    (future,) = block(executor, gate, 1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def wait() -> None:
        timer.start()
        future.result(TIMEOUT_S)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert time.monotonic() - begin < TIMEOUT_S / 2
    timer.join()
    gate.touch()
    assert future.result(TIMEOUT_S) == os.fspath(gate)
