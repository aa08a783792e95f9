"""The memory of a client, its controller and two engines under work that shall not need any.

    python -m benchmarks.memory
    python -m benchmarks.memory --items 100000

- **imap**: a lazy map of a million small items. How far each process is above its level after the
  first 10,000, at its worst.
- **dropped**: 1,500 results of 1 MiB, inline and through shared memory, each read and dropped. How
  far each process is above its level after the first hundred, once the controller has written them
  to its database; what is left in ``/dev/shm``.
- **map_async**: 100,000 items in one call. The wall time, and what the client holds for each item
  until results are read, in bytes and in Python objects.

Memory is the unique set size (private pages), so that what forked engines share counts for none.
The exit code is 1 when a lazy map or dropped results cost a process more than 64 MiB.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ipyfleet as ipf

LIMIT_MIB = 64.0
WARM_ITEMS = 10_000
SAMPLE_ITEMS = 20_000
RESULTS, WARM_RESULTS, RESULT_BYTES = 1500, 100, 1024 * 1024
SETTLE_S = 3.0
MAP_ITEMS = 100_000
TIMEOUT_S = 600.0

_PRIVATE = ("Private_Clean:", "Private_Dirty:")


def private_mib(pid: int) -> float:
    """Return the unique set size of a process."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(_PRIVATE):
            total += int(line.split()[1])
    return total / 1024


class Growth:
    """How far processes have grown above where they were."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.base = {name: private_mib(pid) for name, pid in pids.items()}
        self.worst = dict.fromkeys(pids, 0.0)

    def look(self) -> None:
        """Take a look at each process."""
        for name, pid in self._pids.items():
            grown = private_mib(pid) - self.base[name]
            self.worst[name] = max(self.worst[name], grown)


def measure_imap(rc: Any, pids: dict[str, int], items: int) -> Growth:
    """Pull a lazy map through."""
    stream = rc.load_balanced_view().imap(lambda x: x + 1, iter(range(items)))
    for _ in range(WARM_ITEMS):
        next(stream)
    growth = Growth(pids)
    for number, value in enumerate(stream, WARM_ITEMS):
        if value != number + 1:
            raise RuntimeError(f"{value} in the place of {number + 1}")
        if number % SAMPLE_ITEMS == 0:
            growth.look()
    growth.look()
    return growth


def make_large(size: int) -> bytes:
    """Return a result that goes through shared memory."""
    return bytes(size)


def make_many(size: int) -> list[bytes]:
    """Return a result as large, in pieces that travel inside of the message."""
    return [number.to_bytes(4096, "little") for number in range(size // 4096)]


def measure_dropped(rc: Any, pids: dict[str, int], make: Any) -> Growth:
    """Read results and drop them."""
    for _ in range(WARM_RESULTS):
        rc.load_balanced_view().apply_async(make, RESULT_BYTES).get(TIMEOUT_S)
    time.sleep(SETTLE_S)
    growth = Growth(pids)
    for _ in range(RESULTS):
        rc.load_balanced_view().apply_async(make, RESULT_BYTES).get(TIMEOUT_S)
    # What waits to be written to the database is bounded by the controller, and gone then.
    time.sleep(SETTLE_S)
    growth.look()
    return growth


def blob_files(rc: Any) -> int:
    """Return how many files of the cluster are in shared memory."""
    folder = Path(rc.session.info.blob_dir)
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def measure_map_async(rc: Any, items: int) -> dict[str, float]:
    """Submit a long map and wait; the results are not read."""
    view = rc.load_balanced_view()
    view.map_async(abs, range(1000)).wait(TIMEOUT_S)
    begin = time.perf_counter()
    ar = view.map_async(abs, range(items))
    submitted = time.perf_counter() - begin
    ar.wait(TIMEOUT_S)
    figures = {"submitted (s)": submitted, "all results here (s)": time.perf_counter() - begin}
    ar.get()
    figures["all values read (s)"] = time.perf_counter() - begin
    del ar
    gc.collect()
    tracemalloc.start()
    objects, (held, _) = len(gc.get_objects()), tracemalloc.get_traced_memory()
    ar = view.map_async(abs, range(items))
    ar.wait(TIMEOUT_S)
    gc.collect()
    figures["bytes held per item"] = (tracemalloc.get_traced_memory()[0] - held) / items
    figures["objects held per item"] = (len(gc.get_objects()) - objects) / items
    tracemalloc.stop()
    return figures


def main() -> int:
    """Measure, print a table; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="of the lazy map")
    options = parser.parse_args()
    too_much = False
    with ipf.Cluster(n=2) as rc:
        pids = {"client": os.getpid(), "controller": rc.session.info.pid}
        pids |= {f"engine {k}": pid for k, pid in enumerate(rc[:].apply_sync(os.getpid))}
        rows = {"imap": measure_imap(rc, pids, options.items)}
        rows["dropped, inline"] = measure_dropped(rc, pids, make_many)
        rows["dropped, shared memory"] = measure_dropped(rc, pids, make_large)
        print(f"| growth, MiB | {' | '.join(pids)} |\n|---|{'---|' * len(pids)}")
        for name, growth in rows.items():
            print(f"| {name} | {' | '.join(f'{mib:.1f}' for mib in growth.worst.values())} |")
            too_much |= max(growth.worst.values()) > LIMIT_MIB
        print(f"\n{blob_files(rc)} files left in shared memory\n")
        for name, figure in measure_map_async(rc, MAP_ITEMS).items():
            print(f"map_async of {MAP_ITEMS:,}: {name}: {figure:.3g}")
    return int(too_much)


if __name__ == "__main__":
    sys.exit(main())
