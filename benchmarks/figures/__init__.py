"""The figures, in the order in which they are measured and shown.

The order matters: the idle cluster is weighed before anything else has made it grow, and what takes
long comes last.
"""

from __future__ import annotations

from benchmarks.figures import (
    data,
    footprint,
    large,
    ours,
    round_trip,
    startup,
    tasks,
    throughput,
)
from benchmarks.figures.base import Figure

FIGURES: tuple[Figure, ...] = (
    *startup.FIGURES,
    *footprint.FIGURES,
    *round_trip.FIGURES,
    *throughput.FIGURES,
    *data.FIGURES,
    *tasks.FIGURES,
    *large.FIGURES,
    *ours.FIGURES,
)

BY_KEY = {figure.key: figure for figure in FIGURES}
