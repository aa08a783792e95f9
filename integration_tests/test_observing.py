"""A user can ask what goes on: why a task waits, what the counters say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipyfleet as ipf

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def rc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipf.Client]:
    """A client of one engine."""
    profile = tmp_path_factory.mktemp("profile")
    with ipf.Cluster(n=1, profile_dir=os.fspath(profile)) as client:
        yield client


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_explain_tells_what_runs_what_waits_and_what_has_ended(
    rc: ipf.Client, tmp_path: Path
) -> None:
    """The same result before and after its end; the second task waits for the first."""
    view = rc.load_balanced_view()

    def hold(name: str) -> int:
        import pathlib
        import time

        pathlib.Path(f"{name}.started").touch()
        while not pathlib.Path(name).exists():
            time.sleep(0.01)
        return 7

    name = os.fspath(tmp_path / "go")
    running = view.apply_async(hold, name)
    _wait_for(tmp_path / "go.started")
    waiting = view.apply_async(abs, -1)
    assert "engine 0 runs it since" in rc.explain(running)
    text = rc.explain(waiting.msg_ids[0])
    assert "waiting" in text
    assert "engine 0" in text
    (tmp_path / "go").touch()
    assert running.get(TIMEOUT_S) == 7
    assert waiting.get(TIMEOUT_S) == 1
    text = rc.explain(running)
    assert "it ended on engine 0, with a value, after" in text
    assert repr(text) == str(text)
    failed = view.apply_async(lambda: 1 / 0)
    with pytest.raises(ipf.RemoteError):
        failed.get(TIMEOUT_S)
    assert "with an error" in rc.explain(failed)
    assert "ZeroDivisionError" in rc.explain(failed)


def test_explain_of_many_tasks_is_short(rc: ipf.Client) -> None:
    """Of a result with many tasks some are explained, and the others are counted."""
    result = rc.load_balanced_view().map_async(abs, range(100), chunksize=1)
    result.get(TIMEOUT_S)
    text = rc.explain(result)
    assert "… and 92 more tasks" in text
    with pytest.raises(KeyError, match="known to the controller"):
        rc.explain("0" * 32 + "_5")


def test_metrics_count_what_was_done(rc: ipf.Client) -> None:
    """Tasks, messages, bytes and the database; shown as a table."""
    before = rc.metrics()
    rc.load_balanced_view().map_sync(abs, range(500))
    after = rc.metrics()
    assert after["tasks"]["ended"] > before["tasks"]["ended"]
    assert after["tasks"]["not_ended"] == after["tasks"]["unassigned"] == 0
    assert after["peers"] == {"clients": 1, "engines": 1, "agents": 1}
    assert after["engines"][0]["completed"] >= after["tasks"]["ended"] > 0
    assert after["messages"]["received"] > before["messages"]["received"]
    assert after["messages"]["malformed"] == 0
    assert after["bytes"]["resident"] > 1 << 20
    assert after["database"]["trouble"] == ""
    assert "tasks.ended" in repr(after)
    assert "<th>completed</th>" in after._repr_html_()
