"""Ray on one machine."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.peers.base import Peer, even_chunks
from benchmarks.workload import make_array, noop, noop_chunk


class _Keeper:
    """The actor that stands for one worker that can be addressed and that holds data."""

    def noop(self, item: int = 0) -> int:
        return noop(item)

    def keep(self, array: Any) -> None:
        self._array = array

    def make(self, size: int) -> None:
        self._array = make_array(size)

    def size_bytes(self) -> int:
        return int(self._array.nbytes)

    def give(self) -> Any:
        return self._array


class RayPeer(Peer):
    """Remote functions for balanced work; one actor per worker where a worker is addressed."""

    title = "Ray"
    module = "ray"
    distribution = "ray"
    notes: ClassVar[Mapping[str, str]] = {
        "call_one": "a call of an actor",
        "push": "put into the object store, read by an actor",
        "pull": "the result of an actor; arrives read-only",
        "map_chunked": "chunks made by the caller",
    }

    def start(self, workers: int) -> None:
        """Start a local Ray without dashboard and its log echo."""
        ray: Any = importlib.import_module("ray")
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self._ray = ray
        self._workers = workers
        self._noop = ray.remote(noop)
        self._noop_chunk = ray.remote(noop_chunk)
        self._keepers: list[Any] = []

    def stop(self) -> None:
        """Shut Ray down with all its processes."""
        self._ray.shutdown()

    def call(self) -> int:
        """A remote function, awaited."""
        result: int = self._ray.get(self._noop.remote())
        return result

    def call_one(self) -> int:
        """A call of an actor, awaited."""
        result: int = self._ray.get(self._actors()[0].noop.remote())
        return result

    def separate(self, count: int) -> list[int]:
        """The same as a map, for which there is nothing else."""
        return self.map_single(count)

    def map_single(self, count: int) -> list[int]:
        """One remote call per item."""
        return list(self._ray.get([self._noop.remote(item) for item in range(count)]))

    def map_chunked(self, count: int) -> list[int]:
        """One remote call per chunk."""
        calls = [self._noop_chunk.remote(chunk) for chunk in even_chunks(count, self._workers)]
        return [item for chunk in self._ray.get(calls) for item in chunk]

    def push(self, array: Any) -> None:
        """Put the array once and have an actor take it."""
        self._ray.get(self._actors()[0].keep.remote(self._ray.put(array)))

    def pushed_bytes(self) -> int:
        """Ask the actor."""
        return int(self._ray.get(self._actors()[0].size_bytes.remote()))

    def prepare_pull(self, size: int) -> None:
        """Make the array in an actor."""
        self._ray.get(self._actors()[0].make.remote(size))

    def pull(self) -> Any:
        """Get the actor's array."""
        return self._ray.get(self._actors()[0].give.remote())

    def broadcast(self, array: Any) -> None:
        """Put the array once and have all actors take it."""
        stored = self._ray.put(array)
        self._ray.get([actor.keep.remote(stored) for actor in self._actors()])

    def broadcast_bytes(self) -> list[int]:
        """Ask the actors."""
        return list(self._ray.get([actor.size_bytes.remote() for actor in self._actors()]))

    def _actors(self) -> list[Any]:
        """Return one actor per worker, made at the first use.

        They reserve no CPU: the balanced figures have all of them.
        """
        if not self._keepers:
            keeper = self._ray.remote(num_cpus=0)(_Keeper)
            self._keepers = [keeper.remote() for _ in range(self._workers)]
            self._ray.get([actor.noop.remote() for actor in self._keepers])
        return self._keepers


PEER = RayPeer
