"""Pools and joblib loops that find their cluster themselves.

What lives here: the two names of the client package that may need a cluster started for them; only
this package knows both. The cluster is the one that ``ipcluster start`` started or, where there is
none, one of our own.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import ipyfleet_client.pool
from ipyfleet_client import Client, LoadBalancedView
from ipyfleet_protocol.errors import ConnectionFileError

if TYPE_CHECKING:
    from ipyfleet_cluster import Cluster

__all__ = ["Pool", "register_joblib_backend"]


def connect(n: int | None = None) -> tuple[Client, Cluster | None]:
    """Return a client of the default cluster, and the cluster if it was started for this.

    Args:
        n: how many engines a new cluster gets; None for one for each processor.
    """
    try:
        return Client(timeout=0), None
    except ConnectionFileError:
        from ipyfleet_cluster import Cluster

        # A name of its own: the default one is for clusters that others are to find.
        cluster = Cluster(n=n or len(os.sched_getaffinity(0)))
        return cluster.start_and_connect_sync(), cluster


class Pool(ipyfleet_client.pool.Pool):
    """As `ipyfleet_client.pool.Pool`, and `view` may be left out.

    Then the pool uses the default cluster if one runs, and else starts one with `processes` engines
    that ends with the pool.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        view: Client | LoadBalancedView | None = None,
    ) -> None:
        self._finalizer: weakref.finalize[Any, Pool] | None = None
        if view is None:
            view, cluster = connect(processes)
            self._finalizer = weakref.finalize(self, _release, view, cluster)
        try:
            super().__init__(processes, initializer, initargs, maxtasksperchild, context, view=view)
        except BaseException:
            self._free()
            raise

    def terminate(self) -> None:
        """Take no more calls, take back what has not started, free what was started for it."""
        super().terminate()
        self._free()

    def join(self) -> None:
        """Wait until all calls have ended, and free what was started for the pool.

        Raises:
            ValueError: the pool was not closed.
        """
        super().join()
        self._free()

    def _free(self) -> None:
        if self._finalizer is not None:
            self._finalizer()


def _release(client: Client, cluster: Cluster | None) -> None:
    client.close()
    if cluster is not None:
        cluster.stop_cluster_sync()


_joblib: list[tuple[Client, Cluster | None]] = []


def _find_view() -> LoadBalancedView:
    """Return a view for joblib; the cluster stays until the process ends."""
    while _joblib and _joblib[-1][0].closed:
        _release(*_joblib.pop())
    if not _joblib:
        _joblib.append(connect())
        atexit.register(_release, *_joblib[-1])
    return _joblib[-1][0].load_balanced_view()


def register_joblib_backend(name: str = "ipyfleet", make_default: bool = False) -> None:
    """Make ``joblib.parallel_config(name)`` run loops on the default cluster.

    The cluster is looked for, or started, when the first loop runs. To use another one:
    ``view.register_joblib_backend()``.

    Args:
        name: the backend's name.
        make_default: use it where none is named, too.

    Raises:
        ImportError: joblib is not installed.
    """
    from ipyfleet_client.joblib_backend import register_joblib_backend

    register_joblib_backend(name, make_default, find_view=_find_view)
