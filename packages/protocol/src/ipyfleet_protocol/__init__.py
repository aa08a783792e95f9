"""What two peers of an ipyfleet cluster must agree on: the wire protocol.

Typed messages and their frames, serialization of functions and data, shared-memory blobs,
connection files, errors; and, in `local`, the Unix sockets over which processes of one host
exchange messages. zmq, which carries them to other hosts, is not imported here. Importing the
package imports nothing but the errors and the messages; each submodule says in its docstring what
it holds.
"""

from __future__ import annotations

__version__ = "0.1.0"

from .errors import (
    AlreadyDisplayedError,
    ClientClosed,
    CompositeError,
    ConnectionFileError,
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
from .messages import PROTOCOL_VERSION

__all__ = [
    "PROTOCOL_VERSION",
    "AlreadyDisplayedError",
    "ClientClosed",
    "CompositeError",
    "ConnectionFileError",
    "DependencyTimeout",
    "EngineError",
    "IPythonError",
    "ImpossibleDependency",
    "InvalidDependency",
    "KernelError",
    "NoEnginesRegistered",
    "ProtocolError",
    "RemoteError",
    "TaskAborted",
    "TaskRejectError",
    "TaskTimeout",
    "TimeoutError",
    "UnmetDependency",
    "__version__",
    "collect_exceptions",
    "unwrap_exception",
    "wrap_exception",
]
