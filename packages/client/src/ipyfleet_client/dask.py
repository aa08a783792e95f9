"""Engines as a Dask cluster.

What lives here: `become_dask` and `stop_dask`. Needs `distributed`, here and on the engines. What
runs there is named, not imported: ``ipyfleet_engine.dask_worker``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.namespace import Reference

if TYPE_CHECKING:
    from ipyfleet_client.client import Client


def _on_engine(name: str) -> Reference:
    return Reference(f"__import__('ipyfleet_engine.dask_worker', fromlist=['_']).{name}")


def become_dask(
    client: Client,
    targets: Any,
    *,
    port: int,
    nanny: bool,
    scheduler_args: dict[str, Any] | None,
    worker_args: dict[str, Any],
) -> Any:
    """See `Client.become_dask`."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "become_dask() needs distributed, here and on the engines: pip install distributed"
        ) from error
    directory = client.session.link.engines
    chosen = directory.targets(targets)
    engines = [chosen] if isinstance(chosen, int) else chosen
    if not engines:
        raise IndexError("become_dask() needs at least one engine")
    first = getattr(client, "_dask_scheduler", None)
    if first is None or first not in client.ids:
        first = engines[0]
    settings: dict[str, Any] = {"port": port, "dashboard_address": None}
    if directory.are_on_host(client.session.host, None):
        # Nobody else has to reach it, and Dask asks nobody who he is.
        settings["host"] = "127.0.0.1"
        worker_args = {"host": "127.0.0.1", **worker_args}
    settings.update(scheduler_args or {})
    address = client[first].apply_sync(_on_engine("start_scheduler"), settings)
    client._dask_scheduler = first
    arguments = {"nthreads": 1, **worker_args}
    if not nanny:
        arguments.setdefault("dashboard", False)
    view = client.direct_view(engines)
    view.apply_sync(_on_engine("start_worker"), address, nanny, arguments)
    connect: Any = distributed.Client  # without annotations in some versions
    return connect(address)


def stop_dask(client: Client, targets: Any) -> None:
    """See `Client.stop_dask`."""
    chosen = client.session.link.engines.targets(targets)
    engines = [chosen] if isinstance(chosen, int) else chosen
    stop = _on_engine("stop")
    client.direct_view(engines).apply_sync(stop, "worker")
    first = client._dask_scheduler
    if first is not None and set(engines) >= set(client.ids):
        if first in client.ids:
            client[first].apply_sync(stop, "scheduler")
        client._dask_scheduler = None
