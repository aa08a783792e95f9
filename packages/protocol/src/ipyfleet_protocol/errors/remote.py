"""Errors from user code on engines: one, several, and several that were shown already.

What lives here: `RemoteError`, `CompositeError`, `AlreadyDisplayedError` with their text forms, and
`collect_exceptions`. What must not: the conversion from and to messages (`info`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self, TypeAlias, cast

from .alike import ErrorKind, group_alike, notes_of, origin_of
from .kinds import IPythonError, KernelError, RemoteInfo

ErrorTuple: TypeAlias = tuple[str, str, "list[str] | str", "RemoteInfo | None"]
"""One item of `CompositeError.elist`: ``(ename, evalue, traceback, engine_info)``."""


class RemoteError(KernelError):
    """An error that happened on an engine.

    Attributes:
        ename, evalue: class name and text of the original exception.
        traceback: lines as the engine rendered them, maybe empty.
        engine_info: keys ``engine_id``, ``engine_uuid``, ``method``; None or empty if not known.

    Example:
        >>> info = {"engine_id": 0, "engine_uuid": "1f2e", "method": "apply"}
        >>> print(RemoteError("ZeroDivisionError", "division by zero", [], info))
        [0:apply] ZeroDivisionError: division by zero
    """

    def __init__(
        self,
        ename: str,
        evalue: str,
        traceback: list[str] | str | None = None,
        engine_info: RemoteInfo | None = None,
    ) -> None:
        super().__init__(ename, evalue)
        self.ename = ename
        self.evalue = evalue
        if isinstance(traceback, str):
            traceback = traceback.splitlines()
        self.traceback: list[str] = list(traceback or [])
        self.engine_info = engine_info

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.ename, self.evalue, self.traceback, self.engine_info)
        return type(self), arguments, self.__dict__

    @property
    def origin(self) -> str:
        """``[0:apply]``, or an empty string if it is not known where the error happened."""
        return origin_of([self.engine_info] if self.engine_info else [])

    def __str__(self) -> str:
        prefix = f"{self.origin} " if self.origin else ""
        return f"{prefix}{self.ename}: {self.evalue}"

    def __repr__(self) -> str:
        engine = (self.engine_info or {}).get("engine_id")
        where = "" if engine is None else f"[{engine}]"
        return f"<{type(self).__name__}{where}:{self.ename}({self.evalue})>"

    def render_traceback(self) -> list[str]:
        """Return the lines to show: where it happened, then the remote traceback."""
        lines = [*(self.traceback or [f"{self.ename}: {self.evalue}"]), *notes_of(self)]
        return [self.origin, *lines] if self.origin else lines

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: show the engine's traceback instead of the client's."""
        return self.render_traceback()

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the remote traceback. `excid` is there for `CompositeError`'s sake and ignored."""
        print("\n".join(self.render_traceback()))


