"""Fixtures that start real clusters and see to it that they are gone afterwards.

`cluster` and `client` are for most tests: one cluster for the whole module (its number of engines
is the module's constant ``CLUSTER_ENGINES``, 2 by default) and a new client for each test. A test
that kills things, or wants options, makes clusters of its own with `cluster_factory`.

The cluster package is imported when a fixture is used, not before: this module is part of a plugin
that is loaded in environments that do not have it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from ipyfleet_client import Client
    from ipyfleet_cluster import Cluster

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

ClusterFactory: TypeAlias = "Callable[..., Cluster]"
"""``cluster_factory(n=2, **options)``: a started cluster with n engines registered."""


@contextlib.contextmanager
def running_cluster(folder: Path, n: int = 2, **options: Any) -> Iterator[Cluster]:
    """Start a cluster with a profile of its own, wait for its engines, stop it at the end.

    Args:
        folder: where its profile directory is made; empty or not there yet.
        n: number of engines.
        options: what `Cluster` takes.

    Raises:
        TimeoutError: the engines did not register in `START_TIMEOUT_S`.
        AssertionError: stopping took longer than `STOP_TIMEOUT_S`.
    """
    cluster_package = pytest.importorskip("ipyfleet_cluster", reason="needs ipyfleet-cluster")
    # `tox -e no-fork` sets it.
    more = os.environ.get("IPYFLEET_TEST_ENGINE_ARGS", "").split()
    if more:
        options["engine_args"] = [*more, *options.get("engine_args", ())]
    started = cluster_package.Cluster(n=n, profile_dir=str(folder / "profile"), **options)
    started.start_cluster_sync()
    try:
        if n:
            with contextlib.closing(started.connect_client_sync()) as waiting:
                waiting.wait_for_engines(n, timeout=START_TIMEOUT_S, interactive=False)
        yield started
    finally:
        begin = time.monotonic()
        started.stop_cluster_sync()
        took_s = time.monotonic() - begin
        assert took_s < STOP_TIMEOUT_S, f"stopping the cluster took {took_s:.1f} s"


@pytest.fixture
def cluster_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFactory]:
    """Make clusters for one test: ``cluster_factory(n=2, **options)`` returns one that is ready."""
    with contextlib.ExitStack() as stack:

        def start(n: int = 2, **options: Any) -> Cluster:
            folder = tmp_path_factory.mktemp("cluster")
            return stack.enter_context(running_cluster(folder, n, **options))

        yield start


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Start one cluster for all tests of a module, with ``CLUSTER_ENGINES`` engines."""
    engines = getattr(request.module, "CLUSTER_ENGINES", 2)
    with running_cluster(tmp_path_factory.mktemp("cluster"), engines) as started:
        yield started


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """Connect a client of its own to the module's cluster; it is closed after the test."""
    with contextlib.closing(cluster.connect_client_sync()) as connected:
        yield connected
