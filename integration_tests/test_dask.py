"""Engines as a Dask cluster."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import ipyfleet as ipf

distributed = pytest.importorskip("distributed", reason="needs distributed")


@pytest.fixture
def dask(client: ipf.Client) -> Iterator[Any]:
    """A Dask client of the engines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own are none of ours
        connected = client.become_dask()
        yield connected
        connected.close()
        client.stop_dask()


def test_dask_runs_on_the_engines(dask: Any, client: ipf.Client) -> None:
    """There is one worker per engine, in its process, and futures come back."""
    assert dask.submit(pow, 2, 10).result(30) == 1024
    pids = dask.run(os.getpid)
    assert sorted(pids.values()) == sorted(client[:].apply_sync(os.getpid))
    assert sum(dask.gather(dask.map(abs, range(-50, 0)))) == sum(range(51))


def test_engines_stay_usable(dask: Any, client: ipf.Client) -> None:
    """While Dask runs, the engines take calls, and see their worker by name."""
    assert client[:].apply_sync(pow, 2, 3) == [8, 8]
    assert client[:]["type(dask_worker).__name__"] == ["Worker", "Worker"]


def test_becoming_twice_is_becoming_once(dask: Any, client: ipf.Client) -> None:
    """A second `become_dask` connects to what runs."""
    other = client.become_distributed()
    assert other.scheduler.address == dask.scheduler.address
    assert len(other.scheduler_info()["workers"]) == 2
    other.close()


def test_stopping(client: ipf.Client) -> None:
    """`stop_dask` leaves neither workers nor scheduler nor names; it may be called again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.become_dask(nthreads=2).close()
        client.stop_dask()
        client.stop_distributed()
        threads = client[:].apply_sync(
            lambda: [t.name for t in __import__("threading").enumerate()]
        )
    assert not any(name.startswith("dask-") for names in threads for name in names)
    assert client[:]["'dask_worker' in globals()"] == [False, False]
    assert client[:].apply_sync(abs, -1) == [1, 1]
