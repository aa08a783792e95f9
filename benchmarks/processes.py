"""Which processes belong to a measured peer, what they weigh, and how they end.

A peer's daemons leave its process tree, so membership is by an environment variable that the
driver sets for each worker process and that everything started from there inherits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TOKEN_VARIABLE = "BENCHMARKS_TOKEN"
"""Its value is unique to one worker process."""

_PROC = Path("/proc")


class Process(NamedTuple):
    """One live process; pid and start time together are never reused.

    Attributes:
        pid: The process id.
        started: Start time in clock ticks since boot, as the kernel gives it.
        command: Its command line, or its name where the command line is empty.
    """

    pid: int
    started: int
    command: str


def find_processes(
    token: str, *, but: int | None = None, variable: str = TOKEN_VARIABLE
) -> list[Process]:
    """Return the live processes that carry ``token``, without process ``but``."""
    marker = f"{variable}={token}".encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == but:
            continue
        try:
            if marker not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            process = _describe(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or another user's
        if process is not None:
            found.append(process)
    return found


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process.

    Pages that n processes share count for 1/n in each.

    Raises:
        OSError: The process is gone, or the kernel has no ``smaps_rollup``.
        ValueError: The kernel's answer has no ``Pss`` line.
    """
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss in smaps_rollup of process {pid}")


def cpu_percent(pids: Sequence[int], seconds: float) -> float:
    """Watch processes for some time; return the CPU time they used, in per cent of one CPU."""
    begin, before = time.monotonic(), sum(map(_cpu_s, pids))
    time.sleep(seconds)
    return 100 * (sum(map(_cpu_s, pids)) - before) / (time.monotonic() - begin)


def _cpu_s(pid: int) -> float:
    used_ns = 0
    for thread in (_PROC / str(pid) / "task").iterdir():
        used_ns += int((thread / "schedstat").read_text().split()[0])
    return used_ns / 1e9


def end_processes(token: str, *, grace_s: float) -> list[Process]:
    """Wait for the processes with ``token`` to end and kill those that are left after ``grace_s``.

    Returns:
        Those that had to be killed.
    """
    deadline = time.monotonic() + grace_s
    while find_processes(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed: list[Process] = []
    # Again and again, because what is being killed may be starting others.
    for _ in range(20):
        left = find_processes(token)
        if not left:
            break
        for process in left:
            if _describe(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process)
        time.sleep(0.05)
    return sorted(set(killed))


def _describe(pid: int) -> Process | None:
    """Return the process, or None when it is gone or a zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), command or name)
