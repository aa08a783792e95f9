"""Where streamed output is shown: text for terminals, updating areas for notebooks.

What lives here: the `Screen` interface, its two kinds, and the choice between them. What must not:
waiting, tasks, the order of items (`streaming`).

In a terminal each run of text of one stream of one engine begins with its prefix. In a notebook
each stream of each engine has an area of its own, updated in place, so that engines that talk at
the same time do not make a flood of outputs. Areas are begun afresh when they have become long (an
update sends the whole area) and when the engine displays something, whose place is between what was
printed before and after.

A notebook cannot take back the outputs of one engine, but it can update them: when an engine clears
its output, the places that it had on the page are filled with what it says next, and what is left
of them is emptied.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any, Protocol

from ipyfleet_client.outputs import (
    ExecuteReply,
    collapse_returns,
    in_ipython,
    show_display,
    show_result,
)

UPDATE_S = 0.1
"""The least time between two updates of an area in a notebook."""

AREA_MAX_CHARS = 32_000
"""An area that has become longer is left as it is, and a new one begun below it."""

DisplayIds = dict[tuple[int | None, str], str]
"""From an engine and its id of a display to the id under which it is shown here."""


class Screen(Protocol):
    """Where a streamer shows things. All methods are called by the thread that waits."""

    def write(self, engine: int | None, stream: str, text: str) -> None:
        """Show text that an engine has written to "stdout" or "stderr"."""

    def print_whole(self, texts: list[tuple[int | None, str]]) -> None:
        """Show all that engines have written to "stdout" in a cell which has ended."""

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show the content of a ``display_data`` or ``update_display_data``."""

    def clear(self, engine: int | None, wait: bool) -> None:
        """Take back what the engine has shown; `wait`: when it shows something else."""

    def show_value(self, reply: ExecuteReply) -> None:
        """Show the value of an `execute`."""

    def show_error(self, text: str) -> None:
        """Show a traceback."""

    def refresh(self, now: float | None) -> float | None:
        """Show what was held back; None for all of it. Returns when to call again, or None."""


class TextScreen:
    """Prints: each run of text of one stream of one engine behind its prefix.

    Args:
        single: there is one engine, and no need for a prefix.
    """

    def __init__(self, single: bool) -> None:
        self._single = single
        self._last: tuple[int | None, str] | None = None
        self._in_line = False

    def write(self, engine: int | None, stream: str, text: str) -> None:
        """Print text, behind a prefix if other text was shown since the last of this stream."""
        file = sys.stdout if stream == "stdout" else sys.stderr
        if not self._single:
            prefix = f"[{stream}:{engine}] "
            goes_on = self._last == (engine, stream)
            text = self._redraw(text, prefix if goes_on and self._in_line else "")
            if not goes_on:
                self._end_line()
                file.write(prefix)
        file.write(text)
        file.flush()
        self._last = (engine, stream)
        self._in_line = not text.endswith("\n")

    def print_whole(self, texts: list[tuple[int | None, str]]) -> None:
        """Print texts, one after the other."""
        for engine, text in texts:
            self.write(engine, "stdout", text)

    def _redraw(self, text: str, prefix: str) -> str:
        """Apply the carriage returns, which must not overwrite the prefix of their line."""
        if "\r" not in text:
            return text
        line, newline, rest = text.replace("\r\n", "\n").partition("\n")
        _, returns, last = line.rstrip("\r").rpartition("\r")
        if returns and prefix:
            last = f"\r{prefix}{last}"
        return last + newline + collapse_returns(rest)

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show something that was displayed; an update of it cannot be shown in a terminal."""
        if kind == "update_display_data":
            return
        self._begin()
        if not self._single:
            print(f"[output:{engine}]")
        show_display(content)

    def clear(self, engine: int | None, wait: bool) -> None:
        """Nothing: what a terminal has shown stays."""

    def show_value(self, reply: ExecuteReply) -> None:
        """Show the value of an `execute`."""
        self._begin()
        show_result(reply)

    def show_error(self, text: str) -> None:
        """Print a traceback to stderr."""
        self._begin()
        print(text, file=sys.stderr, flush=True)

    def refresh(self, now: float | None) -> float | None:
        """Nothing is held back; at the very end, end the line."""
        if now is None and not self._single:
            self._begin()
        return None

    def _begin(self) -> None:
        self._end_line()
        self._last = None

    def _end_line(self) -> None:
        if self._in_line and self._last is not None:
            (sys.stdout if self._last[1] == "stdout" else sys.stderr).write("\n")
        self._in_line = False


def _publish(*args: Any, **kwargs: Any) -> None:
    from IPython.display import publish_display_data

    publisher: Any = publish_display_data
    publisher(*args, **kwargs)


class Place:
    """A place on the page whose content can be changed."""

    def __init__(self) -> None:
        self.display_id = uuid.uuid4().hex
        self._is_on_page = False

    def show(self, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Put something into the place; the first time the place comes to the end of the page."""
        update, self._is_on_page = self._is_on_page, True
        transient = {"display_id": self.display_id}
        _publish(data, metadata or {}, transient=transient, update=update)

    def empty(self) -> None:
        """Take away what is in the place, if it is on the page."""
        if self._is_on_page:
            self.show({"text/plain": ""})


