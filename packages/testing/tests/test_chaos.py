"""Counting runs and killing processes."""

import subprocess
import sys
from collections import Counter

from ipyfleet_testing.chaos import EngineKiller, RunLog, value_of
from ipyfleet_testing.waiting import wait_until


def test_every_run_is_counted(tmp_path):
    """Each run is noted, also a second one of the same task; the values can be checked."""
    log = RunLog(tmp_path)
    assert [log.function(number) for number in (0, 7, 7)] == [value_of(0), value_of(7), value_of(7)]
    assert log.count() == Counter({0: 1, 7: 2})
    assert log.total == 3


def test_the_killer_kills_as_often_as_it_should():
    """It takes one process after the other, when it is time."""
    sleepers = [
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)
    ]

    def alive():
        return [sleeper.pid for sleeper in sleepers if sleeper.poll() is None]

    try:
        with EngineKiller(alive, lambda kills: len(alive()) == 3 - kills, 2) as killer:
            wait_until(lambda: killer.kills == 2)
        wait_until(lambda: len(alive()) == 1)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.communicate()
