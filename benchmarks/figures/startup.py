"""From nothing to the first result."""

from __future__ import annotations

from benchmarks.figures.base import Figure, Sample, Session


def _first_result(session: Session) -> Sample:
    """The worker process has measured it: there is only one first time."""
    return Sample(session.first_result_s)


FIGURES = (
    Figure(
        "first_result",
        "nothing to first result, {workers} workers",
        "s",
        "lower",
        _first_result,
    ),
)
