"""Engines that say the same, said once.

What lives here: how a set of engines is written, and errors and texts that are put together. What
must not: showing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

NAMED_MAX = 4
"""Up to so many engines are named one by one, and have a line each."""


def describe_engines(engines: Iterable[int]) -> str:
    """Return ids as people write them: ``0-3,5``."""
    runs: list[list[int]] = []
    for engine in sorted(engines):
        if runs and engine == runs[-1][1] + 1:
            runs[-1][1] = engine
        else:
            runs.append([engine, engine])
    return ",".join(f"{a}" if a == b else f"{a}{',' if b == a + 1 else '-'}{b}" for a, b in runs)


def head_of_error(engines: Sequence[int | None], method: str = "execute") -> str:
    """Return what stands above a traceback: ``[0:execute] [1:execute]``, or ``[0-15:execute]``."""
    known = [engine for engine in engines if engine is not None]
    if len(engines) <= NAMED_MAX or len(known) < len(engines):
        return " ".join(f"[{engine}:{method}]" for engine in engines)
    return f"[{describe_engines(known)}:{method}]"


class Failure(NamedTuple):
    """An error as one engine has told it; `traceback` may be empty."""

    engine: int | None
    ename: str
    evalue: str
    traceback: tuple[str, ...]
    method: str = "execute"


class ErrorReport:
    """Turns errors into what is shown of them: each traceback once, the first few in full.

    Args:
        limit: how many different tracebacks are shown in full; of the others a line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shown: dict[tuple[str, ...], str] = {}

    def render(self, errors: Iterable[Failure]) -> list[str]:
        """Return one text for each group of errors that are the same but for the engine."""
        groups: dict[tuple[str, ...], list[Failure]] = {}
        for error in errors:
            kind = (error.method, error.ename, error.evalue, *error.traceback)
            groups.setdefault(kind, []).append(error)
        return [self._render_group(kind, group) for kind, group in groups.items()]

    def _render_group(self, kind: tuple[str, ...], group: list[Failure]) -> str:
        first = group[0]
        head = head_of_error([error.engine for error in group], first.method)
        line = f"{head} {first.ename}: {first.evalue}"
        if not first.traceback:
            return line
        if kind in self._shown:
            return f"{line} (traceback as of {self._shown[kind]})"
        if len(self._shown) >= self._limit:
            return line
        self._shown[kind] = head
        return "\n".join([head, *first.traceback])


def merge_texts(texts: Iterable[tuple[int | None, str]]) -> list[tuple[str, str]]:
    """Put together the texts that more than `NAMED_MAX` engines share.

    Args:
        texts: engine and text; without empty ones.

    Returns:
        Engines as shown and text, each group in the place of its first engine.
    """
    groups: dict[str, list[tuple[int, int | None]]] = {}
    for place, (engine, text) in enumerate(texts):
        groups.setdefault(text, []).append((place, engine))
    merged: list[tuple[int, str, str]] = []
    for text, members in groups.items():
        known = [engine for _, engine in members if engine is not None]
        if len(known) > NAMED_MAX and len(known) == len(members):
            merged.append((members[0][0], describe_engines(known), text))
        else:
            merged += [(place, str(engine), text) for place, engine in members]
    return [(shown, text) for _, shown, text in sorted(merged)]
