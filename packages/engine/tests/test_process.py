"""Facts about processes, in words."""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import threading
from pathlib import Path

import pytest

from ipyfleet_engine.process import (
    cap_native_threads,
    death_notice,
    describe_exit,
    log_tail,
    reseed,
    wake_on_time,
)


def test_an_exit_is_described_by_its_signal_or_code() -> None:
    """Signals are named, codes are given, and SIGKILL names the out-of-memory killer."""
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert "out-of-memory" in describe_exit(-signal.SIGKILL)
    assert describe_exit(-200) == "killed by signal 200"


def test_a_death_notice_quotes_the_log(tmp_path: Path) -> None:
    """It has the memory's peak and the last lines of the log."""
    log = tmp_path / "engine.log"
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    notice = death_notice(1, 2048, log)
    assert notice.startswith("exit code 1; peak memory 2 MiB; ")
    assert str(log) in notice and notice.endswith("line 98\nline 99")
    assert "line 89\n" not in notice


def test_a_missing_or_empty_log_is_no_trouble(tmp_path: Path) -> None:
    """Then the notice has no lines."""
    assert log_tail(tmp_path / "none") == ""
    assert death_notice(1, 0, tmp_path / "none") == "exit code 1"


def test_only_the_end_of_a_large_log_is_read(tmp_path: Path) -> None:
    """The tail is bounded in bytes too, and undecodable bytes are replaced."""
    log = tmp_path / "engine.log"
    log.write_bytes(b"x" * 1_000_000 + b"\xff\nend")
    tail = log_tail(log)
    assert tail.endswith("\nend") and len(tail) <= 32768


def test_native_threads_are_shared_out_among_engines() -> None:
    """Cores by engines, at least one."""
    environ: dict[str, str] = {}
    assert cap_native_threads(3, 8, environ) == 2
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "2"
    assert cap_native_threads(16, 8, {}) == 1


def test_a_cap_set_by_the_user_stands() -> None:
    """If any of the variables is set none is changed."""
    environ = {"OPENBLAS_NUM_THREADS": "7"}
    assert cap_native_threads(2, 8, environ) is None
    assert environ == {"OPENBLAS_NUM_THREADS": "7"}


def test_reseeding_changes_the_sequence() -> None:
    """Two processes forked from one state draw different numbers."""
    state = random.getstate()
    reseed()
    first = random.random()
    random.setstate(state)
    reseed()
    assert random.random() != first


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets timers be late")
def test_timers_of_a_thread_are_set_to_be_on_time() -> None:
    """Of the thread that asks for it: not those of whoever runs in the same process."""
    get_timer_slack, slack_ns = 30, []

    def ask() -> None:
        wake_on_time()
        slack_ns.append(ctypes.CDLL(None).prctl(get_timer_slack, 0, 0, 0, 0))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert slack_ns == [1000]
    assert ctypes.CDLL(None).prctl(get_timer_slack, 0, 0, 0, 0) != 1000
