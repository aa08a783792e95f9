"""Showing the output of a result while it runs.

What lives here: `OutputStreamer`, which waits and decides what is shown when, and the two screens
that show it: text for terminals, updating areas for notebooks. What must not: sockets, how items
    are put in order (`outputs`).

Theory of operation
-------------------
Items are shown by the thread that waits. What arrives within `GATHER_S` is one batch and is shown
in the order of the engines, whichever was first; the batch is shown at once when the wait is over.
Within a batch values and
errors come last: they are the last thing that a task says, so no task's own order changes.

In a terminal each run of text of one stream of one engine begins with its prefix. In a notebook
each stream of each engine has an area of its own, updated in place, so that engines that talk at
the same time do not make a flood of outputs. Areas are begun afresh when they have become long (an
update sends the whole area) and when the engine displays something, whose place is between what was
printed before and after.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ipyfleet_client.metadata import metadata_of
from ipyfleet_client.outputs import (
    ExecuteReply,
    TaskOutput,
    collapse_returns,
    in_ipython,
    show_display,
    show_result,
)
from ipyfleet_client.pending import PENDING
from ipyfleet_protocol.errors import CompositeError
from ipyfleet_protocol.messages import OK

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session

GATHER_S = 0.03
"""How long the output of one engine waits for that of the others."""

UPDATE_S = 0.1
"""The least time between two updates of an area in a notebook."""

AREA_MAX_CHARS = 32_000
"""An area that has become longer is left as it is, and a new one begun below it."""

LAST_OUTPUT_S = 1.0
"""How long output may lag behind the last result."""

_RANKS = {"execute_result": 1, "error": 2}


class Screen(Protocol):
    """Where a streamer shows things. All methods are called by the thread that waits."""

    def write(self, engine: int | None, stream: str, text: str) -> None:
        """Show text that an engine has written to "stdout" or "stderr"."""

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show the content of a ``display_data`` or ``update_display_data``."""

    def show_value(self, reply: ExecuteReply) -> None:
        """Show the value of an `execute`."""

    def show_error(self, text: str) -> None:
        """Show a traceback."""

    def refresh(self, now: float | None) -> float | None:
        """Show what was held back; None for all of it. Returns when to call again, or None."""


class OutputStreamer:
    """Shows the output of a result in the thread that waits for it.

    The receiving thread only notes which tasks have news.
    """

    def __init__(self, session: Session, work: Work, single: bool) -> None:
        self._session = session
        self._work = work
        self._screen = make_screen(single)
        self._shown: dict[int, int] = {}
        self._failed: set[int] = set()
        self.news: deque[int] = deque(work.outputs or ())

    def note(self, index: int, output: TaskOutput) -> None:
        """Sink of `Work.sinks`: a task has new output."""
        self.news.append(index)

    def wait(self, predicate: Callable[[], object], timeout_s: float | None) -> bool:
        """Wait until the predicate is true, showing output meanwhile; return whether it is.

        Args:
            predicate: what is waited for.
            timeout_s: seconds; None or negative for no limit.
        """
        session = self._session
        deadline = None
        if timeout_s is not None and timeout_s >= 0:
            deadline = time.monotonic() + timeout_s
        while True:
            refresh_at = self._screen.refresh(time.monotonic())
            until = min((t for t in (deadline, refresh_at) if t is not None), default=None)
            left = None if until is None else max(0.0, until - time.monotonic())
            if session.wait_until(lambda: predicate() or self.news, left) and not predicate():
                gather_s = GATHER_S
                if deadline is not None:
                    gather_s = min(gather_s, max(0.0, deadline - time.monotonic()))
                session.wait_until(predicate, gather_s)
            if predicate():
                self.finish()
                return True
            self.flush()
            if deadline is not None and time.monotonic() >= deadline:
                self._screen.refresh(None)
                return False

    def flush(self) -> None:
        """Show what has arrived and was not shown yet."""
        indices = set()
        while self.news:
            indices.add(self.news.popleft())
        batch = []
        for index in indices:
            output = (self._work.outputs or {}).get(index)
            items = output.items if output is not None else []
            for position in range(self._shown.get(index, 0), len(items)):
                kind, content = items[position]
                batch.append((_RANKS.get(kind, 0), index, position, kind, content))
            self._shown[index] = len(items)
        for _, index, _, kind, content in sorted(batch, key=lambda entry: entry[:3]):
            self._show(index, kind, content)

    def finish(self) -> None:
        """Show all that is there; when the work is done, wait a moment for what lags behind it."""
        work = self._work
        if work.done and work.uncounted_outputs:
            self._session.wait_until(lambda: not work.uncounted_outputs, LAST_OUTPUT_S)
        self.flush()
        for index, status in enumerate(work.status if work.failures else ()):
            if status not in (OK, PENDING) and index not in self._failed:
                self._show_failure(index)
        self._screen.refresh(None)

    def _show(self, index: int, kind: str, content: Any) -> None:
        engine = self._work.engine(index)
        if kind in ("stdout", "stderr"):
            self._screen.write(engine, kind, content)
        elif kind in ("display_data", "update_display_data"):
            self._screen.display(engine, kind, content)
        elif kind == "execute_result":
            metadata = metadata_of(self._session, self._work, index)
            reply = ExecuteReply(int(content.get("execution_count") or 0), metadata)
            self._screen.show_value(reply)
        elif kind == "error":
            self._show_error(index, engine, content)

    def _show_failure(self, index: int) -> None:
        """Show the error of a task that published none itself: its engine died, or it never ran."""
        place = self._work.locate(index)
        if place is None:
            return
        segment, position = place
        info = segment.error(position)
        engine = info.engine_id if info.engine_id >= 0 else self._work.engine(index)
        content = {"ename": info.ename, "evalue": info.evalue, "traceback": info.traceback}
        self._show_error(index, engine, content)

    def _show_error(self, index: int, engine: int | None, content: dict[str, Any]) -> None:
        self._failed.add(index)
        head = f"[{engine}:execute]"
        if len(self._failed) > CompositeError.tb_limit or not content.get("traceback"):
            self._screen.show_error(f"{head} {content.get('ename')}: {content.get('evalue')}")
        else:
            self._screen.show_error("\n".join([head, *content["traceback"]]))


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
        if not self._single and self._last != (engine, stream):
            self._end_line()
            file.write(f"[{stream}:{engine}] ")
        file.write(text)
        file.flush()
        self._last = (engine, stream)
        self._in_line = not text.endswith("\n")

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show something that was displayed; an update of it cannot be shown in a terminal."""
        if kind == "update_display_data":
            return
        self._begin()
        if not self._single:
            print(f"[output:{engine}]")
        show_display(content)

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
            self._end_line()
            self._last = None
        return None

    def _begin(self) -> None:
        self._end_line()
        self._last = None

    def _end_line(self) -> None:
        if self._in_line and self._last is not None:
            (sys.stdout if self._last[1] == "stdout" else sys.stderr).write("\n")
        self._in_line = False


class Area:
    """The text of one stream of one engine in a notebook, updated in place."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._id: str | None = None
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
        self._line = line[cut + 1 :] if cut > 0 else line
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
        is_new = self._id is None
        if self._id is None:
            self._id = uuid.uuid4().hex
        _publish({"text/plain": text}, transient={"display_id": self._id}, update=not is_new)
        self._due_at = None
        self._shown_at = time.monotonic()


