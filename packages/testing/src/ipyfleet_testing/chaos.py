"""Counting what really ran while things are killed.

What lives here: `RunLog`, which every run of a task writes to, on the engines' side,
`EngineKiller`, and `kill_engines`, which has it kill in the middle of a map. What must not: what is
expected then; that is the tests'.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ipyfleet_cluster import Cluster

RESPAWN_ARGS = ["--respawn=on_failure", "--respawn-delay=0.1", "--IPEngineApp.respawn_limit=0"]
"""Arguments of engines of which many are to be killed."""

_RECORD_BYTES = 4
_HOLD = "hold"


@functools.cache
def _open(folder: str, pid: int) -> int:
    return os.open(f"{folder}/{pid}.runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def record_run(folder: str, pause_s: float, number: int) -> int:
    """Write down that task `number` ran in this process; return a value that can be checked."""
    os.write(_open(folder, os.getpid()), number.to_bytes(_RECORD_BYTES, "little"))
    if pause_s:
        time.sleep(pause_s)
    return value_of(number)


def record_run_and_hold(folder: str, pause_s: float, first: int, number: int) -> int:
    """Do what `record_run` does; tasks from `first` on return only when the log lets them."""
    value = record_run(folder, pause_s, number)
    while number >= first and os.path.exists(f"{folder}/{_HOLD}"):
        time.sleep(0.002)
    return value


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

    @contextlib.contextmanager
    def holding(self, first: int, pause_s: float = 0.0) -> Iterator[Callable[[int], int]]:
        """Yield a `function_of` whose tasks from `first` on return only when they are released.

        What is done meanwhile is so done in the middle of a map, however fast engines are. Leaving
        the context releases them, too.
        """
        (self._folder / _HOLD).touch()
        try:
            yield functools.partial(record_run_and_hold, str(self._folder), pause_s, first)
        finally:
            self.release()

    def release(self) -> None:
        """Let go of what is held; also from another process."""
        (self._folder / _HOLD).unlink(missing_ok=True)

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

    A context manager: leaving it stops the killing.

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

    def wait(self, timeout_s: float) -> None:
        """Wait for the last kill.

        Raises:
            TimeoutError: it was not done in time.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.kills} of {self._count} kills in {timeout_s:.0f} s")

    def __enter__(self) -> EngineKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


class ChaosCounts(NamedTuple):
    """What came of a map while engines were killed.

    Attributes:
        kills: engines killed.
        tasks: tasks submitted.
        lost: tasks without a result, or with a wrong one.
        duplicated: results delivered more than once.
        run_again: runs that were begun beyond one for each task.
        seconds: how long it took.
    """

    kills: int
    tasks: int
    lost: int
    duplicated: int
    run_again: int
    seconds: float


def kill_engines(
    cluster: Cluster, log: RunLog, *, kills: int, tasks: int, timeout_s: float = 300.0
) -> ChaosCounts:
    """Map over many short tasks, kill engines all the while, and count.

    Args:
        cluster: runs, with `RESPAWN_ARGS`.
        log: empty.
        kills: how many engines to kill, spread over the map.
        tasks: how many items to map over.
        timeout_s: for all of it.

    Raises:
        TimeoutError: the map did not end in time.
    """
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        engines = rc.session.link.engines
        wanted = len(rc.ids)

        def is_due(killed: int) -> bool:
            # Most are there, or the map would only wait for engines to start.
            if len(engines.ids) < wanted - 1:
                return False
            return log.total > (killed + 1) * tasks // (kills + 2)

        def find_pids() -> list[int]:
            return [engines.known[engine].pid for engine in engines.ids]

        view = rc.load_balanced_view(retries=kills)
        began = time.monotonic()
        with EngineKiller(find_pids, is_due, kills) as killer:
            # The last task outlasts the last kill, or a fast map might be over before it.
            with log.holding(tasks - 1) as function:
                result = view.map_async(function, range(tasks), chunksize=1)
                killer.wait(timeout_s)
            values = result.get(timeout_s)
        took_s = time.monotonic() - began
        right = sum(value == value_of(number) for number, value in enumerate(values))
        return ChaosCounts(
            killer.kills,
            tasks,
            lost=tasks - right,
            duplicated=result._work.arrived - tasks,
            run_again=log.count().total() - tasks,
            seconds=took_s,
        )
