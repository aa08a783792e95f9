"""The client of an ipyfleet cluster: Client, views, asynchronous results.

The public names; everything else in the package is private. `pool` and `joblib_backend` are for the
umbrella package, whose `Pool` and `register_joblib_backend` also find a cluster.

A name's module is imported when the name is first used (PEP 562): what a script does not use, such
as the executor or the decorators, costs it nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipyfleet_client.asyncresult import AsyncResult
    from ipyfleet_client.client import Client
    from ipyfleet_client.decorators import (
        ParallelFunction,
        RemoteFunction,
        depend,
        dependent,
        interactive,
        parallel,
        remote,
        require,
    )
    from ipyfleet_client.executor import ViewExecutor
    from ipyfleet_client.hubresult import AsyncHubResult
    from ipyfleet_client.imap import LazyMapIterator
    from ipyfleet_client.mapresult import AsyncMapResult
    from ipyfleet_client.metadata import Metadata
    from ipyfleet_client.outputs import ExecuteReply
    from ipyfleet_client.views.balanced import LoadBalancedView
    from ipyfleet_client.views.broadcast import BroadcastView
    from ipyfleet_client.views.direct import DirectView
    from ipyfleet_protocol.dependencies import Dependency
    from ipyfleet_protocol.namespace import Reference
    from ipyfleet_protocol.serialize import PrePickled, use_cloudpickle, use_dill, use_pickle

__version__ = "0.1.0"

# One list for people and type checkers above, one for what runs below: a test holds them together.
__all__ = [
    "AsyncHubResult",
    "AsyncMapResult",
    "AsyncResult",
    "BroadcastView",
    "Client",
    "Dependency",
    "DirectView",
    "ExecuteReply",
    "LazyMapIterator",
    "LoadBalancedView",
    "Metadata",
    "ParallelFunction",
    "PrePickled",
    "Reference",
    "RemoteFunction",
    "ViewExecutor",
    "__version__",
    "depend",
    "dependent",
    "interactive",
    "parallel",
    "remote",
    "require",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]

_NAMES_OF = {
    "ipyfleet_client.asyncresult": ("AsyncResult",),
    "ipyfleet_client.client": ("Client",),
    "ipyfleet_client.decorators": (
        "ParallelFunction",
        "RemoteFunction",
        "depend",
        "dependent",
        "interactive",
        "parallel",
        "remote",
        "require",
    ),
    "ipyfleet_client.executor": ("ViewExecutor",),
    "ipyfleet_client.hubresult": ("AsyncHubResult",),
    "ipyfleet_client.imap": ("LazyMapIterator",),
    "ipyfleet_client.mapresult": ("AsyncMapResult",),
    "ipyfleet_client.metadata": ("Metadata",),
    "ipyfleet_client.outputs": ("ExecuteReply",),
    "ipyfleet_client.views.balanced": ("LoadBalancedView",),
    "ipyfleet_client.views.broadcast": ("BroadcastView",),
    "ipyfleet_client.views.direct": ("DirectView",),
    "ipyfleet_protocol.dependencies": ("Dependency",),
    "ipyfleet_protocol.namespace": ("Reference",),
    "ipyfleet_protocol.serialize": ("PrePickled", "use_cloudpickle", "use_dill", "use_pickle"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
