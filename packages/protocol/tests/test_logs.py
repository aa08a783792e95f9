"""Logs for people and for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipyfleet_protocol import logs
from ipyfleet_protocol.logs import log_handler, log_path


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own; its handlers are closed at the end."""
    logger = logging.getLogger("ipyfleet.test-logs")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_json_has_a_line_for_each_record(logger: logging.Logger, tmp_path: Path) -> None:
    """Level, text, and the event and its values apart; an exception stays on the line."""
    path = log_path(tmp_path / "log", "ipcontroller", "blue")
    assert path.name.startswith("ipcontroller-blue-")
    logger.addHandler(log_handler("ipcontroller", path, as_json=True))
    logger.debug("not wanted")
    logger.warning("engine %d is lost: %s", 3, "killed\nby hand")
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("a bug")
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["message"] == "engine 3 is lost: killed\nby hand"
    assert first["event"] == "engine %d is lost: %s"
    assert first["values"] == [3, "killed\nby hand"]
    assert (first["level"], first["program"]) == ("warning", "ipcontroller")
    assert first["time"].endswith("+00:00")
    assert "ValueError: no" in second["traceback"]


def test_a_file_is_kept_below_a_size(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older part is kept once, and no more than that."""
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    path = tmp_path / "x.log"
    logger.addHandler(log_handler("ipcontroller", path))
    for number in range(100):
        logger.info("line %d", number)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.log", "x.log.1"]
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    assert path.read_text().endswith("INFO line 99\n")
