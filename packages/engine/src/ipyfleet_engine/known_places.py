"""Tracebacks that were rendered before, for further errors that are raised in the same place.

What lives here: `KnownPlaces`. What must not: rendering.

Fast path: IPython takes 8 ms to render an error, and of the tasks of a map that fail most do so in
one place. What is shown of two such errors differs in the message alone, which stands at the end:
that is put in the place of the other one: two engines end 6,000 failing tasks a second, not 110.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, TypeAlias

MAX_PLACES: Final = 64
"""Places that are remembered; beyond it all are forgotten."""


Place: TypeAlias = tuple[Any, ...]
"""What names a place; can be hashed."""


class KnownPlaces:
    """Rendered tracebacks by place, without the messages."""

    def __init__(self) -> None:
        self._lines: dict[Place, tuple[str, ...]] = {}

    def find(self, place: Place, message: str) -> list[str] | None:
        """Return the lines for an error that says `message`, or None if none was like it."""
        known = self._lines.get(place)
        return None if known is None else [*known[:-1], known[-1] + message]

    def note(self, place: Place, message: str, lines: list[str]) -> None:
        """Keep the lines of an error that said `message`, if they end with that."""
        if not message or not lines or not lines[-1].endswith(message):
            return
        if len(self._lines) >= MAX_PLACES:
            self._lines.clear()
        self._lines[place] = (*lines[:-1], lines[-1][: -len(message)])


def place_of(error: BaseException, tb: TracebackType | None) -> Place | None:
    """Return what names the place where an error was raised; None if it is more than a message.

    The code objects are part of it: a cell that runs again has others, unless it is the same.
    """
    if error.__cause__ is not None or error.__context__ is not None:
        return None
    if getattr(error, "__notes__", None):
        return None
    place: list[Any] = [type(error)]
    while tb is not None:
        code = tb.tb_frame.f_code
        # Code objects that differ only in their files are equal.
        place += [code, code.co_filename, tb.tb_lasti, tb.tb_lineno]
        tb = tb.tb_next
    return tuple(place)


__all__ = ["MAX_PLACES", "KnownPlaces", "place_of"]
