"""What the process pools share: one ``submit``, and no way to name a worker or its data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from benchmarks.peers.base import Peer
from benchmarks.workload import fail, held_array, hold_array, nap, noop, size_bytes

ANY_WORKER = "to any worker: a pool cannot address one"
AS_ARGUMENT = "as the argument of a task: a pool's workers have no namespace"
AS_RESULT = "as the result of a task: a pool's workers have no namespace"


class Pending(Protocol):
    """The one method that is used of a future."""

    def result(self) -> Any:
        """Wait for the result."""


class PoolPeer(Peer):
    """A pool of worker processes behind a ``submit``."""

    notes: ClassVar[Mapping[str, str]] = {
        "call_one": ANY_WORKER,
        "push": AS_ARGUMENT,
        "pull": AS_RESULT,
    }

    def __init__(self) -> None:
        self._workers = 0
        self._pushed_bytes = 0
        self._pull_bytes = 0

    @abstractmethod
    def submit(self, function: Callable[..., Any], *args: Any) -> Pending:
        """Start a task."""

    def call(self) -> int:
        """One task, awaited."""
        result: int = self.submit(noop).result()
        return result

    def call_one(self) -> int:
        """The same: whichever worker is free is the only one to ask for."""
        return self.call()

    def separate(self, count: int) -> list[int]:
        """A ``submit`` each."""
        pending = [self.submit(noop, item) for item in range(count)]
        return [each.result() for each in pending]

    def nap_all(self, seconds: Sequence[float]) -> None:
        """A ``submit`` each."""
        for each in [self.submit(nap, each) for each in seconds]:
            each.result()

    def fail_all(self, count: int) -> int:
        """A ``submit`` each."""
        n_failed = 0
        for each in [self.submit(fail, item) for item in range(count)]:
            try:
                each.result()
            except ValueError:
                n_failed += 1
        return n_failed

    def warm_up_data(self) -> None:
        """Any worker may get the array, so all have to be warm."""
        self.prepare_pull(8)

    def push(self, array: Any) -> None:
        """Send the array as an argument."""
        self._pushed_bytes = self.submit(size_bytes, array).result()

    def pushed_bytes(self) -> int:
        """Return what the task of :meth:`push` has seen."""
        return self._pushed_bytes

    def prepare_pull(self, size: int) -> None:
        """Have every worker hold the array: any of them may be the one that answers."""
        self._pull_bytes = size
        for future in [self.submit(hold_array, size, 0.3) for _ in range(self._workers)]:
            future.result()

    def pull(self) -> Any:
        """Return the array as a result."""
        return self.submit(held_array, self._pull_bytes).result()
