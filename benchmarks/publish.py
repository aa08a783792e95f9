"""Puts a table into docs/performance.md."""

from __future__ import annotations

from pathlib import Path

from benchmarks import report
from benchmarks.driver import ROOT
from benchmarks.figures import BY_KEY
from benchmarks.peers import NAMES
from benchmarks.records import Results

PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"

MIN_RUNS = 5
"""Fewer runs make no median worth publishing."""


class NotFitForPublication(ValueError):
    """The bench was cut short, or the page has no place for the table."""


def check_fit(results: Results) -> None:
    """Refuse what would mislead readers.

    Raises:
        NotFitForPublication: The bench was a quick one, had too few runs, or left out peers or
            figures.
    """
    if results.quick:
        raise NotFitForPublication("the figures of a quick run mean little")
    if results.runs < MIN_RUNS:
        raise NotFitForPublication(f"{results.runs} runs are too few: at least {MIN_RUNS}")
    if missing := (set(NAMES) - set(results.peers)) | (set(BY_KEY) - set(results.figures)):
        raise NotFitForPublication(f"not measured: {', '.join(sorted(missing))}")


def write_docs(results: Results, page: Path = PAGE) -> Path:
    """Replace what stands between the page's two markers by the table; return the page.

    Raises:
        NotFitForPublication: See :func:`check_fit`; or the page lacks a marker. The page is as it
            was.
    """
    check_fit(results)
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NotFitForPublication(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n\n{report.as_markdown(results)}\n\n{END}{after}")
    return page
