"""What ipyfleet and ipyparallel share: one public API of clients and views.

That one class measures both is itself a claim: a script changes its import and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.peers.base import Peer
from benchmarks.workload import fail, make_array, nap, noop


class ViewsPeer(Peer):
    """A cluster reached through ``Cluster``, direct views and a load-balanced view."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self, workers: int) -> None:
        """Start a cluster and connect; its context manager waits for all engines."""
        library = importlib.import_module(self.module)
        client: Any = self._stack.enter_context(library.Cluster(n=workers))
        self._one: Any = client[0]
        self._all: Any = client[:]
        self._balanced: Any = client.load_balanced_view()

    def stop(self) -> None:
        """Stop engines, controller and client."""
        self._stack.close()

    def call(self) -> int:
        """One task through the load balancer."""
        result: int = self._balanced.apply_sync(noop)
        return result

    def call_one(self) -> int:
        """One task at engine 0."""
        result: int = self._one.apply_sync(noop)
        return result

    def call_all(self) -> list[int]:
        """One task at each engine."""
        return list(self._all.apply_sync(noop))

    def separate(self, count: int) -> list[int]:
        """``apply_async`` on a load-balanced view."""
        pending = [self._balanced.apply_async(noop, item) for item in range(count)]
        return [result.get() for result in pending]

    def nap_all(self, seconds: Sequence[float]) -> None:
        """A load-balanced map."""
        self._balanced.map_sync(nap, seconds, chunksize=1)

    def fail_all(self, count: int) -> int:
        """A load-balanced map; the errors come as one."""
        pending = self._balanced.map_async(fail, range(count), chunksize=1)
        try:
            pending.get()
        except Exception as error:  # noqa: BLE001 - each of the two has a class of its own
            return len(getattr(error, "elist", ()))
        return 0

    def map_single(self, count: int) -> list[int]:
        """A load-balanced map."""
        return list(self._balanced.map_sync(noop, range(count), chunksize=1))

    def map_chunked(self, count: int) -> list[int]:
        """A direct map: one chunk for each engine."""
        return list(self._all.map_sync(noop, range(count)))

    def push(self, array: Any) -> None:
        """Push into the namespace of engine 0."""
        self._one.push({"pushed": array}, block=True)

    def pushed_bytes(self) -> int:
        """Ask engine 0."""
        self._one.execute("pushed_bytes = pushed.nbytes", block=True)
        return int(self._one["pushed_bytes"])

    def prepare_pull(self, size: int) -> None:
        """Make the array in the namespace of engine 0."""
        self._one.push({"make_array": make_array, "wanted_bytes": size}, block=True)
        self._one.execute("pulled = make_array(wanted_bytes)", block=True)

    def pull(self) -> Any:
        """Item access on a view of engine 0."""
        return self._one["pulled"]

    def scatter(self, array: Any) -> None:
        """Scatter over the engines' namespaces."""
        self._all.scatter("part", array, block=True)

    def gather(self) -> Any:
        """Gather from them."""
        return self._all.gather("part", block=True)

    def broadcast(self, array: Any) -> None:
        """Push into the namespaces of all engines."""
        self._all.push({"everywhere": array}, block=True)

    def broadcast_bytes(self) -> list[int]:
        """Ask every engine."""
        self._all.execute("everywhere_bytes = everywhere.nbytes", block=True)
        return [int(size) for size in self._all["everywhere_bytes"]]
