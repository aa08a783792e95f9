"""Measures what recording costs: throughput with each database, in one run.

Run it on a quiet machine: ``python -m benchmarks.databases``, with ``--quick`` for less. It prints
one JSON object. One cluster of two engines for each database; the rounds take turns, so that what
else goes on concerns all alike. ``share`` is the median of the ratios to memory, round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

import ipyfleet as ipf
from ipyfleet_testing.postgresql import PostgresServer, find_programs

from .machine import describe_machine, wait_quiet

PATIENCE_S = 120.0
ENGINES = 2


def no_op(number: int) -> int:
    """Do nothing."""
    return number


class Bench:
    """A cluster that records in one of the databases."""

    def __init__(self, stack: ExitStack, folder: Path, arguments: list[str]) -> None:
        cluster = ipf.Cluster(
            n=ENGINES, profile_dir=str(folder), controller_args=arguments, log_level=40
        )
        self.client = stack.enter_context(cluster)
        self.client.wait_for_engines(ENGINES, timeout=PATIENCE_S, interactive=False)
        self.controller = psutil.Process(self.client.session.info.pid)
        self.rates: list[float] = []
        self.cpu_us: list[float] = []

    def run(self, count: int) -> None:
        """Map a function that does nothing over `count` items, one task for each."""
        view = self.client.load_balanced_view()
        cpu, begin = self._cpu_s(), time.perf_counter()
        result = view.map_async(no_op, range(count), chunksize=1)
        if result.get(PATIENCE_S) != list(range(count)):
            raise RuntimeError("the map returned other values")
        self.rates.append(count / (time.perf_counter() - begin))
        # The answer comes when everything is written, so its cost is part of the figure.
        self.client.result_status(result.msg_ids[-1])
        self.cpu_us.append(1e6 * (self._cpu_s() - cpu) / count)

    def _cpu_s(self) -> float:
        times = self.controller.cpu_times()
        return float(times.user + times.system)


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Measure each database; return the figures."""
    figures: dict[str, Any] = {"machine": describe_machine(), "busy": wait_quiet(10.0)}
    figures |= {"tasks": count, "rounds": rounds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipyfleet-bench-")))
        kinds = {"memory": ["--dictdb"], "sqlite": ["--sqlitedb"]}
        programs = find_programs()
        if programs is not None:
            server = PostgresServer(programs)
            stack.callback(server.close)
            server.start()
            kinds["postgresql"] = ["--postgresdb", f"--db-url={server.url}"]
        benches = {
            kind: Bench(stack, folder / kind, arguments) for kind, arguments in kinds.items()
        }
        for number in range(rounds + 1):
            for bench in benches.values():
                bench.run(count if number else count // 10)
        for kind, bench in benches.items():
            rates = bench.rates[1:]  # the first round warms up
            base = benches["memory"].rates[1:]
            ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
            figures[kind] = {
                "tasks_per_s": round(statistics.median(rates)),
                "share": round(statistics.median(ratios), 3),
                "controller_cpu_us_per_task": round(statistics.median(bench.cpu_us[1:]), 1),
            }
    return figures


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tasks, fewer rounds")
    is_quick = parser.parse_args().quick
    print(json.dumps(measure(5_000 if is_quick else 50_000, 3 if is_quick else 9), indent=2))


if __name__ == "__main__":
    main()
