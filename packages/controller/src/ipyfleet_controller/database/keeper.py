"""The thread that works with the database, so that nothing else waits for it.

What lives here: `RecordKeeper`. What must not: what is recorded, and what a database is.

The loop hands over what is to be written and goes on; questions are answered when the thread has
written what came before them, and the loop is told through a pipe. What waits is bounded in bytes.
When the database is slower than that, locked, full or gone, results lose their payload first, then
whole records are missed; both are counted and logged, and the loop notices nothing.

The thread gathers for a moment before it writes, since a commit costs the same for one entry and
for a thousand. With nothing to do it sleeps, without a clock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from .base import (
    BadEntry,
    DatabaseUnavailable,
    Entry,
    ResultsEntry,
    TaskDatabase,
)
from .output import OutputEntry
from .recorded import COLUMN_BYTES

log = logging.getLogger("ipyfleet.controller")

Entries: TypeAlias = Sequence[Entry]

QUEUE_MAX_BYTES = 256 << 20
"""Bytes that wait to be written above which results lose their payload."""

HARD_SHARE = 1.25
"""At this multiple of the bound whole records are missed."""

GATHER_S = 0.05
"""How long the thread waits for more before it writes."""

WRITE_MAX_BYTES = 16 << 20
"""What is written in one transaction, more or less."""

ENTRY_BYTES = 400
"""What an entry takes besides its frames."""

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""How long after a failure it is tried again; the last goes on."""

ROOM_ATTEMPTS = 3
"""How often a full database is asked to drop something before a write counts as failed."""


class _Noted(msgspec.Struct):
    entries: Callable[[], Entries]
    n_bytes: int


class _Question(msgspec.Struct):
    work: Callable[[TaskDatabase], Any]
    reply: Callable[[Any], None]
    is_barrier: bool


