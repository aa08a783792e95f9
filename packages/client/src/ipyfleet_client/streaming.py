"""Showing the output of a result while it runs.

What lives here: `OutputStreamer`, which waits and decides what is shown when. What must not:
sockets, how items are put in order (`outputs`), how they look (`screens`).

Theory of operation
-------------------
Items are shown by the thread that waits. What arrives within `GATHER_S` is one batch and is shown
in the order of the engines, whichever was first; the batch is shown at once when the wait is over.
The first batch may take longer, since engines need different times to get going. A batch ends only
in a moment of silence, `QUIET_S`: what arrives closer together than that is in one batch. Engines
that never are silent for so long have theirs cut after `GATHER_MAX_S`.
Values and errors are the last that a task says, or nearly so: while other engines are at work they
wait a little longer than text, `VALUES_S` and `ERRORS_S`. A value is not shown before its task has
ended, since a kernel publishes plots after it. Of tracebacks that are the same only one is shown.

What threads of the tasks, and handlers of their widgets, print when the wait is over can be
followed (`follow`): it is shown by the receiving thread, in the context of the thread that waited,
which is how a Jupyter kernel knows what belongs to which cell.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ipyfleet_client.hints import add_hint
from ipyfleet_client.merging import ErrorReport
from ipyfleet_client.metadata import metadata_of
from ipyfleet_client.outputs import ExecuteReply, TaskOutput
from ipyfleet_client.pending import PENDING
from ipyfleet_client.screens import DisplayIds, make_screen
from ipyfleet_protocol.errors import CompositeError, RemoteError, RemoteInfo
from ipyfleet_protocol.messages import OK

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session

logger = logging.getLogger("ipyfleet.client")

GATHER_S = 0.02
"""How long the output of one engine waits for that of the others, before silence is waited for."""

GATHER_MAX_S = 0.1
"""How long silence is waited for."""

QUIET_S = 0.01
"""How long nothing must have arrived before what has is shown."""

GATHER_FIRST_S = 0.1
"""The same for the first output of all: unless all engines have said something."""

WHOLE_CHARS = 32_000
"""Text of tasks that have ended is printed as it is up to here; it needs no area to update."""

_PLAIN = frozenset({"stdout", "execute_result", "error"})

_Entry: TypeAlias = tuple[int, int, str, Any]
"""Task, position in its output, kind, content."""

ERRORS_S = 0.3
"""How long an error waits for those of the other engines."""

VALUES_S = 1.0
"""How long a value waits for those of the other engines, and at least for the end of its task."""

LAST_OUTPUT_S = 1.0
"""How long output may lag behind the last result."""

_display_ids: weakref.WeakKeyDictionary[Any, DisplayIds] = weakref.WeakKeyDictionary()
"""Of each session: what engines have displayed, which later cells may update."""


class OutputStreamer:
    """Shows the output of a result in the thread that waits for it.

    The receiving thread only notes which tasks have news.
    """

    def __init__(self, session: Session, work: Work, single: bool) -> None:
        self._session = session
        self._work = work
        self._screen = make_screen(single, _display_ids.setdefault(session, {}))
        self._shown: dict[int, int] = {}
        self._has_begun = False
        self._failed: set[int] = set()
        self._values: list[tuple[int, ExecuteReply]] = []
        self._failures: list[tuple[int, RemoteError]] = []
        self._endings_due_at: float | None = None
        self._report = ErrorReport(CompositeError.tb_limit)
        self._context = contextvars.copy_context()
        self._follows = False
        self._following = threading.Lock()
        self.news: deque[int] = deque(work.outputs or ())
        self.around: Callable[[Callable[[], None]], None] | None = None
        """Called with what shows a batch; a progress bar makes room there."""

    def note(self, index: int, output: TaskOutput) -> None:
        """Sink of `Work.sinks`: a task has new output."""
        self.news.append(index)
        if self._follows:
            try:
                # A copy: the context may be entered already, since threads that wait receive, too.
                self._context.copy().run(self._show_late)
            except Exception:
                logger.exception("late output cannot be shown")

    def follow(self) -> None:
        """Show from now on, as it arrives, what comes after the end."""
        self._follows = True
        self._show_late()

    def _show_late(self) -> None:
        with self._following:
            if self.news:
                self.flush()
                self._show_endings(all_of_them=True)
                self._screen.refresh(None)

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
            times = (deadline, refresh_at, self._endings_due_at)
            until = min((t for t in times if t is not None), default=None)
            left = None if until is None else max(0.0, until - time.monotonic())
            if session.wait_until(lambda: predicate() or self.news, left) and not predicate():
                self._gather(predicate)
            if predicate():
                self.finish()
                return True
            self.flush()
            if deadline is not None and time.monotonic() >= deadline:
                self._screen.refresh(time.monotonic())
                return False

    def _gather(self, predicate: Callable[[], object]) -> None:
        """Give the other engines a moment after the first has said something.

        It may outlast the wait's timeout a little: a wait in short pieces should gather, too.
        """
        first, total = not self._has_begun, self._work.total
        self._session.wait_until(
            lambda: predicate() or (first and len(set(self.news)) >= total),
            GATHER_FIRST_S if first else GATHER_S,
        )
        end = time.monotonic() + GATHER_MAX_S
        count = -1
        # The end of a short task is right behind its output, too.
        while not predicate() and count < len(self.news) and time.monotonic() < end:
            count = len(self.news)
            self._session.wait_until(predicate, QUIET_S)

    def flush(self) -> None:
        """Show what has arrived and was not shown yet."""
        indices = set()
        while self.news:
            indices.add(self.news.popleft())
        batch: list[_Entry] = []
        for index in indices:
            output = (self._work.outputs or {}).get(index)
            items = output.items if output is not None else []
            # Once: the thread that receives may be adding to them.
            count = len(items)
            for position in range(self._shown.get(index, 0), count):
                kind, content = items[position]
                batch.append((index, position, kind, content))
            self._shown[index] = count
        batch.sort(key=lambda entry: entry[:2])
        due_at = self._endings_due_at
        if not batch and (due_at is None or time.monotonic() < due_at):
            return

        def show() -> None:
            rest = self._print_whole(batch) if self._is_whole(batch) else batch
            for index, _, kind, content in rest:
                self._show(index, kind, content)
            if self._endings_due_at is not None and time.monotonic() >= self._endings_due_at:
                self._show_endings()

        if self.around is not None:
            self.around(show)
        else:
            show()

    def _is_whole(self, batch: list[_Entry]) -> bool:
        """Whether a batch is all that there is, a few lines of text and how it ended."""
        work = self._work
        if self._has_begun or self._follows or not work.done or work.uncounted_outputs:
            return False
        texts = [content for _, _, kind, content in batch if kind == "stdout"]
        return all(kind in _PLAIN for _, _, kind, _ in batch) and sum(map(len, texts)) < WHOLE_CHARS

    def _print_whole(self, batch: list[_Entry]) -> list[_Entry]:
        """Print the text of a batch; return the rest of it."""
        texts: dict[int, str] = {}
        for index, _, kind, content in batch:
            if kind == "stdout":
                texts[index] = texts.get(index, "") + content
        if texts:
            self._has_begun = True
            self._screen.print_whole([(self._work.engine(i), text) for i, text in texts.items()])
        return [entry for entry in batch if entry[2] != "stdout"]

    def finish(self) -> None:
        """Show all that is there; when the work is done, wait a moment for what lags behind it."""
        work = self._work
        if work.done and work.uncounted_outputs:
            self._session.wait_until(lambda: not work.uncounted_outputs, LAST_OUTPUT_S)
        self.flush()
        for index, status in enumerate(work.status if work.failures else ()):
            if status not in (OK, PENDING) and index not in self._failed:
                self._note_unpublished(index)
        self._show_endings(all_of_them=True)
        self._screen.refresh(None)

    def _show(self, index: int, kind: str, content: Any) -> None:
        engine = self._work.engine(index)
        self._has_begun = True
        if kind in ("stdout", "stderr"):
            self._screen.write(engine, kind, content)
        elif kind in ("display_data", "update_display_data"):
            self._screen.display(engine, kind, content)
        elif kind == "clear_output":
            self._screen.clear(engine, bool(content.get("wait")))
        elif kind == "execute_result":
            metadata = metadata_of(self._session, self._work, index)
            reply = ExecuteReply(int(content.get("execution_count") or 0), metadata)
            self._values.append((index, reply))
            self._hold_endings(VALUES_S)
        elif kind == "error":
            self._note_failure(index, engine, content)

    def _note_unpublished(self, index: int) -> None:
        """Note the error of a task that published none itself: its engine died, or it never ran."""
        place = self._work.locate(index)
        if place is None:
            return
        segment, position = place
        info = segment.error(position)
        engine = info.engine_id if info.engine_id >= 0 else self._work.engine(index)
        content = {"ename": info.ename, "evalue": info.evalue, "traceback": info.traceback}
        self._note_failure(index, engine, content)

    def _note_failure(self, index: int, engine: int | None, content: dict[str, Any]) -> None:
        self._failed.add(index)
        info: RemoteInfo = {"engine_id": engine, "engine_uuid": "", "method": "execute"}
        traceback = list(content.get("traceback") or ())
        error = RemoteError(str(content.get("ename")), str(content.get("evalue")), traceback, info)
        self._failures.append((index, error))
        self._hold_endings(ERRORS_S)

    def _hold_endings(self, hold_s: float) -> None:
        due_at = time.monotonic() + hold_s
        self._endings_due_at = min(due_at, self._endings_due_at or due_at)

    def _show_endings(self, *, all_of_them: bool = False) -> None:
        values = sorted(self._values, key=lambda value: value[0])
        failures = sorted(self._failures, key=lambda failure: failure[0])
        self._values, self._failures, self._endings_due_at = [], [], None
        for index, reply in values:
            if all_of_them or self._work.status[index] != PENDING:
                self._screen.show_value(reply)
            else:
                self._values.append((index, reply))
                self._hold_endings(VALUES_S)
        errors = [error for _, error in failures]
        add_hint(errors)
        for text in self._report.render(errors):
            self._screen.show_error(text)