class Area:
    """The text of one stream of one engine in a notebook, updated in place.

    Args:
        prefix: stands before the text.
        place: where it is shown.
    """

    def __init__(self, prefix: str, place: Place) -> None:
        self._prefix = prefix
        self._place = place
        self._done = ""
        self._line = ""
        self._due_at: float | None = None
        self._shown_at = 0.0

    def add(self, text: str) -> None:
        """Add text; it is shown by the next `refresh` that is due."""
        done, newline, line = (self._line + text).rpartition("\n")
        self._done += collapse_returns(done + newline)
        # Of a line that is drawn over and over only the last drawing matters.
        cut = line.rstrip("\r").rfind("\r")
        self._line = line[cut + 1 :] if cut >= 0 else line
        if self._due_at is None:
            self._due_at = self._shown_at + UPDATE_S

    @property
    def due_at(self) -> float | None:
        """When it is to be shown again, or None if nothing was added."""
        return self._due_at

    @property
    def is_long(self) -> bool:
        """Whether a new area should be begun."""
        return len(self._done) > AREA_MAX_CHARS

    def end(self) -> str:
        """Show it a last time, without the line that has only begun; return that."""
        begun, self._line = self._line, ""
        self.show()
        return begun

    def show(self) -> None:
        """Show the area, or what was added to it since."""
        text = f"{self._prefix} {(self._done + self._line.rstrip(chr(13))).removesuffix(chr(10))}"
        self._place.show({"text/plain": text})
        self._due_at = None
        self._shown_at = time.monotonic()


class Places:
    """The places that one engine has in the output of a cell."""

    def __init__(self) -> None:
        self._used: list[Place] = []
        self._free: list[Place] = []
        self._clear_next = False

    def take(self) -> Place:
        """Return the first place that is free, or a new one."""
        place = self._free.pop(0) if self._free else Place()
        self._used.append(place)
        return place

    def clear_later(self) -> None:
        """Clear when the engine shows something again."""
        self._clear_next = True

    def clear_if_due(self) -> bool:
        """Clear if that was asked for; return whether it was."""
        due = self._clear_next
        if due:
            self.clear()
        return due

    def clear(self) -> None:
        """Make all places free again, in their order on the page."""
        self._clear_next = False
        self._free = self._used + self._free
        self._used = []

    def empty_free(self) -> None:
        """Empty the places that are free, for good."""
        for place in self._free:
            place.empty()
        self._free.clear()


