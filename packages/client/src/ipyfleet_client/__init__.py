"""The client of an ipyfleet cluster: Client, views, asynchronous results.

The public names; everything else in the package is private.
"""

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.client import Client
from ipyfleet_client.decorators import (
    ParallelFunction,
    RemoteFunction,
    interactive,
    parallel,
    remote,
    require,
)
from ipyfleet_client.imap import LazyMapIterator
from ipyfleet_client.mapresult import AsyncMapResult
from ipyfleet_client.metadata import Metadata
from ipyfleet_client.outputs import ExecuteReply
from ipyfleet_client.views.balanced import LoadBalancedView
from ipyfleet_client.views.direct import DirectView
from ipyfleet_protocol.namespace import Reference
from ipyfleet_protocol.serialize import use_cloudpickle, use_dill, use_pickle

__version__ = "0.1.0"

__all__ = [
    "AsyncMapResult",
    "AsyncResult",
    "Client",
    "DirectView",
    "ExecuteReply",
    "LazyMapIterator",
    "LoadBalancedView",
    "Metadata",
    "ParallelFunction",
    "Reference",
    "RemoteFunction",
    "__version__",
    "interactive",
    "parallel",
    "remote",
    "require",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]
