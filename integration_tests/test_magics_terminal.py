"""%px in IPython's terminal and in `jupyter console`, typed into a pseudo-terminal by a user."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pexpect = pytest.importorskip("pexpect", reason="needs pexpect")

pytestmark = pytest.mark.timeout(240)

TIMEOUT_S = 60
TRIES = 20
"""How often what engines say together may fail to arrive together on a busy machine."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][AB0]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """A program in a pseudo-terminal, with a prompt."""

    def __init__(self, command: list[str], environment: dict[str, str], prompt: str) -> None:
        self._prompt = prompt
        self._child: Any = pexpect.spawn(
            command[0],
            command[1:],
            env={**os.environ, **environment, "TERM": "xterm"},
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(50, 160),
            timeout=TIMEOUT_S,
        )
        self._child.expect(prompt, timeout=TIMEOUT_S)

    def type(self, *lines: str) -> None:
        """Type lines; an empty one ends a cell."""
        for line in lines:
            self._child.send(line + "\r")

    def wait_for(self, text: str) -> str:
        """Wait until something is shown; return what was shown before."""
        self._child.expect(text)
        return self._plain(self._child.before)

    def run(self, *lines: str) -> str:
        """Type lines, wait for the next prompt; return what was shown in between."""
        self.type(*lines)
        return self.wait_for(self._prompt)

    def press(self, key: str) -> None:
        """Press a control key."""
        self._child.sendcontrol(key)

    def close(self) -> None:
        """Leave the program."""
        if self._child.isalive():
            self._child.sendline("exit")
            try:
                self._child.expect(pexpect.EOF, timeout=10)
            except pexpect.TIMEOUT:
                self._child.terminate(force=True)
        self._child.close(force=True)

    def _plain(self, text: str) -> str:
        return _ANSI.sub("", text).replace("\r\n", "\n")


@pytest.fixture
def ipython(ipcluster: Path) -> Iterator[Terminal]:
    """Give IPython in a terminal, with a client of a cluster of four engines."""
    command = [
        sys.executable,
        "-m",
        "IPython",
        "--simple-prompt",
        "--no-banner",
        "--colors=NoColor",
    ]
    terminal = Terminal(command, {"IPYTHONDIR": os.fspath(ipcluster)}, r"In \[\d+\]: ")
    try:
        terminal.run("import ipyfleet as ipf; rc = ipf.Client()")
        yield terminal
    finally:
        terminal.close()


def test_terminal(ipython: Terminal) -> None:
    """In a terminal %px prints behind prefixes, values and errors; suffixes and %autopx work."""
    shown = ipython.run("%px print('hi')")
    assert [f"[stdout:{engine}] hi" for engine in range(4)] == sorted(
        line for line in shown.splitlines() if line.startswith("[stdout")
    )
    shown = ipython.run("%px 6 * 7")
    assert sorted(re.findall(r"Out\[(\d):\d+\]: 42", shown)) == ["0", "1", "2", "3"]
    for _ in range(TRIES):
        shown = ipython.run("%px undefined_name")
        if "[0-3:execute]" in shown:
            break
    assert shown.count("NameError: name 'undefined_name' is not defined") == 1
    assert "[0-3:execute]" in shown
    assert "4 errors" in shown
    ipython.run("even = rc[::2]; even.block = True; even.activate('_even')")
    shown = ipython.run("%px_even print('not odd')")
    assert sorted(re.findall(r"\[stdout:(\d)\] not odd", shown)) == ["0", "2"]
    assert "enabled" in ipython.run("%autopx")
    assert ipython.run("print('there')").count("[stdout:") == 4
    assert "disabled" in ipython.run("%autopx")
    assert "%px_even" in ipython.run("%lsmagic")


def test_threads_print_in_a_terminal(ipython: Terminal) -> None:
    """What a thread of a cell prints after its end is shown at once, behind its prefix."""
    thread = "threading.Thread(target=lambda: (go.wait(60), print('late'))).start()"
    shown = ipython.run(f"%px import threading; go = threading.Event(); {thread}")
    assert "late" not in shown.replace("'late'", "")
    ipython.type("_ = rc[0].execute('go.set()')")
    ipython.wait_for(r"\[stdout:0\] late")
    ipython.type("_ = rc[1:].execute('go.set()')")
    engines = {ipython.wait_for("late")[-3:-2] for _ in range(3)}
    assert engines == {"1", "2", "3"}


def test_ctrl_c_in_a_terminal(ipython: Terminal) -> None:
    """Ctrl-C in a blocking cell says that it interrupts the engines, which are usable after it."""
    ipython.type("%px import time; print('begun', flush=True); time.sleep(600)")
    for _ in range(4):
        ipython.wait_for(r"\[stdout:\d\] begun")
    ipython.press("c")
    shown = ipython.wait_for(r"In \[\d+\]: ")
    assert re.search(r"Interrupted: sending SIGINT to engine\(s\) \[0, 1, 2, 3\]", shown)
    assert shown.count("KeyboardInterrupt") >= 1
    assert "4 errors" in shown
    assert ipython.run("%px print('alive')").count("] alive") == 4


def test_progress_bar_in_a_terminal(ipython: Terminal) -> None:
    """A long cell gets a bar; what engines print meanwhile stands on lines of its own."""
    shown = ipython.run(
        "%px import time; [(print('tick', k, flush=True), time.sleep(0.4))[0] for k in range(8)]"
    )
    assert "0/4" in shown
    lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
    ticks = [line for line in lines if re.search(r"tick \d", line) and "%px" not in line]
    assert all(re.fullmatch(r"(\[stdout:\d\] )?tick \d", line) for line in ticks), ticks
    assert len(ticks) == 32


@pytest.mark.skipif(
    shutil.which("jupyter-console", path=os.fspath(Path(sys.executable).parent)) is None,
    reason="needs jupyter-console",
)
def test_jupyter_console(ipcluster: Path) -> None:
    """In `jupyter console` %px shows what engines print and their values."""
    terminal = Terminal(
        [sys.executable, "-m", "jupyter_console", "--simple-prompt", "--kernel=python3"],
        {"IPYTHONDIR": os.fspath(ipcluster)},
        r"In \[\d+\]: ",
    )
    try:
        terminal.run("import ipyfleet as ipf; rc = ipf.Client()")
        terminal.type("%px print('hi'); 6 * 7")
        for _ in range(4):
            terminal.wait_for(r"\[stdout:\d\] hi")
        for _ in range(4):
            terminal.wait_for(r"Out\[\d:\d+\]: ")
            terminal.wait_for("42")
    finally:
        terminal.close()
