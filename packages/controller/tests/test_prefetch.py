"""Estimates."""

from __future__ import annotations

import math

from ipyfleet_controller.scheduler.prefetch import PREFETCH_S, Estimate


def test_an_unknown_kind_gets_one_task() -> None:
    """Nothing is assumed of what was never seen."""
    estimate = Estimate()
    assert estimate.room(0, 0.0) == 1
    assert estimate.room(1, 0.0) == 0


def test_durations_that_make_no_sense_are_ignored() -> None:
    """NaN (never ran) and negative durations (a clock that was set) teach nothing."""
    estimate = Estimate()
    estimate.learn(1, math.nan)
    estimate.learn(1, -5.0)
    assert math.isnan(estimate.mean_s)


def test_room_is_time_over_cost() -> None:
    """An idle engine gets what fills the aim, once that many have been seen."""
    estimate = Estimate()
    for _ in range(20):
        estimate.learn(100, 100 * 1e-3)
    assert estimate.room(0, 0.0) == int(PREFETCH_S / estimate.cost_s)
    assert estimate.room(8, 8e-3) == 0
    assert estimate.room(4, 4e-3) > 0


def test_tiny_tasks_go_in_large_slices() -> None:
    """No-op tasks are held by the hundred, because each costs the engine some microseconds."""
    estimate = Estimate()
    for _ in range(20):
        estimate.learn(1000, 0.0)
    assert 500 <= estimate.room(0, 0.0) <= 2500


def test_tasks_about_as_long_as_the_aim_come_by_two() -> None:
    """An engine at its last task of 10 ms gets two more, and no more before it is at its last."""
    estimate = Estimate()
    for _ in range(20):
        estimate.learn(1, 0.010)
    assert [estimate.room(held, held * estimate.cost_s) for held in (0, 1, 2, 3)] == [1, 2, 0, 0]


def test_longer_tasks_come_one_by_one() -> None:
    """Of tasks of 30 ms an engine holds one beside the one that runs, of tasks of 60 ms none."""
    for task_s, rooms in ((0.030, [1, 1, 0]), (0.060, [1, 0, 0])):
        estimate = Estimate()
        for _ in range(20):
            estimate.learn(1, task_s)
        assert [estimate.room(held, held * estimate.cost_s) for held in (0, 1, 2)] == rooms


def test_an_engine_that_hangs_in_its_only_task_gets_none() -> None:
    """One that has been silent for twice as long as the task should take is left alone."""
    estimate = Estimate()
    for _ in range(20):
        estimate.learn(1, 0.010)
    assert estimate.room(1, 0.025) == 0
