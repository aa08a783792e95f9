"""Measures what a client's calls take while others attack the controller.

Run it on a quiet machine: ``python -m benchmarks.hostile``. It prints one JSON object: the median
and the 95th percentile of a round trip through controller and simulated engine, quiet and under
each attack, and the ratio of the medians. On two cores the attackers' own work counts against the
client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.ids import Channel, new_peer_id, routing_id
from ipyfleet_protocol.local import connect_local, socket_path
from ipyfleet_testing.hostile import Fuzzer
from ipyfleet_testing.simulated import SimulatedClient, SimulatedPeers

from .machine import describe_machine, wait_quiet
from .scale import PATIENCE_S, controller

ATTACKS = ("fuzz", "never_reads", "connect_and_die")
RATE_PER_S = 2000
"""Messages or connections that an attacker sends at most; more would measure the attacker."""


def attack(kind: str, url: str, instance: str, host: str) -> None:
    """Attack until killed; run in a process of its own."""
    from ipyfleet_protocol.connection import new_connection_info

    info = new_connection_info(instance=instance, role="client", urls=[url])
    info.host = host
    with SimulatedPeers(info, url) as peers:
        if kind == "fuzz":
            fuzzer = Fuzzer(peers, seed=1)
            _repeat(lambda n: fuzzer.attack(fuzzer.senders[n % len(fuzzer.senders)], 20), 20)
        elif kind == "never_reads":
            path, peer = socket_path(url), new_peer_id()
            assert path is not None
            stream = connect_local(path, routing_id(peer, Channel.CLIENT))
            stream.send([encode(SimulatedClient(peers).hello(peer=peer))])
            _repeat(lambda n: stream.send([encode(m.Request(n, m.QueueStatus()))]), 1)
        else:
            _repeat(lambda n: _die(peers), 20)


def _die(peers: SimulatedPeers) -> None:
    client = SimulatedClient(peers)
    client.join()
    peers.turn(0)
    client.close()


def _repeat(step: Callable[[int], object], weight: int) -> None:
    begin, number = time.monotonic(), 0
    while True:
        step(number)
        number += 1
        early_s = number * weight / RATE_PER_S - (time.monotonic() - begin)
        if early_s > 0:
            time.sleep(early_s)


def measure_calls(peers: SimulatedPeers, seconds: float) -> list[float]:
    """Return the milliseconds of each of a client's calls."""
    client, engine = peers.clients[0], peers.engines[0]
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        wanted, begin = client.n_ended + 1, time.perf_counter()
        client.apply_to([engine.engine_id])
        peers.run_until(lambda n=wanted: client.n_ended == n, PATIENCE_S)  # type: ignore[misc]
        taken.append(1000 * (time.perf_counter() - begin))
    assert client.n_failed == 0
    assert client.refused == ""
    return taken


def _summary(taken: list[float]) -> dict[str, float]:
    return {
        "calls": len(taken),
        "median_ms": round(statistics.median(taken), 3),
        "p95_ms": round(statistics.quantiles(taken, n=20)[-1], 3),
    }


def measure(seconds: float) -> dict[str, Any]:
    """Measure everything; return the figures."""
    figures: dict[str, Any] = {"machine": describe_machine(), "busy": wait_quiet(10.0)}
    arguments = ("--dictdb", "--outbox-max-bytes=16777216", "--away-limit=1")
    with controller(*arguments) as (process, info), SimulatedPeers(info) as peers:
        peers.add_engines(1)
        [client] = peers.add_clients(1)
        peers.run_until(lambda: client.engines, PATIENCE_S)
        measure_calls(peers, seconds / 4)
        rss = process.memory_info().rss
        quiet = measure_calls(peers, seconds)
        figures["quiet"] = _summary(quiet)
        for kind in ATTACKS:
            found = _under(kind, info, peers, seconds)
            found["ratio"] = round(found["median_ms"] / figures["quiet"]["median_ms"], 2)
            found["grown_mib"] = round((process.memory_info().rss - rss) / 2**20, 1)
            figures[kind] = found
    return figures


def _under(
    kind: str, info: ConnectionInfo, peers: SimulatedPeers, seconds: float
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.hostile", "--attack", kind]
    attacker = subprocess.Popen([*command, peers.url, info.instance, info.host])
    try:
        time.sleep(1.0)  # it imports, and connects
        return _summary(measure_calls(peers, seconds))
    finally:
        attacker.kill()
        attacker.wait()


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack(*options.attack)
    else:
        print(json.dumps(measure(options.seconds), indent=2))


if __name__ == "__main__":
    main()
