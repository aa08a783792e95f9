"""Counting what really ran while things are killed.

What lives here: `RunLog`, which every run of a task writes to, on the engines' side, and
`EngineKiller`. What must not: the faults' expectations; those are the tests'.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

_RECORD_BYTES = 4


@functools.cache
def _open(folder: str, pid: int) -> int:
    return os.open(f"{folder}/{pid}.runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def record_run(folder: str, pause_s: float, number: int) -> int:
    """Write down that task `number` ran in this process; return a value that can be checked."""
    os.write(_open(folder, os.getpid()), number.to_bytes(_RECORD_BYTES, "little"))
    if pause_s:
        time.sleep(pause_s)
    return value_of(number)


def value_of(number: int) -> int:
    """Return what `record_run` returns for a task."""
    return 3 * number + 1


class RunLog:
    """Which tasks ran, and how often, told by those who ran them.

    Attributes:
        function: to be mapped over numbers; importable, so that engines need not be sent it.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder that is there and empty; engines must be able to write to it."""
        self._folder = folder
        self.function = self.function_of(0.0)

    def function_of(self, pause_s: float) -> Callable[[int], int]:
        """Return a `function` that takes so long."""
        return functools.partial(record_run, str(self._folder), pause_s)

    def count(self) -> Counter[int]:
        """Return how often each task was begun."""
        runs: Counter[int] = Counter()
        for path in self._folder.glob("*.runs"):
            data = path.read_bytes()
            runs.update(
                int.from_bytes(data[at : at + _RECORD_BYTES], "little")
                for at in range(0, len(data), _RECORD_BYTES)
            )
        return runs

    @property
    def total(self) -> int:
        """How many runs there were so far."""
        return sum(path.stat().st_size for path in self._folder.glob("*.runs")) // _RECORD_BYTES


class EngineKiller:
    """Kills engines at random, in a thread, each after a certain number of further runs.

    A context manager: leaving it waits for the last kill.

    Attributes:
        kills: how many engines it has killed.
    """

    def __init__(
        self,
        find_pids: Callable[[], Iterable[int]],
        is_due: Callable[[int], bool],
        count: int,
        seed: int = 0,
    ) -> None:
        """Prepare; nothing is killed before the context is entered.

        Args:
            find_pids: returns the processes that may be killed now.
            is_due: whether it is time for a kill, given how many there were.
            count: how many to kill.
            seed: of the choice.
        """
        self.kills = 0
        self._find_pids = find_pids
        self._is_due = is_due
        self._count = count
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-killer")

    def _run(self) -> None:
        while self.kills < self._count and not self._stop.wait(0.002):
            if not self._is_due(self.kills):
                continue
            pids = list(self._find_pids())
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(pids), signal.SIGKILL)
                    self.kills += 1

    def __enter__(self) -> EngineKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
