"""What may go into the documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import publish
from benchmarks.figures import BY_KEY
from benchmarks.peers import NAMES
from benchmarks.records import Record, Results
from benchmarks.sizes import Sizes


def _results() -> Results:
    machine = {"date": "2020-01-02", "python": "3", "system": "L", "cpu": "c", "cpus": 2}
    return Results(
        machine={**machine, "memory_gib": 8.0},
        versions={},
        sizes=Sizes(),
        runs=5,
        quick=False,
        peers=list(NAMES),
        figures=list(BY_KEY),
        records=[Record("ipyfleet", "call", run, "ok", 0.001) for run in range(5)],
    )


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    """The table replaces the former one; the prose around it stays."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n")
    publish.write_docs(_results(), page)
    text = page.read_text()
    assert text.startswith(f"before\n{publish.BEGIN}")
    assert text.endswith(f"{publish.END}\nafter\n")
    assert "old" not in text
    assert "1.00 ms" in text


@pytest.mark.parametrize(
    "change", [{"quick": True}, {"runs": 4}, {"peers": ["ipyfleet"]}, {"figures": ["call"]}]
)
def test_a_bench_that_was_cut_short_is_not_published(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """Quick runs, few runs, and missing peers or figures leave the page alone."""
    page = tmp_path / "page.md"
    page.write_text(f"{publish.BEGIN}{publish.END}")
    with pytest.raises(publish.NotFitForPublication):
        publish.write_docs(replace(_results(), **change), page)  # type: ignore[arg-type]
    assert page.read_text() == f"{publish.BEGIN}{publish.END}"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    """Where there is no place for the table, nothing is written."""
    page = tmp_path / "page.md"
    page.write_text("prose")
    with pytest.raises(publish.NotFitForPublication, match="has no"):
        publish.write_docs(_results(), page)
    assert page.read_text() == "prose"
