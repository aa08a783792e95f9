"""Stacks of threads, from inside and from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from ipyfleet_engine.stacks import ask_for_stacks, format_stacks, make_stacks_file

_HOLDER = """
import ctypes, sys
from ipyfleet_engine.stacks import write_on_signal
write_on_signal(int(sys.argv[1]))
def hold():
    print("up", flush=True)
    sleep = ctypes.PyDLL(None).sleep
    while True:
        sleep(60)
hold()
"""


def test_other_threads_are_shown() -> None:
    """With their names and lines of source, the main thread first, but not the one that asks."""
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(format_stacks()), name="asker")
    asking.start()
    asking.join(10)
    assert found[0].startswith("Thread MainThread")
    assert "asking." in found[0] and "Thread asker" not in found[0]


def test_a_process_whose_gil_is_held_is_shown() -> None:
    """Asked twice, it tells the same: each answer stands alone."""
    fd = make_stacks_file()
    command = [sys.executable, "-c", _HOLDER, str(fd)]
    process = subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        texts = [ask_for_stacks(process.pid, fd) for _ in range(2)]
        assert all("in hold" in text and text.count("in <module>") == 1 for text in texts)
        process.send_signal(19)
        with pytest.raises(TimeoutError, match="stopped"):
            ask_for_stacks(process.pid, fd)
    finally:
        process.kill()
        process.communicate(timeout=10)
        os.close(fd)
