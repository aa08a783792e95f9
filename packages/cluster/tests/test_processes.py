import asyncio
import contextlib
import os
import subprocess
import sys

import pytest

from ipyfleet_cluster.processes import ProcessRef, wait_exit, wait_until


def test_process_with_another_start_time_is_another_process():
    """A reused process id is not mistaken for the process that had it before."""
    me = ProcessRef.of(os.getpid())
    assert me.is_alive()
    assert not me._replace(started=me.started + 1).is_alive()
    assert not me._replace(started=me.started + 1).signal(0)


def test_zombie_is_not_alive():
    """A process that has ended and was not waited for does not count as running."""
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    reference = ProcessRef(child.pid, -1.0)
    with contextlib.suppress(ProcessLookupError):  # It may be quick.
        reference = ProcessRef.of(child.pid)
    assert asyncio.run(wait_exit(reference, 10))
    assert not reference.is_alive()
    with pytest.raises(ProcessLookupError):
        ProcessRef.of(child.pid)
    child.wait()


def test_wait_exit_times_out():
    """Waiting for a process that goes on ends at the timeout and says so."""
    assert not asyncio.run(wait_exit(ProcessRef.of(os.getpid()), 0.01))


def test_wait_until_tells_whether_it_became_true():
    """A condition that holds ends the wait; one that never does ends it at the timeout."""
    looks = iter([False, False, True])
    assert asyncio.run(wait_until(lambda: next(looks), 10))
    assert not asyncio.run(wait_until(lambda: False, 0.01))


def test_round_trip_through_a_dictionary():
    """A process read back from a cluster file is the same process; other things are refused."""
    me = ProcessRef.of(os.getpid())
    assert ProcessRef.from_dict(me.to_dict()) == me
    for wrong in (None, {}, {"pid": "x", "started": 1}, [1, 2]):
        with pytest.raises(ValueError, match="not a process"):
            ProcessRef.from_dict(wrong)
