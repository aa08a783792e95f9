"""Waiting for results and for engines.

What lives here: the part of `Client` that waits. What must not: who receives meanwhile (`io.py`).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.outputs import in_ipython
from ipyfleet_client.progressbar import ProgressBar
from ipyfleet_protocol.errors import EngineError

if TYPE_CHECKING:
    from ipyfleet_client.session import Session

CLUSTER_CHECK_S = 0.5
"""While engines are awaited, their cluster is asked this often whether it still starts them."""

BAR_S = 0.1


class ClientWaits:
    """Waiting."""

    session: Session
    cluster: Any

    if TYPE_CHECKING:

        def get_result(
            self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True
        ) -> Any:
            """As `HubQueries.get_result`."""

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for results.

        Args:
            jobs: an `AsyncResult`, any other future, a msg_id, an index of the history, or a
                collection of those; None for everything outstanding.
            timeout: seconds; None or negative for no limit.

        Returns:
            Whether all are there.
        """
        session = self.session
        if jobs is None:
            session.submit.flush()
            return session.wait_until(lambda: not session.link.ledger.outstanding, timeout)
        futures = self._futures(jobs)
        return session.wait_until(lambda: all(future.done() for future in futures), timeout)

    def wait_interactive(
        self,
        jobs: Any = None,
        interval: float = 1.0,
        timeout: float | None = -1,
        widget: bool | None = None,
    ) -> bool:
        """As `wait`, and show a progress bar that counts tasks.

        Args:
            jobs: as for `wait`.
            interval: seconds between two updates, at most.
            timeout: seconds; None or negative for no limit.
            widget: a notebook widget instead of text; None for where there can be one.

        Returns:
            Whether all are there.
        """
        if jobs is None:
            self.session.submit.flush()
            with self.session.link.lock:
                works = list(self.session.link.ledger.works())
            jobs = [work.owner for work in works if work.owner is not None]
        futures = self._futures(jobs)
        bar = ProgressBar(sum(map(_size, futures)), "waiting", "tasks", widget)

        def show() -> None:
            bar.show(sum(map(_done, futures)))

        try:
            return _wait_in_steps(
                lambda step_s: self.wait(futures, step_s), min(interval, 1.0), timeout, show
            )
        finally:
            bar.close()

    def wait_for_engines(
        self,
        n: int | None = None,
        *,
        timeout: float | None = -1,
        block: bool = True,
        interactive: bool | None = None,
        widget: bool | None = None,
    ) -> Future[None] | None:
        """Wait until there are at least `n` engines.

        Args:
            n: how many; None for as many as ``rc.cluster`` was started with, or one.
            timeout: seconds; None or negative for no limit.
            block: if false, return a future at once, whose result or exception is the outcome.
            interactive: show a progress bar; None for "in IPython".
            widget: a notebook widget instead of text; None for where there can be one.

        Raises:
            TimeoutError: there are fewer.
            EngineError: an engine was lost meanwhile, or the processes of ``rc.cluster`` have
                ended.
            ClientClosed: the client was closed meanwhile.
            TypeError: `n` or `timeout` is no number.
        """
        if n is None:
            n = getattr(self.cluster, "n", None) or 1
        elif isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n is a number of engines, not {type(n).__name__}")
        wait = _EngineWait(self.session, self.cluster, n)
        if not block:
            return wait.in_background(timeout)
        if interactive is None:
            interactive = in_ipython() and not wait.settled()
        if not interactive:
            wait.run(timeout)
            return None
        bar = ProgressBar(n, "engines", "engine", widget)
        engines = self.session.link.engines
        try:
            wait.run(timeout, lambda: bar.show(min(len(engines.ids), n)))
        finally:
            bar.close()
        return None

    def _futures(self, jobs: Any) -> list[Future[Any]]:
        """Return the futures that a ``jobs`` argument means.

        Raises:
            TypeError: it is none of what it can be.
        """
        if isinstance(jobs, Future):
            return [jobs]
        if isinstance(jobs, int | str) and not isinstance(jobs, bool):
            result = self.get_result(jobs)
            return [result]
        if isinstance(jobs, Iterable) and not isinstance(jobs, bytes):
            return [future for job in jobs for future in self._futures(job)]
        raise TypeError(
            "jobs are results, msg_ids, indices of the history, or collections of those, not "
            f"{type(jobs).__name__}"
        )


class _EngineWait:
    """One wait for engines; knows nothing of the client, which may be dropped meanwhile."""

    def __init__(self, session: Session, cluster: Any, wanted: int) -> None:
        self._session = session
        self._engines = session.link.engines
        self._wanted = wanted
        self._lost_before = set(self._engines.lost)
        has_processes = hasattr(cluster, "find_ended")
        self._cluster = weakref.ref(cluster) if has_processes else None

    def settled(self) -> bool:
        """Whether there are enough, or one was lost."""
        return len(self._engines.ids) >= self._wanted or bool(self._lost())

    def run(self, timeout_s: float | None, show: Callable[[], None] = lambda: None) -> None:
        """Wait; return if there are enough, else raise."""
        step_s = CLUSTER_CHECK_S if self._cluster is not None else BAR_S

        def step(seconds: float) -> bool:
            if self._session.closed:
                self._session.wire  # noqa: B018 - raises ClientClosed
            return self._session.wait_until(self.settled, seconds) or self._ended() is not None

        _wait_in_steps(step, step_s, timeout_s, show)
        if len(self._engines.ids) >= self._wanted:
            return
        for engine_id in self._lost():
            raise EngineError(
                f"engine {engine_id} was lost while waiting for {self._wanted} engines: "
                f"{self._engines.lost[engine_id].reason}"
            )
        ended = self._ended()
        if ended is not None:
            raise EngineError(
                f"{len(self._engines.ids)} of {self._wanted} engines have registered, and no more "
                f"will: {ended.describe_end()}"
            )
        raise TimeoutError(
            f"{len(self._engines.ids)} of {self._wanted} engines have registered within "
            f"{timeout_s} s; look at the engines' logs, or give a larger timeout"
        )

    def in_background(self, timeout_s: float | None) -> Future[None]:
        """Wait in a thread; return the future of the outcome."""
        future: Future[None] = Future()

        def wait() -> None:
            try:
                self.run(timeout_s)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=wait, name="ipyfleet-wait-for-engines", daemon=True).start()
        return future

    def _lost(self) -> set[int]:
        return self._engines.lost.keys() - self._lost_before

    def _ended(self) -> Any:
        cluster = self._cluster() if self._cluster is not None else None
        return None if cluster is None else cluster.find_ended()


def _wait_in_steps(
    step: Callable[[float], bool],
    step_s: float,
    timeout_s: float | None,
    show: Callable[[], None],
) -> bool:
    """Call `step` until it returns true or the time is up, and `show` after each."""
    if timeout_s is not None and not hasattr(timeout_s, "__float__"):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout_s).__name__}")
    deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
    while True:
        left = step_s
        if deadline is not None:
            left = max(0.0, min(left, deadline - time.monotonic()))
        done = step(left)
        show()
        if done or (deadline is not None and time.monotonic() >= deadline):
            return done


def _size(future: Future[Any]) -> int:
    return future._n_items if isinstance(future, AsyncResult) else 1


def _done(future: Future[Any]) -> int:
    return future.progress if isinstance(future, AsyncResult) else int(future.done())
