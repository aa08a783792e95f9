"""joblib with its default backend, loky."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from benchmarks.peers.pools import ANY_WORKER, AS_RESULT, Pending, PoolPeer
from benchmarks.workload import noop, size_bytes


class JoblibPeer(PoolPeer):
    """``Parallel`` for maps and large arguments, its reusable executor for single calls.

    A single call through ``Parallel`` would pay for a whole ``Parallel`` run; users who want round
    trips take the executor.
    """

    title = "joblib/loky"
    module = "joblib"
    distribution = "joblib"
    notes: ClassVar[Mapping[str, str]] = {
        "call_one": ANY_WORKER,
        "push": "as the argument of a task, memory-mapped by joblib",
        "pull": AS_RESULT,
    }

    def start(self, workers: int) -> None:
        """Have the reusable executor started as ``Parallel`` starts it."""
        self._joblib = importlib.import_module("joblib")
        self._workers = workers
        self._parallel(noop, [0])
        loky = importlib.import_module("joblib.externals.loky")
        self._executor = loky.get_reusable_executor(max_workers=workers, reuse=True)

    def stop(self) -> None:
        """Shut the reusable executor down."""
        self._executor.shutdown(wait=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Pending:
        """Start a task."""
        pending: Pending = self._executor.submit(function, *args)
        return pending

    def map_single(self, count: int) -> list[int]:
        """Batches of one."""
        return self._parallel(noop, range(count), batch_size=1)

    def map_chunked(self, count: int) -> list[int]:
        """Batches whose size joblib finds by itself."""
        return self._parallel(noop, range(count))

    def push(self, array: Any) -> None:
        """Large arguments of ``Parallel`` are memory-mapped."""
        [self._pushed_bytes] = self._parallel(size_bytes, [array])

    def _parallel(self, function: Callable[[Any], int], items: Any, **options: Any) -> list[int]:
        call = self._joblib.delayed(function)
        parallel = self._joblib.Parallel(n_jobs=self._workers, backend="loky", **options)
        return list(parallel(call(item) for item in items))


PEER = JoblibPeer