class RecordKeeper:
    """Hands entries and questions to a thread with a database. Used from one other thread.

    Attributes:
        fd: can be read when `deliver` has something to do.
        n_missed_records: tasks whose end, or which themselves, were not recorded.
        n_missed_results: tasks whose record is there, and their result is not.
        n_missed_outputs: pieces of output that were not recorded.
    """

    def __init__(
        self, make_database: Callable[[], TaskDatabase], *, max_bytes: int = QUEUE_MAX_BYTES
    ) -> None:
        """Take a function that makes the database; the thread calls it. Call `start` then."""
        self._make_database = make_database
        self._max_bytes = max_bytes
        self.fd, self._signal_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._signal_fd, False)
        self._queue: deque[_Noted | _Question] = deque()
        self._answers: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="ipyfleet-database", daemon=True)
        # Each of the two is written by one thread only, so no lock is needed.
        self._taken_bytes = 0
        self._done_bytes = 0
        self.n_missed_records = 0
        self.n_missed_results = 0
        self.n_missed_outputs = 0
        self._n_bad = 0
        self._trouble = ""
        self._database: TaskDatabase | None = None
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._n_failures = 0
        self._retry_at = 0.0

    # -- for the loop -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it opens the database."""
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of what is not written yet."""
        return self._taken_bytes - self._done_bytes

    def put(self, entries: Callable[[], Entries], n_bytes: int) -> None:
        """Hand over what is to be written.

        Args:
            entries: makes the entries; called by the thread.
            n_bytes: about what they take in memory.
        """
        if self.waiting_bytes + n_bytes > self._max_bytes:
            entries, n_bytes = self._lighten(self._make(entries))
        self._taken_bytes += n_bytes
        self._queue.append(_Noted(entries, n_bytes))
        if not self._wake.is_set():
            self._wake.set()

    def ask(
        self,
        work: Callable[[TaskDatabase], Any],
        reply: Callable[[Any], None],
        *,
        is_barrier: bool = False,
    ) -> None:
        """Have something asked of the database when everything before is written.

        Args:
            work: called by the thread with the database.
            reply: called by `deliver` with what `work` returned, or with the exception it raised.
            is_barrier: without everything before having been written there is no answer but a
                `DatabaseUnavailable`.
        """
        self._queue.append(_Question(work, reply, is_barrier))
        self._hurry.set()
        self._wake.set()

    def deliver(self) -> None:
        """Call the `reply` of what was answered; to be called when `fd` can be read."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                continue
        while self._answers:
            reply, outcome = self._answers.popleft()
            try:
                reply(outcome)
            except Exception:
                # One answer must not end everybody's work.
                log.exception("a bug; an answer is dropped")

    def status(self) -> dict[str, Any]:
        """Return how it goes: numbers, and under ``trouble`` what is wrong, or ""."""
        database = self._database
        numbers = database.statistics() if database is not None else {}
        return {
            "trouble": self._trouble,
            "missed_records": self.n_missed_records + self._n_bad,
            "missed_results": self.n_missed_results,
            "missed_outputs": self.n_missed_outputs,
            "waiting_bytes": self.waiting_bytes,
            **numbers,
        }

    @property
    def is_well(self) -> bool:
        """Whether everything was, or can be, recorded."""
        missed = self.n_missed_records + self.n_missed_results + self.n_missed_outputs
        missed += self._n_bad
        return not self._trouble and not missed

    def close(self, timeout_s: float) -> None:
        """Write what waits and close the database; give up after a time."""
        if self._thread.ident is not None:
            self._is_closing = True
            self._hurry.set()
            self._wake.set()
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("the database does not answer; %d bytes are not recorded", self.waiting_bytes)
        else:
            os.close(self._signal_fd)
        os.close(self.fd)
        if not self.is_well:
            log.error("records: %s", self.status())

    def _lighten(self, entries: Entries) -> tuple[Callable[[], Entries], int]:
        """Return entries without payload, as far as there is room even for those."""
        room = self._max_bytes * HARD_SHARE - self.waiting_bytes
        kept: list[Entry] = []
        n_bytes = 0
        for entry in entries:
            if isinstance(entry, OutputEntry):
                self.n_missed_outputs += len(entry.items)
                continue
            size = ENTRY_BYTES
            if isinstance(entry, ResultsEntry):
                size += COLUMN_BYTES * entry.count
            if n_bytes + size > room:
                self._note_missed("records")
                self.n_missed_records += entry.count
                continue
            if isinstance(entry, ResultsEntry) and not entry.loss:
                self._note_missed("results")
                self.n_missed_results += entry.count
                # A view of a column would keep the whole message.
                entry = msgspec.structs.replace(entry, frames=(), loss="missed")
            kept.append(entry)
            n_bytes += size
        return lambda: kept, n_bytes

    def _make(self, entries: Callable[[], Entries]) -> Entries:
        """Return entries; none if they cannot be made, which counts as a missed one."""
        try:
            return entries()
        except Exception:
            # Out of memory, most likely; nobody would see that this thread has ended.
            self._n_bad += 1
            log.exception("records cannot be made")
            return ()

    def _note_missed(self, what: str) -> None:
        missed = self.n_missed_results if what == "results" else self.n_missed_records
        if not missed:
            log.error(
                "the database is slower than the cluster (%s); %s are not recorded from now on",
                self._trouble or f"{self.waiting_bytes} bytes wait",
                what,
            )

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        self._attempt(self._open)
        while True:
            self._wake.wait(self._patience_s())
            if not self._is_closing:
                self._hurry.wait(GATHER_S)
            self._wake.clear()
            self._hurry.clear()
            is_closing = self._is_closing
            self._take()
            self._write(is_urgent=is_closing)
            if is_closing and not self._queue:
                break
        self._n_bad += sum(entry.count for entry in self._pending)
        if self._database is not None:
            self._attempt(self._database.close)

    def _patience_s(self) -> float | None:
        if not self._pending:
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def _take(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, _Noted):
                self._pending += self._make(item.entries)
                self._pending_bytes += item.n_bytes
                if self._pending_bytes >= WRITE_MAX_BYTES:
                    self._write(is_urgent=False)
            else:
                self._write(is_urgent=True)
                self._answer(item)

    def _answer(self, question: _Question) -> None:
        outcome: Any
        try:
            if question.is_barrier and self._pending:
                raise DatabaseUnavailable(self._trouble or "it did not take what came before")
            outcome = self._ask(question.work)
        except Exception as error:  # noqa: BLE001 -- whatever it is, somebody waits for an answer
            outcome = error
        self._answers.append((question.reply, outcome))
        # A full pipe is a signal already; a closed one means that nobody waits any more.
        with contextlib.suppress(OSError):
            os.write(self._signal_fd, b"\0")

    def _ask(self, work: Callable[[TaskDatabase], Any]) -> Any:
        try:
            return work(self._open())
        except DatabaseUnavailable as error:
            if not error.at_once:
                raise
            log.warning("%s", error)
            return work(self._open())

    def _open(self) -> TaskDatabase:
        if self._database is None:
            self._database = self._make_database()
            self._database.open()
        return self._database

    def _write(self, *, is_urgent: bool) -> None:
        """Write what is pending, unless it failed a moment ago."""
        if not self._pending or (not is_urgent and time.monotonic() < self._retry_at):
            return
        if self._attempt(self._write_pending):
            self._done_bytes += self._pending_bytes
            self._pending, self._pending_bytes = [], 0
            self._attempt(self._cull)

    def _write_pending(self) -> None:
        database = self._open()
        for attempt in range(ROOM_ATTEMPTS + 1):
            try:
                database.write(self._pending)
            except DatabaseUnavailable as error:
                if attempt == ROOM_ATTEMPTS or not (error.at_once or error.is_full):
                    raise
                log.warning("%s", error)
                if error.is_full and not database.make_room():
                    raise
            except BadEntry:
                self._write_singly(database)
                break
            else:
                break

    def _cull(self) -> None:
        """Drop what need not be kept. What is written stays so if this fails."""
        self._open().cull(time.time())

    def _write_singly(self, database: TaskDatabase) -> None:
        """Write entries one by one, since one of them is bad; what is written is not pending."""
        while self._pending:
            try:
                database.write(self._pending[:1])
            except BadEntry as error:
                self._n_bad += self._pending[0].count
                log.error("a record cannot be stored: %s", error)
            del self._pending[0]

    def _attempt(self, action: Callable[[], Any]) -> bool:
        """Do something with the database; note how it went. True if it did."""
        try:
            action()
        except Exception as error:
            reason = str(error) or type(error).__name__
            if not isinstance(error, DatabaseUnavailable):
                reason = f"{type(error).__name__}: {reason}"
                log.debug("the database failed", exc_info=True)
            if not self._trouble:
                log.error("nothing is recorded for now: %s", reason)
            self._trouble = reason
            self._retry_at = time.monotonic() + RETRY_S[min(self._n_failures, len(RETRY_S) - 1)]
            self._n_failures += 1
            return False
        if self._trouble:
            log.warning("records are written again (it was: %s)", self._trouble)
        self._trouble, self._n_failures, self._retry_at = "", 0, 0.0
        return True


__all__ = ["QUEUE_MAX_BYTES", "Entries", "RecordKeeper"]
