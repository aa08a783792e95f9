"""What only ipyfleet promises: memory that does not grow, a queue whose length costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.figures.base import Figure, Goal, Sample, Session

TIMEOUT_S = 150.0

_FEW = 10

_QUEUE = """
import sys
from benchmarks.scheduler_events import measure
few, many, events = map(int, sys.argv[1:])
# A first one, so that neither pays for what is done once.
measure("single", few, events // 4)
costs = {few: [], many: []}
for _ in range(5):
    for queued, seen in costs.items():
        seen.append(1 / measure("single", queued, events)[1])
# Whatever else the machine does adds to them.
print(min(costs[many]) / min(costs[few]))
"""

_LAZY = """
import os, sys
import ipyfleet as ipf
from benchmarks.memory import measure_imap
with ipf.Cluster(n=int(sys.argv[2])) as rc:
    pids = {"client": os.getpid(), "controller": rc.session.info.pid}
    pids |= {str(k): pid for k, pid in enumerate(rc[:].apply_sync(os.getpid))}
    print(max(measure_imap(rc, pids, int(sys.argv[1])).worst.values()))
"""


def _run(program: str, *arguments: int) -> float:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    output = subprocess.check_output(command, env=dict(os.environ), timeout=TIMEOUT_S)
    return float(output.splitlines()[-1])


def _queue(session: Session) -> Sample:
    """The pure scheduler's CPU time for a task, events about single tasks."""
    return Sample(_run(_QUEUE, _FEW, session.sizes.queued, 8000))


def _lazy(session: Session) -> Sample:
    """How far any process was above its level after the first 10,000 items, at its worst."""
    return Sample(_run(_LAZY, session.sizes.lazy_items, session.sizes.workers))


_OURS = ("ipyfleet",)

FIGURES = (
    Figure(
        "queue",
        "scheduler's cost per task, {queued} queued against 10",
        "",
        "lower",
        _queue,
        (Goal(1.5),),
        _OURS,
    ),
    Figure(
        "lazy",
        "lazy map of {lazy_items}: growth of any process",
        "MiB",
        "lower",
        _lazy,
        (Goal(64),),
        _OURS,
    ),
)
