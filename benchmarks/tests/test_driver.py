"""The driver, with real worker processes."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.figures import BY_KEY
from benchmarks.records import Results
from benchmarks.sizes import QUICK

MISBEHAVING = "benchmarks.tests.misbehaving_peer"


def _run(peer: str, figures: list[str], timeout_s: float) -> Results:
    results = Results(
        machine={},
        versions={},
        sizes=QUICK,
        runs=1,
        quick=True,
        peers=[peer],
        figures=figures,
    )
    Driver(results, timeout_s=timeout_s, settle_s=0, grace_s=2, say=print).run_all()
    return results


def test_a_peer_that_goes_wrong_costs_only_the_figures_in_which_it_does() -> None:
    """A hang, a crash, a wrong result and an exception are told apart; the rest is measured."""
    figures = ["first_result", "call_one", "call", "map_large", "map_chunked", "push", "pull"]
    results = _run(MISBEHAVING, figures, timeout_s=10)
    outcome = {key: results.cell(MISBEHAVING, key) for key in figures}
    assert {key: cell.status for key, cell in outcome.items()} == {
        "first_result": "ok",
        "call_one": "timeout",
        "call": "ok",
        "map_large": "failed",
        "map_chunked": "failed",
        "push": "failed",
        "pull": "not offered",
    }
    assert outcome["map_large"].detail == "died in map_large"
    assert outcome["map_chunked"].detail.startswith("WrongResult: ")
    assert outcome["push"].detail == "OSError: no room for the array"
    assert len(results.records) == len(figures)


def test_what_a_peer_leaves_behind_is_named_and_killed() -> None:
    """A process in a session of its own does not outlive the worker process that it came from."""
    results = _run(MISBEHAVING, ["call"], timeout_s=20)
    [command] = results.killed[MISBEHAVING]
    assert command.endswith("import time; time.sleep(300)")


def test_every_figure_of_a_real_pool_is_measured_or_not_offered() -> None:
    """The standard library's pool passes through every figure and is gone afterwards."""
    results = _run("concurrent_futures", list(BY_KEY), timeout_s=60)
    statuses = {record.figure: record.status for record in results.records}
    assert set(statuses.values()) == {"ok", "not offered"}
    not_offered = {key for key, status in statuses.items() if status == "not offered"}
    theirs = {key for key, figure in BY_KEY.items() if figure.only}
    assert not_offered == theirs | {"call_all", "broadcast", "scatter", "gather"}
    assert results.killed == {}
