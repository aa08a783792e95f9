"""``multiprocessing.Pool``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers.pools import PoolPeer
from benchmarks.workload import noop


class _AsyncResultAsFuture:
    """Gives the pool's asynchronous result the name of method that futures have."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self) -> Any:
        return self._result.get()


class MultiprocessingPeer(PoolPeer):
    """``Pool`` with the start method of the platform."""

    title = "multiprocessing\nPool"
    module = "multiprocessing"
    distribution = None

    def start(self, workers: int) -> None:
        """Start the pool's processes."""
        import multiprocessing

        self._workers = workers
        self._pool = multiprocessing.Pool(workers)

    def stop(self) -> None:
        """Let the workers finish and join them."""
        self._pool.close()
        self._pool.join()

    def submit(self, function: Callable[..., Any], *args: Any) -> _AsyncResultAsFuture:
        """Start a task."""
        return _AsyncResultAsFuture(self._pool.apply_async(function, args))

    def map_single(self, count: int) -> list[int]:
        """``imap``, whose results come one by one."""
        return list(self._pool.imap(noop, range(count), chunksize=1))

    def map_chunked(self, count: int) -> list[int]:
        """``map`` with its default chunk size."""
        return self._pool.map(noop, range(count))


PEER = MultiprocessingPeer
