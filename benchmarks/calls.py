"""A client's calls beside ipyparallel's: maps of a lambda, the cost of submitting, long maps.

    python -m benchmarks.calls
    python -m benchmarks.calls --runs 5 --ipyparallel /path/to/another/bin/python

Each peer runs in an interpreter of its own, with two engines; the peers take turns. The table has
medians. Submitting is measured as the client's CPU time, all of its threads, in a loop of
``apply_async`` on a load-balanced view. A long map is ``map_async`` of 100,000 items, one task
each, until all results are there, and how much larger the client has become by then; a peer that
would need more than a minute for that gets as many items as it can do in about ten seconds, and the
time is scaled up. The grid search is scikit-learn's, over the peer's joblib backend and in this
process alone; it is left out where scikit-learn is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

PEERS = ("ipyfleet", "ipyparallel")
TIMEOUT_S = 600.0

_PROGRAM = r"""
import gc, importlib, importlib.util, json, os, statistics, sys, time
ipp = importlib.import_module(sys.argv[1])
ITEMS, CALLS, LONG, TEN_S = 3200, 2000, 100_000, 10.0

def median_ms(call, rounds=7):
    call()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return 1000 * statistics.median(taken)

def rss_mib():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024

def submit_us(view):
    ars = [view.apply_async(abs, n) for n in range(100)]
    [ar.get() for ar in ars]
    gc.collect()
    begin = time.process_time()
    ars = [view.apply_async(abs, n) for n in range(CALLS)]
    spent = time.process_time() - begin
    [ar.get() for ar in ars]
    return 1e6 * spent / CALLS

def long_map(view):
    probe = 1000
    begin = time.perf_counter()
    view.map_sync(abs, range(probe))
    per_item = (time.perf_counter() - begin) / probe
    items = LONG if per_item * LONG < 60 else int(TEN_S / per_item)
    gc.collect()
    before, begin = rss_mib(), time.perf_counter()
    ar = view.map_async(abs, range(items))
    ar.wait()
    taken = time.perf_counter() - begin
    gc.collect()
    figures["long map"] = taken * LONG / items
    if items == LONG:
        figures["long map: memory"] = rss_mib() - before

def grid_search(n_jobs):
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC
    x, y = make_classification(n_samples=1500, n_features=20, random_state=0)
    grid = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": [0.01, 0.1, 1.0]}
    begin = time.perf_counter()
    GridSearchCV(SVC(), grid, n_jobs=n_jobs, cv=4, refit=False).fit(x, y)
    return time.perf_counter() - begin

figures = {}
with ipp.Cluster(n=2) as rc:
    rc.wait_for_engines(2)
    direct, balanced = rc[:], rc.load_balanced_view()
    figures["map, direct"] = median_ms(lambda: direct.map_sync(lambda x: x**10, range(ITEMS)))
    figures["map, balanced"] = median_ms(
        lambda: balanced.map_sync(lambda x: x**10, range(ITEMS)), 1 if "para" in sys.argv[1] else 7
    )
    figures["submit"] = submit_us(balanced)
    long_map(balanced)
    if importlib.util.find_spec("sklearn") is not None:
        import joblib
        figures["grid search, serial"] = grid_search(1)
        balanced.register_joblib_backend("bench")
        with joblib.parallel_config("bench"):
            grid_search(-1)
            figures["grid search"] = grid_search(-1)
json.dump(figures, open(sys.argv[2], "w"))
"""

_FIGURES = {
    "map, direct": ("map(lambda x: x**10, range(3200)), direct view", "ms"),
    "map, balanced": ("the same, load-balanced view", "ms"),
    "submit": ("one apply_async: the client's CPU time", "µs"),
    "long map": ("map_async of 100,000 items", "s"),
    "long map: memory": ("the client grows by", "MiB"),
    "grid search": ("GridSearchCV over joblib, 2 engines", "s"),
    "grid search, serial": ("GridSearchCV, serial", "s"),
}


def measure(peer: str, python: str) -> dict[str, float]:
    """Measure one peer once.

    Raises:
        subprocess.CalledProcessError: its program failed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-calls-") as folder:
        program, found = os.path.join(folder, "program.py"), os.path.join(folder, "figures.json")
        with open(program, "w") as file:
            file.write(_PROGRAM)
        subprocess.run(
            [python, program, peer, found],
            env={**os.environ, "IPYTHONDIR": folder},
            cwd=folder,
            check=True,
            timeout=TIMEOUT_S,
            stdout=subprocess.DEVNULL,
        )
        with open(found) as file:
            figures: dict[str, float] = json.load(file)
            return figures


def main() -> int:
    """Measure all peers in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="how often each peer is measured")
    for peer in PEERS:
        parser.add_argument(
            f"--{peer}", default=sys.executable, help=f"Python that has {peer}; - to leave it out"
        )
    options = vars(parser.parse_args())
    peers = [peer for peer in PEERS if options[peer] != "-"]
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for run in range(options["runs"]):
        for peer in peers if run % 2 == 0 else peers[::-1]:
            print(f"run {run + 1}: {peer}", file=sys.stderr, flush=True)
            runs[peer].append(measure(peer, options[peer]))
    print(f"| figure | {' | '.join(peers)} |\n|---|{'---|' * len(peers)}")
    for key, (name, unit) in _FIGURES.items():
        cells = []
        for peer in peers:
            values = [run[key] for run in runs[peer] if key in run]
            cells.append(f"{statistics.median(values):.3g} {unit}" if values else "–")
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
