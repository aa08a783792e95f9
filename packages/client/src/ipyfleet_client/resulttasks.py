"""The tasks of a result: what is known of them, and how they are ended before their time.

What lives here: the part of `AsyncResult` about its tasks as such. What must not: their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyfleet_client.metadata import METADATA_KEYS, Metadata, metadata_of

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session

CANCEL_WAIT_S = 0.5
"""How long `cancel` waits to learn whether it was in time."""

FUTURE_PENDING, FUTURE_CANCELLED = "PENDING", "CANCELLED_AND_NOTIFIED"
"""States of a Future, as `concurrent.futures` calls them."""


class ResultTasks:
    """Metadata, and the end."""

    _session: Session
    _work: Work
    _single: bool
    _state: str
    _cancel_asked: bool

    if TYPE_CHECKING:

        def ready(self) -> bool:
            """As `AsyncResult.ready`."""

        def _wait_until(self, predicate: Callable[[], object], timeout: float | None) -> bool: ...

    # -- about the tasks ----------------------------------------------------------------------

    @property
    def msg_ids(self) -> list[str]:
        """The public ids of the tasks."""
        if self._work.foreign_ids is not None:
            return list(self._work.foreign_ids)
        if not self._session.closed:
            self._session.submit.flush()
        return [self._session.submit.msg_id(seq) for seq in self._work.seqs()]

    @property
    def metadata(self) -> Any:
        """The `Metadata` of the task, or of each task as a list. Made anew each time."""
        if self._single:
            return self._metadata(0)
        return [self._metadata(index) for index in range(self._work.total)]

    def _metadata(self, index: int) -> Metadata:
        return metadata_of(self._session, self._work, index)

    def _metadata_item(self, key: str) -> Any:
        if self._single:
            return self._metadata(0)[key]
        return [self._metadata(index)[key] for index in range(self._work.total)]

    def __getattr__(self, name: str) -> Any:
        if name in METADATA_KEYS:
            return self._metadata_item(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *METADATA_KEYS})

    @property
    def sent(self) -> bool:
        """Whether the arguments may be changed: always, they are copied when the call is made."""
        return True

    def wait_for_send(self, timeout: float | None = -1) -> bool:
        """Return whether the arguments may be changed; see `sent`."""
        return True

    # -- ending early -------------------------------------------------------------------------

    def abort(self, force: bool = False, grace: float = 1.0) -> None:
        """End the tasks of the call that have not ended: their result is `TaskAborted`.

        Those that have not started do not start. One that runs gets KeyboardInterrupt (SIGINT).

        Args:
            force: kill the engine of a task that still runs after the grace; its agent starts
                another in its place, with a new id. What waits there runs elsewhere.
            grace: seconds.

        Raises:
            RuntimeError: all tasks have ended.
        """
        if self.ready():
            raise RuntimeError("cannot abort: all tasks have ended")
        self._session.submit.cancel(self._work, interrupt=True, force=force, grace_s=grace)

    def _check_abortable(self) -> None:
        """Raise RuntimeError if tasks that have not ended are not this client's."""

    def cancel(self, force: bool = False, grace: float = 1.0) -> bool:
        """As `abort`, and wait a moment; return whether all of the call's tasks were cancelled.

        If they were, `get` raises `concurrent.futures.CancelledError`.
        """
        wait_s = CANCEL_WAIT_S + (grace if force else 0.0)
        return self._take_back(wait_s, interrupt=True, force=force, grace_s=grace)

    def _take_back(self, wait_s: float, **options: Any) -> bool:
        if self._state == FUTURE_CANCELLED:
            return True
        if self.ready():
            return False
        self._cancel_asked = True
        self._session.submit.cancel(self._work, **options)
        self._wait_until(self.ready, wait_s)
        return self._state == FUTURE_CANCELLED

    def cancelled(self) -> bool:
        """Whether `cancel` was in time."""
        return self._state == FUTURE_CANCELLED
