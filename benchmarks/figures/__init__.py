"""The figures, in the order in which they are measured and shown.

The order matters: the idle cluster is weighed before anything else has made it grow.
"""

from __future__ import annotations

from benchmarks.figures import data, footprint, round_trip, startup, throughput
from benchmarks.figures.base import Figure

FIGURES: tuple[Figure, ...] = (
    *startup.FIGURES,
    *footprint.FIGURES,
    *round_trip.FIGURES,
    *throughput.FIGURES,
    *data.FIGURES,
)

BY_KEY = {figure.key: figure for figure in FIGURES}
