"""The client of an ipyfleet cluster: Client, views, asynchronous results.

The public names; everything else in the package is private. `pool` and `joblib_backend` are for the
umbrella package, whose `Pool` and `register_joblib_backend` also find a cluster.
"""

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
