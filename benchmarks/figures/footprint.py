"""Processes and memory of a cluster that has answered once and has nothing to do."""

from __future__ import annotations

import os
import time

from benchmarks.figures.base import Figure, Goal, Sample, Session
from benchmarks.processes import cpu_percent, find_processes, pss_bytes


def _processes(session: Session) -> Sample:
    """Every process that the peer has started; the client's own is not counted."""
    time.sleep(session.sizes.idle_s)
    return Sample(len(find_processes(session.token, but=os.getpid())))


def _pss(session: Session) -> Sample:
    """The sum of the proportional set sizes of the same processes."""
    processes = find_processes(session.token, but=os.getpid())
    return Sample(sum(pss_bytes(process.pid) for process in processes) / 2**20)


def _cpu(session: Session) -> Sample:
    """What the same processes use, in per cent of one CPU."""
    processes = find_processes(session.token, but=os.getpid())
    return Sample(cpu_percent([process.pid for process in processes], session.sizes.idle_s))


FIGURES = (
    Figure("idle_processes", "idle cluster: processes", "", "lower", _processes),
    Figure("idle_pss", "idle cluster: memory (PSS)", "MiB", "lower", _pss, (Goal(120),)),
    Figure("idle_cpu", "idle cluster: CPU", "%", "lower", _cpu, (Goal(0.5),)),
)
