import os
import subprocess
import sys
import threading

import pytest

from ipyfleet_client.poller import make_poller

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the poller of Linux")


def test_a_watched_descriptor_is_told_once_and_closed():
    """`wait` calls the function when a process has ended, and the descriptor is freed."""
    poller = make_poller()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = threading.Event()
    try:
        fd = os.pidfd_open(process.pid)
        assert poller.watch(fd, ended.set)
        assert not poller.wait(0)
        assert not ended.is_set()
        process.communicate(b"\n", timeout=10)
        assert not poller.wait(10)
        assert ended.is_set()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        assert not poller.wait(0)
    finally:
        process.kill()
        process.wait(10)
        poller.close()


def test_a_closed_poller_frees_what_it_watches():
    """Descriptors that never had news are closed with the poller."""
    poller = make_poller()
    fd = os.pidfd_open(os.getpid())
    poller.watch(fd, lambda: None)
    poller.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_taking_a_closed_poller_does_nothing():
    """A thread that comes to wait when the client was closed finds no descriptor to take over."""
    read, write = os.pipe()
    poller = make_poller()
    poller.replace((read,))
    poller.close()
    os.close(read)
    os.close(write)
    poller.take()
