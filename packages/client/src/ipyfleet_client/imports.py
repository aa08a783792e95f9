"""Importing here and on the engines.

What lives here: `SyncImports`, the context manager behind ``view.sync_imports()``.

Theory of operation: the block's imports run here as always; nothing is hooked. When the block
    ends, the
import statements between its beginning and its end are read from the compiled code of the
frame it is in, which also tells what comes after ``as``, and those that have bound their name are
run on the engines.
"""

from __future__ import annotations

import dis
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ipyfleet_protocol.namespace import import_names

if TYPE_CHECKING:
    from ipyfleet_client.views.direct import DirectView


class ImportStatement(NamedTuple):
    """One import as the compiler left it.

    Attributes:
        module: what is imported, or imported from.
        names: ``(name, as)`` of what is imported from it; empty for ``import module``.
        bound: the name that ``import module`` binds.
    """

    module: str
    names: tuple[tuple[str, str], ...]
    bound: str

    @property
    def binds(self) -> list[str]:
        """The names that it binds."""
        return [alias for _, alias in self.names if alias != "*"] if self.names else [self.bound]

    @property
    def code(self) -> str:
        """The statement."""
        if self.names:
            return f"from {self.module} import {', '.join(_named(*n) for n in self.names)}"
        return f"import {self._module}"

    @property
    def _module(self) -> str:
        if self.bound == self.module.partition(".")[0]:
            return self.module
        return f"{self.module} as {self.bound}"

    def __str__(self) -> str:
        if self.names:
            return f"{','.join(_named(*n) for n in self.names)} from {self.module}"
        return self._module


def _named(name: str, alias: str) -> str:
    return name if alias in (name, "*") else f"{name} as {alias}"


def find_imports(frame: FrameType, start: int, end: int) -> list[ImportStatement]:
    """Return the absolute imports between two offsets of a frame's code, in their order."""
    body = [i for i in dis.get_instructions(frame.f_code) if i.opname not in _NOISE]
    found: list[ImportStatement] = []
    for place, instruction in enumerate(body):
        if instruction.opname != "IMPORT_NAME" or not start < instruction.offset < end:
            continue
        level, names = body[place - 2].argval, body[place - 1].argval
        if level:
            continue
        module = instruction.argval
        rest = body[place + 1 :]
        if names:
            found.append(ImportStatement(module, _aliases(names, rest), ""))
        else:
            # ``import a.b as c`` is followed by IMPORT_FROM b; the store is what matters.
            bound = next(i.argval for i in rest if i.opname.startswith("STORE_"))
            found.append(ImportStatement(module, (), bound))
    return found


def _aliases(names: tuple[str, ...], rest: list[dis.Instruction]) -> tuple[tuple[str, str], ...]:
    if names == ("*",):
        return (("*", "*"),)
    stores = [i.argval for i in rest if i.opname.startswith("STORE_")]
    return tuple(zip(names, stores[: len(names)], strict=True))


_NOISE = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME"})


class SyncImports:
    """Runs on the engines of a view the imports of the block that it manages.

    Example:
        >>> with SyncImports(view):  # doctest: +SKIP
        ...     import numpy as np
        importing numpy as np on engine(s)
    """

    def __init__(self, view: DirectView, *, quiet: bool = False) -> None:
        self._view = view
        self._quiet = quiet
        self._started: list[tuple[FrameType, int]] = []

    def __enter__(self) -> DirectView:
        frame = sys._getframe(1)
        self._started.append((frame, frame.f_lasti))
        return self._view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        frame, start = self._started.pop()
        if kind is not None:
            return
        names: dict[str, Any] = {**frame.f_globals, **frame.f_locals}
        for statement in find_imports(frame, start, frame.f_lasti):
            if not all(name in names for name in statement.binds):
                # In a branch that was not taken.
                continue
            if not self._quiet:
                print(f"importing {statement} on engine(s)")
            self._view.apply_sync(import_names, statement.code)
