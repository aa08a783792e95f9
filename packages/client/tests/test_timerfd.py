"""The timer that is a descriptor."""

import os
import select
import sys

import pytest

from ipyfleet_client.timerfd import clear_timer, make_timer, set_timer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has it")


def test_a_timer_rings_once():
    """The descriptor can be read when the time has come, and not any more when that was noted."""
    fd = make_timer()
    try:
        assert select.select([fd], [], [], 0)[0] == []
        set_timer(fd, 0.001)
        assert select.select([fd], [], [], 5)[0] == [fd]
        clear_timer(fd)
        clear_timer(fd)
        assert select.select([fd], [], [], 0.01)[0] == []
    finally:
        os.close(fd)
