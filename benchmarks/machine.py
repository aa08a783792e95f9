"""What the bench runs on, and whether it has it for itself."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

QUIET_SHARE = 0.10
"""Below this share of busy CPU time the machine counts as quiet."""

_SAMPLE_S = 0.5


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs in order to place the figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def version_of(distribution: str | None) -> str | None:
    """Return the installed version of a distribution; None for None."""
    return None if distribution is None else metadata.version(distribution)


def wait_quiet(timeout_s: float) -> float:
    """Wait until nothing else uses the CPUs, or until the time is up.

    Returns:
        The share of busy CPU time in the last half second, 0 to 1.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        busy = _busy_share()
        if busy < QUIET_SHARE or time.monotonic() >= deadline:
            return busy


def _busy_share() -> float:
    before_idle, before_all = _cpu_times()
    time.sleep(_SAMPLE_S)
    idle, every = _cpu_times()
    return 1 - (idle - before_idle) / max(1, every - before_all)


def _cpu_times() -> tuple[int, int]:
    """Return (idle, all) ticks of all CPUs; waiting for a disk counts as idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
