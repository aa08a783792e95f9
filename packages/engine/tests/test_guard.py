"""What an engine without an agent has done by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_protocol import messages as m

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guards are Linux's")


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ignores(pid: int, signum: int) -> bool:
    """Whether a process ignores a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [line.split()[1] for line in lines if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> (signum - 1) & 1)


ENGINE = """
import sys
from pathlib import Path
from ipyfleet_engine.guard import Guard
with Guard() as mark:
    mark.note_file(Path(sys.argv[1]))
    mark.cell[0] = 7
    print("ready", flush=True)
    exec(sys.argv[2])
"""

HOLD = """
import ctypes
ctypes.PyDLL(None).printf.argtypes = (ctypes.c_char_p,)
text = b"x" * 3_000_000
ctypes.PyDLL(None).printf(text)
ctypes.PyDLL(None).fflush(None)
# Not to stderr: that is a pipe here, and what is in pipes is thrown away now.
Path(sys.argv[1]).write_text(str(mark.cell[4] > 1_000_000))
"""


def start(path: Path, code: str) -> subprocess.Popen[bytes]:
    """Start what has a guard, as an engine does, and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, os.fspath(path), code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_a_killed_engine_leaves_no_file(tmp_path: Path, wait: Callable[..., Any]) -> None:
    """The guard removes what was noted, and ends."""
    path = tmp_path / "kernel.json"
    path.touch()
    with start(path, "sys.stdin.read()") as process:
        [guard] = children_of(process.pid)
        wait(lambda: ignores(guard, signal.SIGTERM))
        os.kill(guard, signal.SIGTERM)
        process.kill()
    wait(lambda: not path.exists())
    wait(lambda: not is_alive(guard))


def test_the_guard_ends_with_its_engine(tmp_path: Path) -> None:
    """Without delay if the engine ends as it should; the file is the engine's to remove then."""
    path = tmp_path / "kernel.json"
    path.touch()
    with start(path, "sys.stdin.read()") as process:
        [guard] = children_of(process.pid)
        process.communicate(timeout=20)
        assert process.returncode == 0 and not is_alive(guard) and path.exists()


def test_c_code_that_prints_with_the_gil_is_relieved(tmp_path: Path) -> None:
    """Nobody reads, and it goes on; how much was thrown away is noted."""
    path = tmp_path / "noted"
    with start(path, HOLD) as process:
        assert process.wait(20) == 0
    assert path.read_text() == "True"


def test_an_engine_without_an_agent_prints_with_the_gil(controller: Any) -> None:
    """The output says what is missing, and the next task runs."""
    controller.start("--single")
    [engine] = controller.wait_engines(1)

    def flood() -> None:
        import ctypes

        text = ctypes.create_string_buffer(b"x" * 3_000_000)
        ctypes.PyDLL(None).write(1, text, 3_000_000)

    ended = controller.apply(engine, flood)
    assert ended.status == m.OK
    items = controller.output(ended.seq)
    shown = sum(len(item.content) for item in items)
    assert shown + sum(item.dropped_bytes for item in items) == 3_000_000
    assert controller.apply(engine, abs, -1).value == 1