def _publish(*args: Any, **kwargs: Any) -> None:
    from IPython.display import publish_display_data

    publisher: Any = publish_display_data
    publisher(*args, **kwargs)


class NotebookScreen:
    """Shows in a notebook: an area for each stream of each engine, and what they display."""

    def __init__(self) -> None:
        self._areas: dict[tuple[int | None, str], Area] = {}
        self._display_ids: dict[tuple[int | None, str], str] = {}

    def write(self, engine: int | None, stream: str, text: str) -> None:
        """Add text to the area of its stream; it is shown by the next `refresh`."""
        key = (engine, stream)
        area = self._areas.get(key)
        if area is None or area.is_long:
            begun = area.end() if area is not None else ""
            area = self._areas[key] = Area(f"[{stream}:{engine}]")
            area.add(begun)
        area.add(text)

    def display(self, engine: int | None, kind: str, content: dict[str, Any]) -> None:
        """Show something that was displayed, below what the engine has printed so far."""
        remote_id = content.get("transient", {}).get("display_id")
        key = (engine, str(remote_id))
        is_update = kind == "update_display_data"
        if is_update and key not in self._display_ids:
            return
        transient = {}
        if remote_id:
            transient["display_id"] = self._display_ids.setdefault(key, uuid.uuid4().hex)
        if not is_update:
            self._close_areas(engine)
            _publish({"text/plain": f"[output:{engine}]"})
        _publish(
            content.get("data", {}),
            content.get("metadata", {}),
            transient=transient,
            update=is_update,
        )

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
        due = [area for area in self._areas.values() if area.due_at is not None]
        for area in due:
            if now is None or (area.due_at is not None and area.due_at <= now):
                area.show()
        return min((area.due_at for area in due if area.due_at is not None), default=None)

    def _close_areas(self, engine: int | None) -> None:
        # All of them are shown now, so that the order on the page is that of the arrivals.
        self.refresh(None)
        for key in [key for key in self._areas if key[0] == engine]:
            del self._areas[key]


def make_screen(single: bool) -> Screen:
    """Return the screen for where this process runs."""
    if not single and in_kernel():
        return NotebookScreen()
    return TextScreen(single)


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel, whose frontend can update what it shows."""
    if not in_ipython():
        return False
    return getattr(sys.modules["IPython"].get_ipython(), "kernel", None) is not None
