"""Errors that are alike, shown as one.

What lives here: what makes two errors alike, and the short form of a list of engines. What must
not: the errors themselves (`remote`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .kinds import RemoteInfo

if TYPE_CHECKING:
    from .remote import RemoteError

# What differs between engines in a traceback of the same error: colours, addresses, the process id
# in a cell's file name, the cell's number.
_VARYING = re.compile(
    r"\x1b\[[0-9;]*m|0x[0-9a-f]+|ipykernel_\d+|In ?\[\d+\]|ipython-input-\d+-[0-9a-f]*"
)

# Where a frame of a traceback is: as Python writes it, as IPython does.
_PLACE = re.compile(r'File "([^"\n]+)", line (\d+)|File (\S+?):(\d+)')


class ErrorKind(NamedTuple):
    """Errors that are alike, in their order."""

    errors: list[RemoteError]

    @property
    def origin(self) -> str:
        """Where they happened: ``[0-15:apply]``; empty if it is not known."""
        return origin_of([error.engine_info for error in self.errors if error.engine_info])

    @property
    def times(self) -> str:
        """How often, if that is more than the engines say."""
        engines = {(error.engine_info or {}).get("engine_id") for error in self.errors}
        return f" ({len(self.errors)} times)" if len(self.errors) > len(engines) else ""

    def __str__(self) -> str:
        error, origin = self.errors[0], self.origin
        prefix = f"{origin} " if origin else ""
        return f"{prefix}{error.ename}: {error.evalue}{self.times}"


def group_alike(errors: Iterable[RemoteError]) -> list[ErrorKind]:
    """Return the errors by kind, in the order of the first of each.

    Alike are errors of one class with one text that were raised in one line; where tracebacks do
    not tell the line, those with one traceback, but for what varies between engines. (An engine
    with many errors at a time renders some in IPython's manner and some in Python's.)
    """
    kinds: dict[tuple[str, str, str, str], ErrorKind] = {}
    for error in errors:
        method = str((error.engine_info or {}).get("method", ""))
        trace = _VARYING.sub("", "\n".join(error.traceback))
        places = [":".join(filter(None, place)) for place in _PLACE.findall(trace)]
        key = (error.ename, error.evalue, method, places[-1] if places else trace)
        kinds.setdefault(key, ErrorKind([])).errors.append(error)
    return list(kinds.values())


def origin_of(infos: Sequence[RemoteInfo]) -> str:
    """Return ``[0-3,7:apply]`` for where errors happened, or an empty string for no places."""
    if not infos:
        return ""
    engines = [info.get("engine_id", "?") for info in infos]
    numbers = sorted({engine for engine in engines if isinstance(engine, int)})
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in _runs(numbers)]
    parts += ["?"] if len(numbers) < len(set(engines)) else []
    return f"[{','.join(parts)}:{infos[0].get('method', '?')}]"


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error (PEP 678)."""
    return [str(note) for note in getattr(error, "__notes__", ())]


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
