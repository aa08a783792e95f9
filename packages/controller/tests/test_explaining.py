"""What people are told of tasks that have not ended."""

from __future__ import annotations

from typing import Any

from ipyfleet_controller.scheduler.explaining import duration, explain


def _last(bench: Any, seq: int) -> str:
    sentences = explain(bench.core.state, bench.CLIENT, seq, bench.now)
    assert sentences is not None
    return " / ".join(sentences)


def test_a_task_that_runs_names_its_engine_and_since_when(bench: Any) -> None:
    """The oldest task at an engine runs; the story before it is told with ages."""
    bench.join(2)
    bench.submit(0, 1)
    bench.now += 3.2
    text = _last(bench, 0)
    assert text.endswith("engine 2 runs it since 3.2 s")
    assert "3.2 s ago: submitted" in text
    assert "3.2 s ago: placed at engine 2" in text


def test_a_task_behind_others_at_an_engine_says_so(bench: Any) -> None:
    """A direct task waits for those that came before it."""
    bench.join(0)
    for seq in range(3):
        bench.submit(seq, 1, placement="direct", targets=[0])
    bench.now += 1.5
    assert "at engine 0, which has 2 tasks before it, the first of them since 1.5 s" in _last(
        bench, 2
    )


def test_a_task_that_waits_for_busy_engines_says_so(bench: Any) -> None:
    """It names how many engines may run it, which is busy for longest, and who is before it."""
    bench.join(0, 1)
    bench.submit(0, 5)
    bench.submit(0, 7, bench.OTHER)
    bench.now += 60
    text = _last(bench, 4)
    assert "waiting: the 2 engines that may run it are all busy" in text
    assert "since 60.0 s" in text
    assert "2 waiting tasks of this client came before it" in text
    assert "other clients, which take turns with it, have 7" in text


def test_targets_and_failed_attempts_are_told(bench: Any) -> None:
    """The targets that the caller named, and the engines that failed it."""
    bench.join(0, 1)
    bench.submit(0, 1, targets=[0, 1], retries=3)
    [first] = [engine for engine, held in bench.held.items() if held]
    bench.places = False
    bench.answer(first, status=1)
    text = _last(bench, 0)
    assert "attempt 2 is to come" in text
    assert f"{first} failed it before" in text
    assert f"failed at engine {first}" in text


def test_a_task_that_has_ended_or_never_was_is_not_explained(bench: Any) -> None:
    """The scheduler knows only what has not ended."""
    bench.join(0)
    bench.submit(0, 1)
    bench.run_all()
    assert explain(bench.core.state, bench.CLIENT, 0, bench.now) is None
    assert explain(bench.core.state, bench.CLIENT, 9, bench.now) is None
    assert explain(bench.core.state, bench.OTHER, 0, bench.now) is None


def test_durations_are_said_as_people_say_them() -> None:
    """Milliseconds, seconds, minutes, hours."""
    spans = (-1.0, 0.25, 0.9996, 3.2, 150.0, 9000.0)
    assert [duration(span) for span in spans] == [
        "0 ms", "250 ms", "1.0 s", "3.2 s", "2 min", "2.5 h",
    ]  # fmt: skip
