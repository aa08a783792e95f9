"""Many peers at one controller; `benchmarks/scale.py` has the figures for a thousand."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from ipyfleet_testing.simulated import SimulatedPeers

N_ENGINES = 200
N_CLIENTS = 20
TIMEOUT_S = 30.0


def test_hundreds_of_engines_join_and_each_is_called(start: Any) -> None:
    """All clients learn of all engines; a call to each comes back from each, once."""
    info = start("--dictdb").info()
    with SimulatedPeers(info) as peers:
        clients = peers.add_clients(N_CLIENTS)
        engines = peers.add_engines(N_ENGINES)
        everywhere = set(range(N_ENGINES))
        peers.run_until(lambda: all(c.engines == everywhere for c in clients), TIMEOUT_S)
        peers.run_until(lambda: all(e.is_welcome for e in engines), TIMEOUT_S)
        assert {engine.engine_id for engine in engines} == everywhere
        for client in clients[:3]:
            client.apply_to(range(N_ENGINES))
        peers.run_until(lambda: all(c.n_ended == N_ENGINES for c in clients[:3]), TIMEOUT_S)
        assert {engine.n_tasks for engine in engines} == {3}
        assert all(client.n_failed == 0 for client in clients)
        clients[0].submit(10 * N_ENGINES)
        peers.run_until(lambda: clients[0].n_ended == 11 * N_ENGINES, TIMEOUT_S)
        assert sum(engine.n_tasks for engine in engines) == 13 * N_ENGINES


def test_the_controller_allows_itself_as_many_connections_as_it_may(start: Any) -> None:
    """It raises its limit of open files: a thousand engines need three thousand connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 256:
        pytest.skip("the system allows hardly any files")
    process = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
    process.info()
    with open(f"/proc/{process.popen.pid}/limits") as file:
        [line] = [line for line in file if line.startswith("Max open files")]
    assert line.split()[3] == str(hard)
