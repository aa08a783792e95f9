"""Measures engines as a user meets them: start, memory, idle CPU, deaths, cancelled tasks, Ctrl-C.

Run it on a quiet machine: ``python -m benchmarks.engines``, with ``--quick`` for less of each. It
prints one JSON object. Each figure is measured on real processes, started as a user would.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import ipyfleet as ipf

from .machine import describe_machine, wait_quiet
from .processes import pss_bytes

GRACE_S = 1.0
PATIENCE_S = 60.0


@contextmanager
def ipcluster(n: int) -> Iterator[tuple[ipf.Client, float, list[psutil.Process]]]:
    """Run ``ipcluster start -n n``.

    Yields:
        A client, the seconds from the start of the command until each engine had answered a task,
        and all processes.
    """
    with tempfile.TemporaryDirectory(prefix="ipyfleet-bench-") as folder:
        profile = f"--profile-dir={folder}/profile"
        program = os.fspath(Path(sys.executable).with_name("ipcluster"))
        begin = time.perf_counter()
        with (Path(folder) / "log").open("wb") as log:
            owner = subprocess.Popen(
                [program, "start", "-n", str(n), profile], stdout=log, stderr=log
            )
        try:
            with ipf.Client(profile_dir=f"{folder}/profile", timeout=PATIENCE_S) as rc:
                rc.wait_for_engines(n, timeout=PATIENCE_S, interactive=False)
                rc[:].apply_sync(os.getpid)
                ready_s = time.perf_counter() - begin
                root = psutil.Process(owner.pid)
                yield rc, ready_s, [root, *root.children(recursive=True)]
        finally:
            owner.send_signal(signal.SIGINT)
            owner.wait(PATIENCE_S)


def measure_idle(processes: list[psutil.Process], seconds: float) -> float:
    """Return the CPU time that processes use while nothing is asked, in per cent of one core."""

    def cpu_s() -> float:
        times = [process.cpu_times() for process in processes]
        return sum(each.user + each.system for each in times)

    before, begin = cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return 100 * (cpu_s() - before) / (time.perf_counter() - begin)


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def hold_gil() -> None:
    """Be in C code for ten minutes, with the GIL."""
    import ctypes  # this function is of ``__main__``, so its globals are the engine's

    ctypes.PyDLL(None).sleep(600)


def measure_cancel(
    view: Any, function: Callable[..., Any], *args: Any, force: bool = False
) -> float:
    """Return the seconds from `abort` until an engine has done another task."""
    running = view.apply_async(function, *args)
    time.sleep(0.2)  # It has begun: nothing else is asked of the engine.
    begin = time.perf_counter()
    running.abort(force=force, grace=GRACE_S)
    view.apply_async(abs, -1).get(timeout=PATIENCE_S)
    return time.perf_counter() - begin


def measure_death(rc: Any) -> float:
    """Return the milliseconds from kill -9 of an engine until a client knows."""
    engine = rc.ids[-1]
    pid = rc[engine].apply_sync(os.getpid)
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while engine in rc.ids:
        time.sleep(0.0005)
    return 1000 * (time.perf_counter() - begin)


def measure_interrupt(wait: Callable[[], Any]) -> float:
    """Return the milliseconds from Ctrl-C until a wait has ended."""
    pressed_at: list[float] = []

    def press() -> None:
        pressed_at.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.2, press)
    timer.start()
    try:
        wait()
    except KeyboardInterrupt:
        return 1000 * (time.perf_counter() - pressed_at[0])
    finally:
        timer.join(PATIENCE_S)
    raise RuntimeError("the wait ended by itself")


def measure_interrupts(rc: Any) -> float:
    """Return the longest of some waits that Ctrl-C ends, in milliseconds."""
    result = rc[-1].apply_async(time.sleep, 600)
    waits: list[Callable[[], Any]] = [
        result.get,
        lambda: result.wait(PATIENCE_S),
        lambda: rc.wait(timeout=PATIENCE_S),
        lambda: rc.wait_for_engines(1000, timeout=PATIENCE_S, interactive=False),
        lambda: list(rc.load_balanced_view().imap(time.sleep, [600])),
    ]
    # The first alone, and all once more while another thread is the one that receives.
    longest = measure_interrupt(waits[0])
    other = threading.Thread(target=result.wait, args=(PATIENCE_S,))
    other.start()
    for wait in waits:
        longest = max(longest, measure_interrupt(wait))
    result.abort()
    other.join(PATIENCE_S)
    return longest


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything; return the figures."""
    figures: dict[str, Any] = {"machine": describe_machine(), "busy": wait_quiet(10.0)}
    rounds = 1 if quick else 3
    for n in (2, 16):
        starts = []
        for number in range(rounds):
            with ipcluster(n) as (rc, ready_s, processes):
                starts.append(ready_s)
                if number:
                    continue
                time.sleep(1.0)
                pss = [pss_bytes(process.pid) for process in processes]
                figures[f"pss_{n}_mib"] = round(sum(pss) / 2**20, 1)
                figures[f"processes_{n}"] = len(pss)
                idle = measure_idle(processes, 3.0 if quick else 20.0)
                figures[f"idle_{n}_percent"] = round(idle, 3)
                if n == 16:
                    deaths = [measure_death(rc) for _ in range(3 if quick else 10)]
                    figures["death_known_ms"] = round(statistics.median(deaths), 1)
                    figures["death_known_worst_ms"] = round(max(deaths), 1)
        figures[f"start_{n}_s"] = round(statistics.median(starts), 2)
    figures["pss_each_further_mib"] = round((figures["pss_16_mib"] - figures["pss_2_mib"]) / 14, 1)
    with ipcluster(1) as (rc, _, _):
        view = rc.load_balanced_view()
        figures["free_from_sleep_ms"] = round(1000 * measure_cancel(view, time.sleep, 600), 1)
        figures["free_from_loop_ms"] = round(1000 * measure_cancel(view, spin), 1)
        forced_s = measure_cancel(view, hold_gil, force=True)
        figures["free_from_gil_hold_ms"] = round(1000 * forced_s, 1)
        figures["grace_ms"] = 1000 * GRACE_S
        figures["wait_interrupted_worst_ms"] = round(measure_interrupts(rc), 1)
    return figures


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter waits")
    print(json.dumps(measure(parser.parse_args().quick), indent=2))


if __name__ == "__main__":
    main()
