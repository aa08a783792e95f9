"""The agent empties what an engine cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyfleet_engine.mark import RunningMark
from ipyfleet_engine.relief import Relief

WRITER = "import sys; sys.stdout.buffer.write(b'x' * 3_000_000)"


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for somebody to read what it prints."""
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def mark() -> Iterator[RunningMark]:
    """A mark of an engine that runs a task."""
    mark = RunningMark()
    mark.cell[0] = 7
    yield mark
    mark.close()


def test_a_stuck_pipe_is_emptied(
    writer: subprocess.Popen[bytes], mark: RunningMark, wait: Callable[..., Any]
) -> None:
    """What is full at two looks and not read between is read; how much is noted."""
    relief = Relief()

    def look() -> bool:
        relief.look([(writer.pid, mark)])
        return writer.poll() is not None

    wait(look)
    relief.look([(writer.pid, mark)])
    assert writer.returncode == 0
    assert mark.cell[4] > 2_000_000
    assert writer.stdout is not None
    assert mark.cell[4] + len(writer.stdout.read()) == 3_000_000


def test_an_engine_that_reads_is_left_alone(
    writer: subprocess.Popen[bytes], mark: RunningMark, wait: Callable[..., Any]
) -> None:
    """A full pipe is not stuck while the engine reads."""
    relief = Relief()

    def look() -> bool:
        relief.look([(writer.pid, mark)])
        mark.cell[2] += 1
        return bool(relief._full)

    wait(look)
    assert look() and look()
    assert mark.cell[4] == 0 and not relief.is_stuck


def test_whoever_is_gone_is_passed_over(mark: RunningMark) -> None:
    """Processes end between two looks."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(30)
    relief = Relief()
    relief.look([(ended.pid, mark), (ended.pid, None)])
    relief.look([(ended.pid, mark)])
    assert not relief.is_stuck


def test_c_code_that_keeps_the_gil_cannot_block_the_engine(shared: Any) -> None:
    """It prints more than the pipe holds; the task ends, and says what was dropped."""

    def print_with_the_gil() -> None:
        import ctypes

        libc = ctypes.PyDLL(None)
        libc.puts(b"y" * 3_000_000)

    ended = shared.apply(shared.engine, print_with_the_gil)
    items = [item for item in shared.output(ended.seq) if item.kind == "stdout"]
    assert sum(len(item.content) + item.dropped_bytes for item in items) == 3_000_001
    assert any(item.dropped_bytes for item in items)
