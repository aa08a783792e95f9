"""Dask distributed on one machine."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.peers.base import Peer, even_chunks
from benchmarks.workload import make_array, noop, noop_chunk, size_bytes


class DaskPeer(Peer):
    """``LocalCluster`` with single-threaded worker processes; data goes directly to the workers."""

    title = "Dask"
    module = "distributed"
    distribution = "distributed"
    notes: ClassVar[Mapping[str, str]] = {
        "map_chunked": "chunks made by the caller; most of the time is gathering the lists"
    }

    def start(self, workers: int) -> None:
        """Start scheduler and workers, without the dashboard."""
        distributed = importlib.import_module("distributed")
        self._workers = workers
        self._wait = distributed.wait
        self._cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = distributed.Client(self._cluster)
        self._client.wait_for_workers(workers)
        self._first = next(iter(self._client.scheduler_info()["workers"]))

    def stop(self) -> None:
        """Close the client, then the cluster."""
        self._client.close()
        self._cluster.close()

    def call(self) -> int:
        """``submit`` and wait."""
        result: int = self._client.submit(noop, pure=False).result()
        return result

    def call_one(self) -> int:
        """``submit`` to a given worker."""
        result: int = self._client.submit(noop, pure=False, workers=[self._first]).result()
        return result

    def separate(self, count: int) -> list[int]:
        """``submit`` each and gather."""
        futures = [self._client.submit(noop, item, pure=False) for item in range(count)]
        return list(self._client.gather(futures))

    def map_single(self, count: int) -> list[int]:
        """``map`` and gather."""
        return list(self._client.gather(self._client.map(noop, range(count), pure=False)))

    def map_chunked(self, count: int) -> list[int]:
        """``map`` over chunks and gather."""
        chunks = even_chunks(count, self._workers)
        futures = self._client.map(noop_chunk, chunks, pure=False)
        return [item for chunk in self._client.gather(futures) for item in chunk]

    def push(self, array: Any) -> None:
        """Scatter to one worker, not by way of the scheduler."""
        self._pushed = self._client.scatter(array, workers=[self._first], direct=True, hash=False)

    def pushed_bytes(self) -> int:
        """Ask the worker that has it."""
        return int(self._client.submit(size_bytes, self._pushed, pure=False).result())

    def prepare_pull(self, size: int) -> None:
        """Make the array at one worker."""
        self._held = self._client.submit(make_array, size, pure=False, workers=[self._first])
        self._wait(self._held, timeout=60)

    def pull(self) -> Any:
        """Gather from the worker, not by way of the scheduler."""
        return self._client.gather(self._held, direct=True)

    def broadcast(self, array: Any) -> None:
        """Scatter to all workers."""
        self._everywhere = self._client.scatter(array, broadcast=True, direct=True, hash=False)

    def broadcast_bytes(self) -> list[int]:
        """Ask who has it, then each of them for its size."""
        holders = self._client.who_has([self._everywhere])[self._everywhere.key]
        return [
            self._client.submit(size_bytes, self._everywhere, pure=False, workers=[w]).result()
            for w in holders
        ]


PEER = DaskPeer
