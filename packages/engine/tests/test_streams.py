"""`sys.stdout` and `sys.stderr` of an engine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ipyfleet_engine.output import OutputCollector
from ipyfleet_engine.ownership import claim
from ipyfleet_engine.streams import TaskStream

CLIENT = b"c" * 16


@pytest.fixture(autouse=True)
def nobody() -> None:
    """Start as an engine's process does: no task has run."""
    claim(None)


def test_a_stream_is_a_text_stream() -> None:
    """`print`, `writelines`, `.buffer` and `isatty` work as on any text stream."""
    collector = OutputCollector()
    stream = TaskStream(collector, "stderr", io.StringIO())
    task = collector.begin(CLIENT, 0)
    print("one", 2, file=stream, flush=True)
    stream.writelines(["three", "\n"])
    stream.buffer.write("vier ü".encode()[:-1])
    stream.buffer.write("ü".encode()[-1:])
    assert not stream.isatty() and stream.writable() and stream.encoding == "utf-8"
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"bytes")  # type: ignore[arg-type]
    [batch] = collector.finish(task)
    [item] = batch.items
    assert item.kind == "stderr" and item.content.decode() == "one 2\nthree\nvier ü"


def test_before_the_first_task_text_goes_to_the_log() -> None:
    """Start-up code's prints are in the engine's log."""
    collector = OutputCollector()
    real, log = io.StringIO(), io.StringIO()
    stream = TaskStream(collector, "stdout", real, log)
    stream.write("early")
    collector.begin(CLIENT, 0)
    stream.write("task")
    assert (real.getvalue(), log.getvalue()) == ("", "early")


def test_a_forked_process_writes_to_its_own_stdout() -> None:
    """Where that goes is captured; a collector that nobody empties would swallow it."""
    collector = OutputCollector()
    real, log = io.StringIO(), io.StringIO()
    stream = TaskStream(collector, "stdout", real, log)
    collector.begin(CLIENT, 0)
    collector.detach()
    stream.write("child")
    stream.flush()
    assert (real.getvalue(), log.getvalue()) == ("child", "")


def test_a_stream_outlives_its_log(tmp_path: Path) -> None:
    """Python closes it at its end, and would say, where the log ends, that the log is closed."""
    with (tmp_path / "log").open("w") as log:
        stream = TaskStream(OutputCollector(), "stdout", io.StringIO(), log)
        stream.write("the last words")
    stream.flush()
    stream.close()
    assert stream.closed and (tmp_path / "log").read_text() == "the last words"
