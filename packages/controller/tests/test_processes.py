"""Processes that are gone, and those that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ipyfleet_controller.processes import LOOKS, ProcessWatch
from ipyfleet_protocol.hosts import host_id
from ipyfleet_protocol.ids import PeerId
from ipyfleet_testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

PEER, OTHER = PeerId(b"p" * 16), PeerId(b"o" * 16)
LIMIT_S = 6.0


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def test_a_process_that_has_ended_is_gone(process: subprocess.Popen[bytes]) -> None:
    """Before that it is not; a peer of another host never is."""
    watch = ProcessWatch()
    watch.add(PEER, host_id(), process.pid)
    watch.add(OTHER, "elsewhere", process.pid)
    assert not watch.is_gone(PEER)
    process.kill()
    wait_until(lambda: watch.is_gone(PEER))
    assert not watch.is_gone(OTHER)


def test_a_process_is_stopped_for_too_long_after_enough_looks(
    process: subprocess.Popen[bytes],
) -> None:
    """Looks in a row count, and one that finds it running begins anew."""
    watch = ProcessWatch(LIMIT_S)
    watch.add(PEER, host_id(), process.pid)
    watch.watch(PEER, 100.0)
    _stop(process)
    now = 100.0
    for _ in range(LOOKS):
        now += LIMIT_S / LOOKS
        assert watch.next_look_at == pytest.approx(now)
        assert watch.find_stopped(now) == []
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)
    assert watch.find_stopped(now) == []
    _stop(process)
    for _ in range(LOOKS):
        assert watch.find_stopped(now) == []
    assert watch.find_stopped(now) == [PEER]


def test_nothing_is_looked_at_where_nobody_is_to_be(process: subprocess.Popen[bytes]) -> None:
    """Not for other hosts, not without a limit, and no more when the last has gone."""
    watch = ProcessWatch(LIMIT_S)
    watch.add(OTHER, "elsewhere", process.pid)
    watch.watch(OTHER, 0.0)
    assert watch.next_look_at is None
    watch.add(PEER, host_id(), process.pid)
    watch.watch(PEER, 0.0)
    assert watch.next_look_at is not None
    watch.forget(PEER)
    assert watch.find_stopped(watch.next_look_at) == []
    assert watch.next_look_at is None
    lenient = ProcessWatch(0.0)
    lenient.add(PEER, host_id(), process.pid)
    lenient.watch(PEER, 0.0)
    assert lenient.next_look_at is None
