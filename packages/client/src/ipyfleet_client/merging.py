"""Engines that say the same, said once.

What lives here: how a set of engines is written, and errors and texts that are put together. What
must not: showing them.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipyfleet_protocol.errors import RemoteError
from ipyfleet_protocol.errors.alike import ErrorKind, group_alike, notes_of

NAMED_MAX = 4
"""Up to so many engines have a line each, also when they say the same."""


def describe_engines(engines: Iterable[int]) -> str:
    """Return ids as people write them: ``0-3,5``."""
    runs: list[list[int]] = []
    for engine in sorted(engines):
        if runs and engine == runs[-1][1] + 1:
            runs[-1][1] = engine
        else:
            runs.append([engine, engine])
    return ",".join(f"{a}" if a == b else f"{a}{',' if b == a + 1 else '-'}{b}" for a, b in runs)


class ErrorReport:
    """Turns errors into what is shown of them: each traceback once, the first few in full.

    Args:
        limit: how many different tracebacks are shown in full; of the others a line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shown: list[RemoteError] = []
        self._origins: list[str] = []

    def render(self, errors: Iterable[RemoteError]) -> list[str]:
        """Return one text for each group of errors that are alike."""
        kinds = group_alike([*self._shown, *errors])
        before = len(self._shown)
        texts = [self._render_again(kinds[place], place) for place in range(before)]
        return [text for text in texts if text] + [self._render(kind) for kind in kinds[before:]]

    def _render(self, kind: ErrorKind) -> str:
        first = kind.errors[0]
        if not first.traceback or len(self._shown) >= self._limit:
            return str(kind)
        self._shown.append(first)
        self._origins.append(kind.origin)
        return "\n".join([kind.origin, *first.traceback, *notes_of(first)])

    def _render_again(self, kind: ErrorKind, place: int) -> str:
        more = ErrorKind(kind.errors[1:])
        return f"{more} (traceback as of {self._origins[place]})" if more.errors else ""


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
