"""Shell escapes: live, forgetful, interruptible."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_engine.shell_command import run_command


def run(command: str) -> tuple[int, str]:
    """Return a command's exit code and what it has printed."""
    parts: list[str] = []
    code = run_command(command, parts.append)
    return code, "".join(parts)


def test_output_and_exit_code() -> None:
    """stdout and stderr arrive in order, with plain line ends."""
    assert run("echo one; echo two >&2; printf 'ü'; exit 3") == (3, "one\ntwo\nü")


def test_a_signal_is_a_negative_code() -> None:
    """Whether it ended the shell or the command that the shell ran."""
    assert run("kill -TERM $$")[0] == -signal.SIGTERM
    assert run("sh -c 'kill -KILL $$'; exit $?")[0] == -signal.SIGKILL


def test_the_command_sees_a_terminal_and_no_keyboard() -> None:
    """Programs print as to a terminal, so live; reading ends at once."""
    assert run("test -t 1 && echo terminal; cat")[1] == "terminal\n"


def test_output_is_live(tmp_path: Path) -> None:
    """Text is handed on while the command runs."""
    gate, seen = tmp_path / "gate", []

    def note(text: str) -> None:
        seen.append(text)
        gate.touch()

    command = f"echo early; while [ ! -e {shlex.quote(str(gate))} ]; do sleep 0.01; done; echo late"
    assert run_command(command, note) == 0
    assert "".join(seen) == "early\nlate\n"


def test_what_goes_on_in_the_background_is_not_waited_for() -> None:
    """A command has ended when it has ended, whoever holds its terminal."""
    began = time.monotonic()
    pid = int(run("(trap '' HUP; exec sleep 20) & echo $!")[1])
    assert time.monotonic() - began < 10
    os.kill(pid, signal.SIGKILL)


def test_an_interrupt_ends_command_and_children(wait: Callable[..., Any]) -> None:
    """KeyboardInterrupt goes through, and nothing of the command goes on."""
    pids: list[int] = []

    def note(text: str) -> None:
        pids.extend(int(word) for word in text.split())
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()

    main = threading.main_thread().ident
    with pytest.raises(KeyboardInterrupt):
        run_command("sh -c 'echo $$; exec sleep 60'", note)

    def gone() -> bool:
        try:
            os.kill(pids[0], 0)
        except ProcessLookupError:
            return True
        return False

    wait(gone)
