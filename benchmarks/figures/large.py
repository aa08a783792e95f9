"""A cluster of many engines, in an interpreter of its own (`benchmarks.many`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from benchmarks.figures.base import Figure, Goal, Sample, Session

TIMEOUT_S = 150.0


def _of_many(name: str) -> Callable[[Session], Sample]:
    """Return what gives one of the numbers; the first who asks has all of them measured."""

    def measure(session: Session) -> Sample:
        if "many" not in session.kept:
            sizes = session.sizes
            arguments = [
                session.peer.module,
                sizes.many,
                sizes.broadcast_mib,
                sizes.calls,
                sizes.idle_s,
            ]
            command = [sys.executable, "-m", "benchmarks.many", *map(str, arguments)]
            environment = {**os.environ, "BENCHMARKS_MANY": session.token}
            output = subprocess.check_output(command, env=environment, timeout=TIMEOUT_S)
            session.kept["many"] = json.loads(output.splitlines()[-1])
        return Sample(session.kept["many"][name])

    return measure


_BOTH = ("ipyfleet", "ipyparallel")

FIGURES = (
    Figure(
        "first_many",
        "nothing to first result of each of {many} engines",
        "s",
        "lower",
        _of_many("first_s"),
        (Goal(2.5), Goal(5, "ipyparallel")),
        _BOTH,
    ),
    Figure(
        "call_all_many",
        "sync no-op on all {many} engines",
        "s",
        "lower",
        _of_many("call_s"),
        (Goal(6, "ipyparallel"),),
        _BOTH,
    ),
    Figure(
        "broadcast_many",
        "push {broadcast_mib} MiB to all {many} engines",
        "s",
        "lower",
        _of_many("broadcast_s"),
        (Goal(6, "ipyparallel"),),
        _BOTH,
    ),
    Figure(
        "idle_pss_many",
        "idle cluster of {many}: memory (PSS)",
        "MiB",
        "lower",
        _of_many("pss_mib"),
        (Goal(500),),
        _BOTH,
    ),
    Figure(
        "idle_cpu_many",
        "idle cluster of {many}: CPU",
        "%",
        "lower",
        _of_many("cpu_percent"),
        (Goal(0.5),),
        _BOTH,
    ),
)
