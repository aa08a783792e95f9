"""Measures a controller with many peers: simulated engines and clients that speak the protocol.

Run it on a quiet machine: ``python -m benchmarks.scale``, with ``--quick`` for a tenth of each. It
prints one JSON object. Times are those of the whole system on this machine, simulated peers
included; ``…_cpu_s`` and memory are the controller's alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.connection import ConnectionInfo, load_connection_file
from ipyfleet_testing.simulated import SimulatedClient, SimulatedPeers

from .machine import describe_machine, wait_quiet

PATIENCE_S = 120.0
GROUP_TASKS = 4096
ROUNDS = 5


@contextmanager
def controller(*arguments: str) -> Iterator[tuple[psutil.Process, ConnectionInfo]]:
    """Run ``ipcontroller``; yield its process and its clients' connection file."""
    with tempfile.TemporaryDirectory(prefix="ipyfleet-bench-") as folder:
        command = [sys.executable, "-m", "ipyfleet_controller", f"--profile-dir={folder}"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([*command, *arguments], stderr=log)
        try:
            path = Path(folder) / "security" / "ipyfleet-client.json"
            yield psutil.Process(process.pid), load_connection_file(path, timeout_s=PATIENCE_S)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _has_ended(client: SimulatedClient, count: int) -> bool:
    return client.n_ended == count


def measure_peers(n_engines: int, n_clients: int) -> dict[str, Any]:
    """Measure joining, and calls to all engines."""
    figures: dict[str, Any] = {"engines": n_engines, "clients": n_clients}
    with controller("--dictdb") as (process, info), SimulatedPeers(info) as peers:
        rss, cpu, begin = process.memory_info().rss, cpu_s(process), time.perf_counter()
        clients = peers.add_clients(n_clients)
        engines = peers.add_engines(n_engines)
        peers.run_until(lambda: all(len(c.engines) == n_engines for c in clients), PATIENCE_S)
        peers.run_until(lambda: all(engine.is_welcome for engine in engines), PATIENCE_S)
        figures["joined_s"] = round(time.perf_counter() - begin, 2)
        figures["joined_cpu_s"] = round(cpu_s(process) - cpu, 2)
        grown = process.memory_info().rss - rss
        figures["kib_per_engine"] = round(grown / n_engines / 1024, 1)
        rounds, costs = [], []
        client = clients[0]
        for number in range(1, ROUNDS + 1):
            cpu, begin = cpu_s(process), time.perf_counter()
            client.apply_to(range(n_engines))
            wanted = number * n_engines
            peers.run_until(partial(_has_ended, client, wanted), PATIENCE_S)
            rounds.append(time.perf_counter() - begin)
            costs.append(cpu_s(process) - cpu)
        figures["apply_to_all_ms"] = round(1000 * statistics.median(rounds), 1)
        figures["apply_to_all_cpu_ms"] = round(1000 * statistics.median(costs), 1)
        figures["failed"] = client.n_failed
    return figures


def measure_queue(n_tasks: int, group_tasks: int) -> dict[str, Any]:
    """Measure the memory of tasks that wait, submitted in groups of some size, and their end."""
    with controller("--dictdb") as (process, info), SimulatedPeers(info) as peers:
        [engine], [client] = peers.add_engines(1), peers.add_clients(1)
        peers.run_until(lambda: client.engines, PATIENCE_S)
        engine.is_busy = True
        client.submit(1)
        client.apply_to([0])
        request = client.ask(m.QueueStatus())
        peers.run_until(lambda: request in client.replies, PATIENCE_S)
        rss, cpu, begin = process.memory_info().rss, cpu_s(process), time.perf_counter()
        for _ in range(n_tasks // group_tasks):
            client.submit(group_tasks)
        request = client.ask(m.QueueStatus())
        peers.run_until(lambda: request in client.replies, PATIENCE_S)
        took = time.perf_counter() - begin
        return {
            "tasks": n_tasks // group_tasks * group_tasks,
            "tasks_per_group": group_tasks,
            "bytes_per_queued_task": round(
                (process.memory_info().rss - rss) / (n_tasks // group_tasks * group_tasks), 1
            ),
            "queued_s": round(took, 2),
            "queued_cpu_s": round(cpu_s(process) - cpu, 2),
        }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    share = 10 if parser.parse_args().quick else 1
    figures = {
        "machine": describe_machine(),
        "busy": wait_quiet(10.0),
        "peers": measure_peers(1000 // share, 100 // share),
        "map": measure_queue(1_000_000 // share, GROUP_TASKS),
        "single_calls": measure_queue(50_000 // share, 1),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
