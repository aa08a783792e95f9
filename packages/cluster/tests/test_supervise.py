import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from ipyfleet_cluster import Cluster
from ipyfleet_cluster.app.supervise import Stopped, Supervisor


def test_signal_cuts_work_short():
    """A signal to stop cancels the work, which cleans up before Stopped is raised."""
    cleaned = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def run() -> None:
        with Supervisor() as supervisor:
            with pytest.raises(Stopped):
                await supervisor.run(work())
            assert supervisor.stop_signal is signal.SIGTERM

    asyncio.run(run())
    assert cleaned


def test_further_signals_are_ignored():
    """The second and third Ctrl-C do not interrupt the stopping that the first began."""

    async def run() -> None:
        with Supervisor() as supervisor:
            os.kill(os.getpid(), signal.SIGINT)
            assert await supervisor.wait_end([]) is None
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0)
            assert supervisor.stop_signal is signal.SIGINT

    asyncio.run(run())


def test_result_and_error_come_through():
    """Work that ends before any signal gives its result, or raises what it raised."""

    async def give() -> int:
        return 3

    async def fail() -> None:
        raise ValueError("as asked")

    async def run() -> None:
        with Supervisor() as supervisor:
            assert await supervisor.run(give()) == 3
            with pytest.raises(ValueError, match="as asked"):
                await supervisor.run(fail())

    asyncio.run(run())


def test_end_of_a_process_is_seen(make_cluster: Callable[..., Cluster]):
    """wait_end returns the launcher whose process ended first."""
    cluster = make_cluster(n=1)

    async def run() -> object:
        await cluster.start_cluster()
        agent = cluster.engines["1"]
        with Supervisor() as supervisor:
            os.kill(agent.pid, signal.SIGKILL)
            return await supervisor.wait_end([cluster.controller, agent])

    assert asyncio.run(run()) is cluster.engines["1"]
    assert "killed by signal 9" in cluster.engines["1"].describe_end()