class CompositeError(RemoteError, ExceptionGroup[RemoteError]):
    """The errors of several tasks. Also an `ExceptionGroup`: ``except*`` and `split` work.

    Attributes:
        msg: what the errors have in common.
        elist: one ``(ename, evalue, traceback, engine_info)`` per error.
        exceptions: the same as `RemoteError` objects.
        tb_limit: how many errors are shown; the rest is counted.
    """

    tb_limit: ClassVar[int] = 4

    def __new__(cls, msg: str, elist: Sequence[ErrorTuple | RemoteError]) -> Self:
        """Make the group.

        Raises:
            ValueError: if there is no error in `elist`.
        """
        return super().__new__(cls, msg, [_as_error(item) for item in elist])

    def __init__(self, msg: str, elist: Sequence[ErrorTuple | RemoteError]) -> None:
        super().__init__("CompositeError", msg)
        self.msg = msg
        self.args = (msg, self.elist)

    @property
    def elist(self) -> list[ErrorTuple]:
        """The errors as tuples."""
        return [(e.ename, e.evalue, e.traceback, e.engine_info) for e in self._errors]

    @property
    def _errors(self) -> tuple[RemoteError, ...]:
        # To the type checker a group may hold groups. Ours is always flat.
        return cast("tuple[RemoteError, ...]", self.exceptions)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.msg, list(self.exceptions)), self.__dict__

    # typeshed's signature lets a group be derived of anything; what `split` passes are some of
    # ours.
    def derive(self, excs: Sequence[Any]) -> CompositeError:  # type: ignore[override]
        """Return a group of some of the errors; what `split` and ``except*`` call."""
        return CompositeError(self.msg, excs)

    def __str__(self) -> str:
        kinds, hidden = self._kinds()
        lines = [str(kind) for kind in kinds]
        return "\n".join([self.msg, *lines, *_remainder(hidden)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.exceptions)})"

    def _kinds(self) -> tuple[list[ErrorKind], int]:
        """The first few kinds of errors, and how many errors are of other kinds."""
        kinds = group_alike(self._errors)
        shown = kinds[: self.tb_limit]
        return shown, len(self.exceptions) - sum(len(kind.errors) for kind in shown)

    def render_traceback(self, excid: int | None = None) -> list[str]:
        """Return the lines to show: of one error if `excid` is given, else of the first few.

        Errors that are alike are shown once, with the engines that had them.

        Raises:
            IndexError: if there is no error with this number.
        """
        if excid is not None:
            return self._error(excid).render_traceback()
        lines: list[str] = []
        kinds, hidden = self._kinds()
        for kind in kinds:
            error = kind.errors[0]
            if kind.origin:
                lines.append(f"{kind.origin}:{kind.times}")
            lines += error.traceback or [f"{error.ename}: {error.evalue}"]
            lines += notes_of(error)
            lines.append("")
        return lines + _remainder(hidden)

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the traceback of one error, or of the first few.

        Raises:
            IndexError: if there is no error with this number.
        """
        print("\n".join(self.render_traceback(excid)))

    def raise_exception(self, excid: int = 0) -> NoReturn:
        """Raise one of the errors.

        Raises:
            RemoteError: the error.
            IndexError: if there is no error with this number.
        """
        raise self._error(excid)

    def _error(self, excid: int) -> RemoteError:
        try:
            return self._errors[excid]
        except IndexError:
            count = len(self.exceptions)
            raise IndexError(f"no exception {excid}: there are {count}, counted from 0") from None


def _remainder(hidden: int) -> list[str]:
    return [f"... {hidden} more exceptions ..."] if hidden > 0 else []


class AlreadyDisplayedError(RemoteError):
    """Errors whose tracebacks the user has seen already, when output was streamed."""

    def __init__(self, original: RemoteError) -> None:
        super().__init__(original.ename, original.evalue, original.traceback, original.engine_info)
        self.original = original

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.original,), self.__dict__

    def __str__(self) -> str:
        original = self.original
        count = len(original.exceptions) if isinstance(original, CompositeError) else 1
        return "1 error" if count == 1 else f"{count} errors"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def render_traceback(self) -> list[str]:
        """Return just the number of errors."""
        return [str(self)]


def collect_exceptions(
    results_or_exceptions: Iterable[Any] | Mapping[Any, Any], method: str = "unspecified"
) -> list[Any]:
    """Return the results, or raise all the errors among them as one.

    Only errors of this module's classes count as errors: an exception object of any other class is
    a value that a task returned. Composite errors among the results are flattened.

    Args:
        results_or_exceptions: results and errors; of a mapping the values.
        method: the name of what failed, for the message.

    Raises:
        CompositeError: if there is an error among them.
    """
    if isinstance(results_or_exceptions, Mapping):
        results_or_exceptions = results_or_exceptions.values()
    results = list(results_or_exceptions)
    errors = [error for result in results for error in _errors_in(result)]
    if errors:
        raise CompositeError(f"one or more exceptions raised in: {method}", errors)
    return results


def _errors_in(result: Any) -> Iterator[RemoteError]:
    if isinstance(result, CompositeError):
        for error in result.exceptions:
            yield from _errors_in(error)
    elif isinstance(result, RemoteError):
        yield result
    elif isinstance(result, IPythonError):
        where = result.engine_info if isinstance(result, KernelError) else None
        cause = result.__cause__
        trace = cause.traceback if isinstance(cause, RemoteError) else []
        remote = RemoteError(type(result).__name__, str(result), trace, where)
        remote.__cause__ = result
        for note in notes_of(result):
            remote.add_note(note)
        yield remote


def _as_error(item: ErrorTuple | RemoteError) -> RemoteError:
    return item if isinstance(item, RemoteError) else RemoteError(*item)
