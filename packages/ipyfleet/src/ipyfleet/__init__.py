"""Interactive parallel computing for IPython; ``import ipyfleet as ipf`` has all public names.

What lives here: where each public name comes from. What must not: code of its own.

A name's package is imported when the name is first used (PEP 562), so ``import ipyfleet`` costs a
few milliseconds, and a script that only catches `CompositeError` never loads a socket library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

version_info: tuple[int, ...] = tuple(int(part) for part in __version__.split(".")[:3])

if TYPE_CHECKING:
    from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION

    from ipyfleet import error
    from ipyfleet.default_cluster import Pool, register_joblib_backend
    from ipyfleet.error import (
        AlreadyDisplayedError,
        ClientClosed,
        CompositeError,
        ConnectionFileError,
        ConnectionFileInvalid,
        ConnectionFileMissing,
        ConnectionFilePermission,
        ConnectionFileStale,
        ConnectionFileUnreachable,
        ConnectionFileUnreadable,
        ConnectionFileVersion,
        DependencyTimeout,
        EngineError,
        ImpossibleDependency,
        InvalidDependency,
        IPythonError,
        KernelError,
        NoEnginesRegistered,
        ProtocolError,
        RemoteError,
        TaskAborted,
        TaskRejectError,
        TaskTimeout,
        TimeoutError,
        UnmetDependency,
        collect_exceptions,
        unwrap_exception,
        wrap_exception,
    )
    from ipyfleet.serialize import (
        PrePickled,
        can,
        deserialize_object,
        pack_apply_message,
        serialize_object,
        uncan,
        unpack_apply_message,
    )
    from ipyfleet_client import (
        AsyncHubResult,
        AsyncMapResult,
        AsyncResult,
        BroadcastView,
        Client,
        DirectView,
        LoadBalancedView,
        ParallelFunction,
        RemoteFunction,
        ViewExecutor,
        depend,
        dependent,
        interactive,
        parallel,
        remote,
        require,
    )
    from ipyfleet_cluster import Cluster, ClusterManager
    from ipyfleet_engine import bind_kernel, publish_data
    from ipyfleet_protocol.dependencies import Dependency
    from ipyfleet_protocol.namespace import Reference
    from ipyfleet_protocol.serialize import use_cloudpickle, use_dill, use_pickle

# One list for people and type checkers above, one for what runs below: a test holds them together.
__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AlreadyDisplayedError",
    "AsyncHubResult",
    "AsyncMapResult",
    "AsyncResult",
    "BroadcastView",
    "Client",
    "ClientClosed",
    "Cluster",
    "ClusterManager",
    "CompositeError",
    "ConnectionFileError",
    "ConnectionFileInvalid",
    "ConnectionFileMissing",
    "ConnectionFilePermission",
    "ConnectionFileStale",
    "ConnectionFileUnreachable",
    "ConnectionFileUnreadable",
    "ConnectionFileVersion",
    "Dependency",
    "DependencyTimeout",
    "DirectView",
    "EngineError",
    "IPythonError",
    "ImpossibleDependency",
    "InvalidDependency",
    "KernelError",
    "LoadBalancedView",
    "NoEnginesRegistered",
    "ParallelFunction",
    "Pool",
    "PrePickled",
    "ProtocolError",
    "Reference",
    "RemoteError",
    "RemoteFunction",
    "TaskAborted",
    "TaskRejectError",
    "TaskTimeout",
    "TimeoutError",
    "UnmetDependency",
    "ViewExecutor",
    "__version__",
    "bind_kernel",
    "can",
    "collect_exceptions",
    "depend",
    "dependent",
    "deserialize_object",
    "error",
    "interactive",
    "load_ipython_extension",
    "pack_apply_message",
    "parallel",
    "publish_data",
    "register_joblib_backend",
    "remote",
    "require",
    "serialize_object",
    "uncan",
    "unpack_apply_message",
    "unwrap_exception",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
    "version_info",
    "wrap_exception",
]

_ELSEWHERE = {
    "concurrent.futures": ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"),
    "ipyfleet.default_cluster": ("Pool", "register_joblib_backend"),
    "ipyfleet.serialize": (
        "PrePickled",
        "can",
        "deserialize_object",
        "pack_apply_message",
        "serialize_object",
        "uncan",
        "unpack_apply_message",
    ),
    "ipyfleet_client": (
        "AsyncHubResult",
        "AsyncMapResult",
        "AsyncResult",
        "BroadcastView",
        "Client",
        "DirectView",
        "LoadBalancedView",
        "ParallelFunction",
        "RemoteFunction",
        "ViewExecutor",
        "depend",
        "dependent",
        "interactive",
        "parallel",
        "remote",
        "require",
    ),
    "ipyfleet_cluster": ("Cluster", "ClusterManager"),
    "ipyfleet_engine": ("bind_kernel", "publish_data"),
    "ipyfleet_protocol.dependencies": ("Dependency",),
    "ipyfleet_protocol.namespace": ("Reference",),
    "ipyfleet_protocol.serialize": ("use_cloudpickle", "use_dill", "use_pickle"),
}
"""The module that defines each name; every other name of `__all__` is one of `ipyfleet.error`."""

_SUBMODULES = frozenset({"cluster", "datapub", "error", "joblib", "serialize", "util"})
"""Modules that scripts use as attributes, without importing them."""

_MODULE_OF = {name: module for module, names in _ELSEWHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"ipyfleet.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF.get(name, "ipyfleet.error")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(ip: Any) -> None:
    """Called by IPython for ``%load_ext ipyfleet``: the same as ``%load_ext ipyfleet_magics``."""
    import_module("ipyfleet_magics").load_ipython_extension(ip)
