"""Errors as data: from an exception on an engine to an exception on a client.

What lives here: the conversions. What must not: the controller's code path; `error_from_info`
unpickles.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from traceback import format_exception
from typing import Any

from ..messages import ErrorInfo
from .bounded import TEXT_MAX_BYTES, safe_text, shorten, shorten_lines
from .kinds import (
    OWN_ERRORS,
    ImpossibleDependency,
    KernelError,
    RemoteInfo,
    UnmetDependency,
)
from .remote import RemoteError


def info_from_exception(
    exc: BaseException, *, engine_id: int, engine_uuid: str, method: str, traceback: list[str]
) -> ErrorInfo:
    """Return an exception as data. Works for every exception, however broken.

    Texts are shortened to `TEXT_MAX_BYTES`, and say so; an exception whose pickle is larger than
    that, or that cannot be pickled, is left out of the result (``cause=b""``).

    Args:
        exc: what user code raised.
        engine_id: this engine.
        engine_uuid: its peer id in hex.
        method: what the engine was doing: "apply", "map", "execute".
        traceback: lines as they shall be shown.
    """
    return ErrorInfo(
        ename=shorten(type(exc).__name__, 1024),
        evalue=shorten(safe_text(exc)),
        traceback=shorten_lines(traceback),
        engine_id=engine_id,
        engine_uuid=engine_uuid,
        method=method,
        cause=_pickle_cause(exc),
        own=type(exc) is UnmetDependency,
    )


def is_unmet(exc: BaseException) -> bool:
    """Whether user code says by this that its engine has not what it needs; another one may."""
    return isinstance(exc, UnmetDependency) and not isinstance(exc, ImpossibleDependency)


def error_from_info(info: ErrorInfo) -> KernelError:
    """Return the exception that an `ErrorInfo` describes, to be raised by a client.

    A class of this module for what the system itself says, else a `RemoteError` whose ``__cause__``
    is the original exception if that can be unpickled. Unpickles: for clients only.
    """
    where = _engine_info(info)
    kind = OWN_ERRORS.get(info.ename) if info.own else None
    if kind is not None:
        own = kind(info.evalue)
        own.engine_info = where
        if len(info.traceback) > 1:
            # It comes out of user code.
            own.__cause__ = RemoteError(info.ename, info.evalue, info.traceback, where)
        if own.hint and own.hint not in info.evalue:
            own.add_note(own.hint)
        return own
    error = RemoteError(info.ename, info.evalue, info.traceback, where)
    if info.cause:
        error.__cause__ = _unpickle_cause(info.cause)
    return error


def wrap_exception(engine_info: RemoteInfo | None = None) -> dict[str, Any]:
    """Return the exception that is being handled as the content of a Jupyter error reply.

    Keys: ``status`` ("error"), ``ename``, ``evalue``, ``traceback`` (lines), ``engine_info``.
    """
    kind, value, trace = sys.exc_info()
    lines = format_exception(kind, value, trace) if value is not None else []
    return {
        "status": "error",
        "ename": shorten(kind.__name__ if kind else "None", 1024),
        "evalue": shorten(safe_text(value)),
        "traceback": shorten_lines(line.rstrip("\n") for line in lines),
        "engine_info": dict(engine_info or {}),
    }


def unwrap_exception(content: Mapping[str, Any]) -> RemoteError:
    """Return the error that `wrap_exception` put into a dictionary."""
    return RemoteError(
        content["ename"],
        content["evalue"],
        content.get("traceback", []),
        content.get("engine_info", {}),
    )


def _engine_info(info: ErrorInfo) -> RemoteInfo | None:
    if info.engine_id < 0 and not info.engine_uuid:
        return None
    return {
        "engine_id": info.engine_id,
        "engine_uuid": info.engine_uuid,
        "method": info.method,
    }


def _pickle_cause(exc: BaseException) -> bytes:
    try:
        data = pickle.dumps(exc, protocol=5)
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - see below
        # The user's __reduce__ runs here. The error itself is told without the object.
        return b""
    return data if len(data) <= TEXT_MAX_BYTES else b""


def _unpickle_cause(data: bytes) -> BaseException | None:
    try:
        cause = pickle.loads(data)
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - see below
        # A class that this side does not have, or a constructor that wants other arguments: common,
        # and the RemoteError says all there is to say without the object.
        return None
    return cause if isinstance(cause, BaseException) else None
