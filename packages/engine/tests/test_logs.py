"""Logs stay below a size."""

from __future__ import annotations

from pathlib import Path

from ipyfleet_engine.logs import LogKeeper


def test_a_large_log_is_rotated(tmp_path: Path) -> None:
    """Its end goes to a private file beside it; whoever appends goes on at the beginning."""
    path = tmp_path / "x.log"
    with path.open("a") as writer:
        writer.write("a" * 50 + "b" * 100)
        writer.flush()
        assert LogKeeper(100).rotate([path]) == [path]
        writer.write("after")
    older = tmp_path / "x.log.1"
    assert path.read_text() == "after"
    assert older.read_text() == "b" * 100 and older.stat().st_mode & 0o077 == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.log", "x.log.1"]


def test_small_and_missing_logs_are_left_alone(tmp_path: Path) -> None:
    """Nothing is touched, and nothing raised."""
    path = tmp_path / "x.log"
    path.write_text("a" * 100)
    assert LogKeeper(100).rotate([path, tmp_path / "none.log"]) == []
    assert LogKeeper(0).rotate([path]) == []
    assert path.read_text() == "a" * 100
