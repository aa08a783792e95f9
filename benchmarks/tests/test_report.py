"""The table and its arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import report
from benchmarks.figures import BY_KEY
from benchmarks.figures.base import Goal
from benchmarks.records import Record, Results, Status
from benchmarks.sizes import Sizes

MACHINE = {
    "date": "2020-01-02T03:04:05+00:00",
    "python": "3.11.0",
    "system": "Linux 6",
    "cpu": "a CPU",
    "cpus": 2,
    "memory_gib": 8.0,
}


def _results(**values: list[float | None]) -> Results:
    """Make results of figure ``call`` from lists of values by peer; None: the run failed."""
    results = Results(
        machine=MACHINE,
        versions={},
        sizes=Sizes(),
        runs=max(map(len, values.values())),
        quick=False,
        peers=list(values),
        figures=["call"],
    )
    for peer, runs in values.items():
        for run, value in enumerate(runs):
            outcome: Status = "failed" if value is None else "ok"
            results.records.append(Record(peer, "call", run, outcome, value, detail="broke"))
    return results


def test_ratios_say_how_many_times_better_we_are() -> None:
    """For a time, ours at half of theirs is 2; for a rate it is a half."""
    results = _results(ipyfleet=[1.0], ipyparallel=[2.0])
    assert report.ratio_to(results, BY_KEY["call"], "ipyparallel") == 2
    rate = replace(BY_KEY["call"], better="higher")
    assert report.ratio_to(results, rate, "ipyparallel") == 0.5


def test_the_best_other_peer_is_never_ourselves() -> None:
    """The last column compares with the best of the others, even where we are ahead."""
    results = _results(ipyfleet=[1.0], ipyparallel=[9.0], dask=[3.0])
    assert report.best_other(results, BY_KEY["call"]) == "dask"
    assert report.build_table(results).rows[0][-2] == "3.00 × Dask"


def test_a_cell_is_the_median_and_a_failed_run_is_a_note() -> None:
    """One failed run of four costs a note, not the figure."""
    table = report.build_table(_results(ipyfleet=[0.003, None, 0.001, 0.002]))
    assert table.rows[0][1] == "2.00 ms [1]"
    assert table.notes == ["3 of 4 runs; the others: broke"]


def test_a_peer_without_a_value_has_no_ratio() -> None:
    """What failed everywhere says so, and nothing is compared with it."""
    table = report.build_table(_results(ipyfleet=[1.0], ipyparallel=[None]))
    assert table.rows[0][1:-1] == ["1.00 s", "failed [1]", "–", "–"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (7.1, "s", "7.10 s"),
        (0.0043, "s", "4.30 ms"),
        (0.00025, "s", "250 µs"),
        (28_712.3, "/s", "28,700/s"),
        (262.4, "/s", "262/s"),
        (231.6, "MiB", "232 MiB"),
        (13.0, "", "13"),
    ],
)
def test_values_are_shown_in_a_unit_that_fits(value: float, unit: str, text: str) -> None:
    """Three digits, and the unit that makes them readable."""
    assert report.format_value(value, unit) == text


def test_a_ratio_far_below_one_does_not_read_as_nothing() -> None:
    """Where we are a hundred times behind, the table says so."""
    assert report.format_ratio(0.0041) == "0.0041 ×"


def test_a_goal_says_whether_it_is_reached() -> None:
    """Ten times ipyparallel is the goal of a balanced call; what was not measured has no mark."""
    [goal] = BY_KEY["call"].goals
    results = _results(ipyfleet=[1.0], ipyparallel=[9.0])
    assert report.format_goal(results, BY_KEY["call"], goal) == "10.0 × ipyparallel ✗"
    results = _results(ipyfleet=[1.0], ipyparallel=[11.0])
    assert report.format_goal(results, BY_KEY["call"], goal) == "10.0 × ipyparallel ✓"
    results = _results(ipyfleet=[1.0])
    assert report.format_goal(results, BY_KEY["call"], goal) == "10.0 × ipyparallel"


def test_a_bound_is_reached_on_the_good_side_of_it() -> None:
    """At most for what is better when it is lower, at least for the rest."""
    results = _results(ipyfleet=[2.0])
    lower = replace(BY_KEY["call"], goals=(Goal(2.0),))
    higher = replace(lower, better="higher", goals=(Goal(2.5),))
    assert report.format_goal(results, lower, lower.goals[0]) == "≤ 2.00 s ✓"
    assert report.format_goal(results, higher, higher.goals[0]) == "≥ 2.50 s ✗"


def test_the_physical_limit_is_no_peer_to_be_compared_with() -> None:
    """It has a column, and is never the best other."""
    results = _results(ipyfleet=[1.0], dask=[3.0], floor=[0.1])
    assert report.best_other(results, BY_KEY["call"]) == "dask"


def test_every_column_of_the_text_table_lines_up() -> None:
    """Each line of the table, heading included, is equally long."""
    text = report.as_text(_results(ipyfleet=[1.0], concurrent_futures=[0.25], ray=[None]))
    table = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