class NotebookScreen:
    """Shows in a notebook: an area for each stream of each engine, and what they display.

    Args:
        single: there is one engine: no need for prefixes and areas.
        display_ids: of what engines have displayed in earlier cells; filled.
    """

    def __init__(self, single: bool = False, display_ids: DisplayIds | None = None) -> None:
        self._single = single
        self._areas: dict[tuple[int | None, str], Area] = {}
        self._places: dict[int | None, Places] = {}
        self._display_ids = {} if display_ids is None else display_ids

    def write(self, engine: int | None, stream: str, text: str) -> None:
        """Add text to the area of its stream; it is shown by the next `refresh`."""
        if self._single:
            file = sys.stdout if stream == "stdout" else sys.stderr
            file.write(text)
            file.flush()
            return
        places = self._places_of(engine)
        if places.clear_if_due():
            self._forget_areas(engine)
        key = (engine, stream)
        area = self._areas.get(key)
        if area is None or area.is_long:
            begun = area.end() if area is not None else ""
            area = self._areas[key] = Area(f"[{stream}:{engine}]", places.take())
            area.add(begun)
        area.add(text)

    def print_whole(self, texts: list[tuple[int | None, str]]) -> None:
        """Print texts as the notebook's own: an area that is never updated costs a lot more."""
        parts = []
        for engine, text in texts:
            if self._single:
                parts.append(text)
            else:
                shown = collapse_returns(text)
                end = "" if shown.endswith("\n") else "\n"
                parts.append(f"[stdout:{engine}] {shown}{end}")
        sys.stdout.write("".join(parts))

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show something that was displayed, below what the engine has printed so far."""
        remote_id = content.get("transient", {}).get("display_id")
        key = (engine, str(remote_id))
        data, metadata = content.get("data", {}), content.get("metadata", {})
        if kind == "update_display_data":
            if key in self._display_ids:
                transient = {"display_id": self._display_ids[key]}
                _publish(data, metadata, transient=transient, update=True)
            return
        places = self._places_of(engine)
        if places.clear_if_due():
            self._forget_areas(engine)
        if not self._single:
            # All areas are shown now, so that the order on the page is that of the arrivals.
            self._show_areas(None)
            self._forget_areas(engine)
            places.take().show({"text/plain": f"[output:{engine}]"})
        place = places.take()
        if remote_id:
            self._display_ids[key] = place.display_id
        place.show(data, metadata)

    def clear(self, engine: int | None, wait: bool) -> None:
        """Take back what the engine has shown in this cell; `wait`: when it shows something."""
        if self._single:
            from IPython.display import clear_output

            clear_output(wait=wait)  # type: ignore[no-untyped-call]
            return
        if wait:
            # What it said before is on the page until then.
            self._show_areas(None)
            self._places_of(engine).clear_later()
        else:
            self._places_of(engine).clear()
            self._forget_areas(engine)

    def show_value(self, reply: ExecuteReply) -> None:
        """Show the value of an `execute`."""
        self.refresh(None)
        show_result(reply)

    def show_error(self, text: str) -> None:
        """Show a traceback, with its colours."""
        self.refresh(None)
        _publish({"text/plain": text})

    def refresh(self, now: float | None) -> float | None:
        """Show the areas that are due; None for all that have something new.

        Returns:
            When the next one is due.
        """
        due_at = self._show_areas(now)
        for places in self._places.values():
            places.empty_free()
        return due_at

    def _show_areas(self, now: float | None) -> float | None:
        due = [area for area in self._areas.values() if area.due_at is not None]
        for area in due:
            if now is None or (area.due_at is not None and area.due_at <= now):
                area.show()
        return min((area.due_at for area in due if area.due_at is not None), default=None)

    def _places_of(self, engine: int | None) -> Places:
        return self._places.setdefault(engine, Places())

    def _forget_areas(self, engine: int | None) -> None:
        for key in [key for key in self._areas if key[0] == engine]:
            del self._areas[key]


def make_screen(single: bool, display_ids: DisplayIds | None = None) -> Screen:
    """Return the screen for where this process runs."""
    return NotebookScreen(single, display_ids) if in_kernel() else TextScreen(single)


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel, whose frontend can update what it shows."""
    if not in_ipython():
        return False
    return getattr(sys.modules["IPython"].get_ipython(), "kernel", None) is not None
