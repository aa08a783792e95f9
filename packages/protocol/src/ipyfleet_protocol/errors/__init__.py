"""The errors that users see, and errors as data.

What lives here: every exception class of the system with its text forms (`kinds`, `remote`), the
way from an exception to a `messages.ErrorInfo` on the engine and back on the client (`info`), and
`collect_exceptions`, which turns the errors of many tasks into one `CompositeError`. What must not:
sockets, tasks, anything of IPython.

Theory of operation
-------------------
What goes wrong in user code on an engine arrives at the client as a `RemoteError`: a name, a text
and a traceback as data, so that it can be shown whether or not the client can import the
exception's class. Where the original exception survives pickling it is the RemoteError's
``__cause__``. What goes wrong in the system itself (an engine died, no engine is there) arrives as
the class that says so, such as `EngineError`. Several errors become one `CompositeError`, which is
an `ExceptionGroup` too.

All classes survive pickling and copying. As with every Python exception, ``__cause__``,
``__context__`` and ``__traceback__`` do not take part in that.
"""

from builtins import TimeoutError

from .bounded import TEXT_MAX_BYTES
from .info import (
    error_from_info,
    info_from_exception,
    is_unmet,
    unwrap_exception,
    wrap_exception,
)
from .kinds import (
    OWN_ERRORS,
    ClientClosed,
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
    RemoteInfo,
    TaskAborted,
    TaskRejectError,
    TaskTimeout,
    UnmetDependency,
)
from .remote import (
    AlreadyDisplayedError,
    CompositeError,
    ErrorTuple,
    RemoteError,
    collect_exceptions,
)

__all__ = [
    "OWN_ERRORS",
    "TEXT_MAX_BYTES",
    "AlreadyDisplayedError",
    "ClientClosed",
    "CompositeError",
    "ConnectionFileError",
    "ConnectionFileInvalid",
    "ConnectionFileMissing",
    "ConnectionFilePermission",
    "ConnectionFileStale",
    "ConnectionFileUnreachable",
    "ConnectionFileUnreadable",
    "ConnectionFileVersion",
    "DependencyTimeout",
    "EngineError",
    "ErrorTuple",
    "IPythonError",
    "ImpossibleDependency",
    "InvalidDependency",
    "KernelError",
    "NoEnginesRegistered",
    "ProtocolError",
    "RemoteError",
    "RemoteInfo",
    "TaskAborted",
    "TaskRejectError",
    "TaskTimeout",
    "TimeoutError",
    "UnmetDependency",
    "collect_exceptions",
    "error_from_info",
    "info_from_exception",
    "is_unmet",
    "unwrap_exception",
    "wrap_exception",
]
