"""Measures a cluster of many engines of ipyfleet or ipyparallel, from nothing; prints JSON.

Run by `figures.large`, in a fresh interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from statistics import median
from typing import Any

from benchmarks.processes import cpu_percent, find_processes, pss_bytes
from benchmarks.workload import noop


def main() -> None:
    """Measure."""
    module, many, mib, calls, idle_s = sys.argv[1:]
    begin = time.perf_counter()
    library: Any = importlib.import_module(module)
    with library.Cluster(n=int(many)) as rc:
        everywhere = rc[:]
        if everywhere.apply_sync(noop) != [0] * int(many):
            raise RuntimeError("not every engine has answered")
        figures = {"first_s": time.perf_counter() - begin}

        time.sleep(float(idle_s))
        token = os.environ["BENCHMARKS_MANY"]
        cluster = find_processes(token, but=os.getpid(), variable="BENCHMARKS_MANY")
        figures["pss_mib"] = sum(pss_bytes(process.pid) for process in cluster) / 2**20
        figures["cpu_percent"] = cpu_percent([process.pid for process in cluster], float(idle_s))

        taken = []
        for _ in range(max(10, int(calls) // 3)):
            begin = time.perf_counter()
            everywhere.apply_sync(noop)
            taken.append(time.perf_counter() - begin)
        figures["call_s"] = median(taken)

        import numpy as np

        for size in (2**20, int(mib) * 2**20):
            array = np.arange(size // 8, dtype="float64")
            begin = time.perf_counter()
            everywhere.push({"array": array}, block=True)
            figures["broadcast_s"] = time.perf_counter() - begin
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
