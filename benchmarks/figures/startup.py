"""From nothing to the first result."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.figures.base import Figure, Goal, Sample, Session


def _first_result(session: Session) -> Sample:
    """The worker process has measured it: there is only one first time."""
    return Sample(session.first_result_s)


_IMPORT = """
import sys, time
begin = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - begin)
"""


def _import(session: Session) -> Sample:
    """In an interpreter of its own, once to have the byte code, then once for the figure."""
    command = [sys.executable, "-c", _IMPORT, session.peer.module]
    return Sample([float(subprocess.check_output(command, timeout=60)) for _ in range(2)][1])


FIGURES = (
    Figure(
        "first_result",
        "nothing to first result, {workers} workers",
        "s",
        "lower",
        _first_result,
        (Goal(1.0), Goal(6, "ipyparallel")),
    ),
    Figure("import", "import", "s", "lower", _import, (Goal(0.25),)),
)
