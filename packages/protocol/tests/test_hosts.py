"""Host identity and the life of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ipyfleet_protocol.hosts import host_id, is_stopped, process_start


def test_all_processes_of_a_host_agree() -> None:
    """Another process on this host has the same host id."""
    code = "from ipyfleet_protocol.hosts import host_id; print(host_id())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert other.stdout.strip() == host_id()
    assert len(host_id()) == 32


def test_start_is_stable() -> None:
    """A process's start time does not change while it lives."""
    assert process_start(os.getpid()) == process_start(os.getpid())


def test_child_starts_later() -> None:
    """A child has started no earlier than its parent, and is gone when it was killed and reaped."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_start(child.pid) >= process_start(os.getpid())
        child.kill()
        child.wait(10)
        with pytest.raises(ProcessLookupError):
            process_start(child.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_zombie_is_dead() -> None:
    """A killed process that nobody has waited for counts as gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        child.kill()
        # Returns when it is dead and leaves it a zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            process_start(child.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_process_name() -> None:
    """A process name with spaces and parentheses does not confuse the reading."""
    code = """
import os
with open('/proc/self/comm', 'w') as comm:
    comm.write(') Z 1 (')
from ipyfleet_protocol.hosts import process_start
print(process_start(os.getpid()) > 0)
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert other.stdout.strip() == "True", other.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopped_until_continued() -> None:
    """A process that was sent SIGSTOP is stopped until it is sent SIGCONT; a dead one is not."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert is_stopped(child.pid)
        child.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        assert not is_stopped(child.pid)
        child.kill()
        child.wait(10)
        assert not is_stopped(child.pid)
