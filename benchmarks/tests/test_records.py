"""The JSON file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.records import Record, Results
from benchmarks.sizes import Sizes


def _results() -> Results:
    return Results(
        machine={"cpus": 2},
        versions={"ray": "1"},
        sizes=Sizes(),
        runs=2,
        quick=False,
        peers=["ray"],
        figures=["map_large"],
        records=[
            Record("ray", "map_large", 0, "ok", 1000.0, count=5000),
            Record("ray", "map_large", 1, "ok", 2000.0, count=2000),
        ],
        killed={"ray": ["raylet"]},
    )


def test_a_saved_bench_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Saving and loading loses nothing."""
    path = tmp_path / "deep" / "result.json"
    _results().save(path)
    assert Results.load(path) == _results()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    """A file from another version of the bench is named in the error."""
    path = tmp_path / "result.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match=r"result\.json"):
        Results.load(path)


def test_a_cell_tells_the_smallest_count() -> None:
    """Where runs differ in how many items were done, the smallest number is the honest one."""
    cell = _results().cell("ray", "map_large")
    assert (cell.value, cell.low, cell.high, cell.count) == (1500.0, 1000.0, 2000.0, 2000)
