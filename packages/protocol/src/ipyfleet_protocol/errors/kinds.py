"""The classes of errors that the system itself makes, and the bases of all.

What lives here: the hierarchy but for what comes from user code (`remote`). What must not:
functions that make, convert or collect errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

RemoteInfo: TypeAlias = dict[str, Any]
"""Where an error happened: keys ``engine_id`` (int), ``engine_uuid`` (str), ``method`` (str)."""


class IPythonError(Exception):
    """Base of every error of the system."""


class ProtocolError(IPythonError):
    """Bytes that are not what the protocol says: the other side's fault, or a stranger's."""


class ConnectionFileError(IPythonError, OSError):
    """A connection file cannot be used; the message says why and what to do."""


class ConnectionFileMissing(ConnectionFileError, FileNotFoundError):
    """There is no such file: no cluster is running under this name."""


class ConnectionFileUnreadable(ConnectionFileError):
    """The file is there and its content cannot be had."""


class ConnectionFilePermission(ConnectionFileUnreadable, PermissionError):
    """The file may not be read, or may be read or written by too many."""


class ConnectionFileInvalid(ConnectionFileUnreadable, ValueError):
    """The content is no connection file's: not JSON, or fields missing or of the wrong type."""


class ConnectionFileVersion(ConnectionFileError):
    """The file was written by a release that speaks another protocol."""


class ConnectionFileStale(ConnectionFileError):
    """The controller that wrote the file is gone."""


class ConnectionFileUnreachable(ConnectionFileError):
    """The controller does not listen for connections from this host."""


class KernelError(IPythonError):
    """Base of the errors that the work on engines may end in.

    Attributes:
        engine_info: where it happened; None where no engine has to do with it.
        default_text: what it says if nothing else was said.
        hint: what can be done about it; a note of those that come from the cluster.
    """

    default_text: ClassVar[str] = ""
    hint: ClassVar[str] = ""
    engine_info: RemoteInfo | None = None

    def __str__(self) -> str:
        return super().__str__() or self.default_text


class ClientClosed(KernelError, OSError):
    """The client was closed, or its connection is gone for good."""

    default_text = "this client is closed; make a new one: rc = ipf.Client()"


class EngineError(KernelError):
    """An engine died or was lost while it had the task."""

    default_text = (
        "the engine died while it had this task; its log says more. "
        "A balanced view runs such tasks again elsewhere if you set view.retries"
    )
    hint = (
        "what the engine held is lost; rc.ids are those that are left. Work that may run twice "
        "survives this: rc.load_balanced_view(retries=1). The engine's log is in the profile's "
        "log directory"
    )


class NoEnginesRegistered(KernelError):
    """There is no engine to run on."""

    default_text = (
        "no engines are registered with this controller: engines may still be starting "
        "(rc.wait_for_engines(n) waits for them), or none were started: run `ipengine -n 4`, "
        "or `ipcluster start -n 4` for a whole cluster"
    )


class TaskAborted(KernelError):
    """The task was cancelled before it started, or work before it in a queue failed."""

    default_text = (
        "the task was aborted before it started: it was cancelled, "
        "or an execute before it in the engine's queue failed"
    )
    hint = "rc.resubmit(ar.msg_ids) runs it after all"


class TaskTimeout(KernelError):
    """The task found no place in the time that it was given to wait."""

    default_text = "the task found no engine to run on within its timeout"
    hint = (
        "view.timeout bounds how long a task waits for what it depends on and for a free engine, "
        "not how long it runs: give it more, or None for any time; rc.resubmit(ar) tries again"
    )


class TaskRejectError(KernelError):
    """An engine declined a task; the scheduler places it elsewhere."""

    default_text = "the engine declined the task"


class UnmetDependency(KernelError):
    """A dependency of the task is not met on this engine."""

    default_text = "a dependency of the task is not met on this engine"
    hint = (
        "what an engine has not, another may have: through rc.load_balanced_view() such a task is "
        "tried at each, through a direct view it is not"
    )


class ImpossibleDependency(UnmetDependency):
    """A dependency of the task can never be met."""

    default_text = "a dependency of the task can never be met: a task that it needs failed"
    hint = (
        "rc.get_result(msg_id) of what it waited for has its error. To run after failures, too: "
        "after=Dependency(…, failure=True); after or where any one of several has run: all=False"
    )


class DependencyTimeout(ImpossibleDependency, TaskTimeout):
    """The dependencies of the task were not met in time."""

    default_text = "the dependencies of the task were not met in time"
    hint = TaskTimeout.hint


class InvalidDependency(ImpossibleDependency):
    """A dependency of the task names a task that nobody knows."""

    default_text = "a dependency of the task names a task that this cluster does not know"
    hint = (
        "msg_ids come from ar.msg_ids or rc.history of a client of the same cluster; tasks that "
        "ended long ago are forgotten, and what does not wait for anything need not name them"
    )


OWN_ERRORS: dict[str, Callable[[str], KernelError]] = {
    kind.__name__: kind
    for kind in (
        KernelError,
        ClientClosed,
        EngineError,
        NoEnginesRegistered,
        TaskAborted,
        TaskTimeout,
        TaskRejectError,
        UnmetDependency,
        ImpossibleDependency,
        DependencyTimeout,
        InvalidDependency,
    )
}
"""The classes that `ErrorInfo.ename` may name where `ErrorInfo.own` is set."""
