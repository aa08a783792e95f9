"""The process pool of ``concurrent.futures``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers.pools import Pending, PoolPeer
from benchmarks.workload import noop


class ConcurrentFuturesPeer(PoolPeer):
    """``ProcessPoolExecutor`` with the start method of the platform."""

    title = "ProcessPool\nExecutor"
    module = "concurrent.futures"
    distribution = None

    def start(self, workers: int) -> None:
        """Make the executor; its processes start with the first task."""
        from concurrent.futures import ProcessPoolExecutor

        self._workers = workers
        self._executor = ProcessPoolExecutor(workers)

    def stop(self) -> None:
        """Shut the executor down."""
        self._executor.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Pending:
        """Start a task."""
        return self._executor.submit(function, *args)

    def map_single(self, count: int) -> list[int]:
        """``map`` with its default chunk size, 1."""
        return list(self._executor.map(noop, range(count)))

    def map_chunked(self, count: int) -> list[int]:
        """``map`` with four chunks per worker."""
        return list(
            self._executor.map(noop, range(count), chunksize=-(-count // (4 * self._workers)))
        )


PEER = ConcurrentFuturesPeer
