"""Measures how fast a cluster is back after its controller was killed, and what chaos costs.

Run it on a quiet machine: ``python -m benchmarks.recovery``, with ``--quick`` for less of each. It
prints one JSON object. Everything is killed with SIGKILL; the controller is started again by its
owner, which begins with that 0.1 s after each death (and later after further ones in a minute; the
delay is told beside each figure).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipyfleet as ipf
from ipyfleet_testing.chaos import RESPAWN_ARGS, RunLog, kill_engines, value_of

from .machine import describe_machine, wait_quiet

PATIENCE_S = 60.0
TASKS = 20_000
TASK_S = 0.0002


@contextlib.contextmanager
def cluster_with_log(n: int, **options: Any) -> Iterator[tuple[ipf.Cluster, ipf.Client, RunLog]]:
    """Start a cluster; yield it, a client, and where runs are counted."""
    with tempfile.TemporaryDirectory(prefix="ipyfleet-bench-") as folder:
        runs = Path(folder) / "runs"
        runs.mkdir()
        cluster = ipf.Cluster(n=n, profile_dir=f"{folder}/profile", **options)
        rc = cluster.start_and_connect_sync()
        try:
            rc[:].apply_sync(os.getpid)
            yield cluster, rc, RunLog(runs)
        finally:
            rc.close()
            cluster.stop_cluster_sync()


def wait(condition: Callable[[], object]) -> None:
    """Wait for a condition, looking often."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
        time.sleep(0.0005)


def recovery_idle() -> float:
    """Seconds from the kill of an idle cluster's controller until each engine answered a call."""
    with cluster_with_log(4) as (cluster, rc, _):
        view = rc[:]
        assert cluster.controller is not None
        began = time.perf_counter()
        cluster.controller.signal(signal.SIGKILL)
        wait(lambda: rc.session.reconnecting)
        view.apply_async(os.getpid).get(PATIENCE_S)
        return time.perf_counter() - began


def recovery_in_a_map(kills: int) -> dict[str, Any]:
    """Kill the controller in the middle of a map; how long results pause, and what came of all."""
    with cluster_with_log(4) as (cluster, rc, log):
        result = rc.load_balanced_view().map_async(
            log.function_of(TASK_S), range(TASKS), chunksize=1
        )
        pauses = []
        for number in range(kills):
            wait(lambda mark=(number + 1) * TASKS // (kills + 2): log.total > mark)
            assert cluster.controller is not None
            began = time.perf_counter()
            cluster.controller.signal(signal.SIGKILL)
            wait(lambda: rc.session.reconnecting)
            before = result.progress
            wait(lambda mark=before: result.progress > mark)
            pauses.append(time.perf_counter() - began)
        values = result.get(PATIENCE_S)
        runs = log.count()
        right = sum(value == value_of(task) for task, value in enumerate(values))
        return {
            "kills": kills,
            "tasks": TASKS,
            "lost": TASKS - right,
            "duplicated": result._work.arrived - TASKS,
            "run_again": runs.total() - TASKS,
            "pauses_s": [round(pause, 3) for pause in pauses],
        }


def chaos(kills: int, tasks: int) -> dict[str, Any]:
    """Kill engines at random during a map with retries and respawn."""
    with cluster_with_log(4, engine_args=RESPAWN_ARGS) as (cluster, _, log):
        counts = kill_engines(cluster, log, kills=kills, tasks=tasks)
        return {**counts._asdict(), "seconds": round(counts.seconds, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of each")
    parser.add_argument("--kills", type=int, default=100, help="engines killed (100)")
    parser.add_argument("--tasks", type=int, default=50_000, help="tasks meanwhile (50,000)")
    options = parser.parse_args()
    runs = 1 if options.quick else 5
    wait_quiet(15.0)
    idle = [recovery_idle() for _ in range(runs)]
    print(
        json.dumps(
            {
                "machine": describe_machine(),
                "recovery_idle_s": {
                    "median": round(statistics.median(idle), 3),
                    "all": [round(value, 3) for value in idle],
                },
                "controller_killed_in_a_map": [recovery_in_a_map(kills) for kills in (1, 2)],
                "engines_killed": chaos(options.kills, options.tasks),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
