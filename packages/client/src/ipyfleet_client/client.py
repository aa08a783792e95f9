"""The client of a cluster.

What lives here: `Client`, the door to everything that users do. What must not: the protocol
    (`session.py`),
how calls are made (`views`).
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.engine_control import EngineControls
from ipyfleet_client.hub import REQUEST_TIMEOUT_S, HubQueries
from ipyfleet_client.lookup import find_connection
from ipyfleet_client.outputs import in_ipython
from ipyfleet_client.progressbar import make_bar
from ipyfleet_client.session import Pending, Session
from ipyfleet_client.views.balanced import LoadBalancedView
from ipyfleet_client.views.broadcast import BroadcastView
from ipyfleet_client.views.direct import DirectView
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.errors import EngineError

if TYPE_CHECKING:
    from types import TracebackType

    from ipyfleet_client.executor import ViewExecutor

ACTIVATION_GROUP = "ipyfleet.activation"
"""Entry points called with ``(view, suffix)`` when a view is activated: the magics."""


class Client(HubQueries, EngineControls):
    """A connection to a cluster: its engines by index, views of them, questions to the hub.

    Any number of clients may be in a process, any number of threads may use one. A client closes
    itself when it is dropped or the process ends.

    Attributes:
        block: the default of ``view.block`` for views made from now on.
        cluster: the `Cluster` that made this client, or None.
        session: the connection.

    Example:
        >>> rc = Client()  # doctest: +SKIP
        >>> rc.ids  # doctest: +SKIP
        [0, 1, 2, 3]
        >>> rc[:].apply_sync(os.getpid)  # doctest: +SKIP
        [18993, 18994, 18995, 18996]
    """

    def __init__(
        self,
        connection_info: str | os.PathLike[str] | Mapping[str, Any] | ConnectionInfo | None = None,
        *,
        profile: str | None = None,
        profile_dir: str | os.PathLike[str] | None = None,
        ipython_dir: str | os.PathLike[str] | None = None,
        cluster_id: str = "",
        cluster: Any = None,
        timeout: float = 10,
        url_file: str | os.PathLike[str] | None = None,
        context: Any = None,
        debug: bool = False,
        **ignored: Any,
    ) -> None:
        """Connect to a cluster.

        Args:
            connection_info: path or content of a connection file; None to look it up.
            profile: name of the IPython profile to look in.
            profile_dir: its directory instead.
            ipython_dir: where profiles are, instead of ``~/.ipython``.
            cluster_id: which cluster of the profile.
            cluster: the `Cluster` object this client belongs to.
            timeout: seconds to wait for the file, and for the controller's answer.
            url_file: old name of `connection_info`.
            context: accepted for compatibility.
            debug: log all messages.
            **ignored: accepted for compatibility: what only other transports need.

        Raises:
            ConnectionFileError: the file is missing, stale, unreadable or of another version.
            TimeoutError: the controller does not answer.
            ConnectionRefusedError: it does not want this client, and says why.
        """
        unknown = set(ignored) - _IGNORED
        if unknown:
            raise TypeError(f"Client has no argument {', '.join(sorted(unknown))}")
        self.block = False
        self.cluster = cluster
        self.debug = debug
        self.profile = profile
        self._kept: deque[AsyncResult] = deque(maxlen=16)
        self._forgotten = 0
        self._dask_scheduler: int | None = None
        info = find_connection(
            connection_info if connection_info is not None else url_file,
            profile=profile,
            profile_directory=profile_dir,
            ipython_dir=ipython_dir,
            cluster_id=cluster_id,
            timeout_s=timeout,
        )
        self.session = Session(info)
        self.session.connect(timeout)
        self._finalizer = weakref.finalize(self, self.session.close)
        for text in self.session.link.warnings:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        _activate_first(self)

    # -- engines ------------------------------------------------------------------------------

    @property
    def ids(self) -> list[int]:
        """The ids of the engines there are now, ascending."""
        return list(self.session.link.engines.ids)

    def __len__(self) -> int:
        return len(self.session.link.engines.ids)

    def __getitem__(self, key: Any) -> DirectView:
        """Return a view of an engine (int) or of several (slice, list).

        Raises:
            IndexError: there is no such engine; the message names those there are.
            TypeError: engines are not chosen by such a key.
        """
        return self.direct_view(self.session.link.engines.choose(key))

    def __iter__(self) -> Iterator[DirectView]:
        return (self[engine] for engine in self.ids)

    def direct_view(self, targets: Any = "all", **flags: Any) -> DirectView:
        """Return a view that calls every one of its engines.

        Args:
            targets: as an index of the client, or "all" for whichever engines there are at the
                time of each call.
            **flags: of the view, such as ``block=True``.
        """
        if targets is None or (isinstance(targets, str) and targets == "all"):
            return DirectView(self, "all", **flags)
        return DirectView(self, self.session.link.engines.choose(targets), **flags)

    def load_balanced_view(self, targets: Any = None, **flags: Any) -> LoadBalancedView:
        """Return a view whose engines share the work.

        Args:
            targets: the engines that may be used; None for all, also those that come later.
            **flags: of the view, such as ``retries=2``.
        """
        view = LoadBalancedView(self)
        return view.set_flags(targets=targets, **flags)

    def broadcast_view(
        self, targets: Any = "all", is_coalescing: bool = False, **flags: Any
    ) -> BroadcastView:
        """Return a view that sends the same to many engines.

        Args:
            targets: as of `direct_view`.
            is_coalescing: accepted for compatibility: answers that come together travel together.
            **flags: of the view, such as ``block=True``.
        """
        if targets is None or (isinstance(targets, str) and targets == "all"):
            chosen: Any = "all"
        else:
            chosen = self.session.link.engines.choose(targets)
        return BroadcastView(self, chosen, is_coalescing=is_coalescing, **flags)

    def executor(self, targets: Any = None) -> ViewExecutor:
        """Return a `concurrent.futures` executor whose calls run on whichever engine is free.

        Args:
            targets: the engines that may be used; None for all.
        """
        from ipyfleet_client.executor import ViewExecutor

        return ViewExecutor(self.load_balanced_view(targets))

    def become_dask(
        self,
        targets: Any = "all",
        port: int = 0,
        nanny: bool = False,
        scheduler_args: dict[str, Any] | None = None,
        **worker_args: Any,
    ) -> Any:
        """Make a Dask cluster of the engines, which stay usable as engines.

        The scheduler runs on the first of them, a worker on each; they are called ``dask_worker``
        in the engines' namespaces. What runs already is left as it is.

        Args:
            targets: which engines.
            port: of the scheduler; 0 for any.
            nanny: run workers in processes of their own.
            scheduler_args: arguments of `distributed.Scheduler`.
            **worker_args: arguments of `distributed.Worker`; ``nthreads`` is 1.

        Returns:
            A `distributed.Client`; close it before `stop_dask`.

        Raises:
            ImportError: distributed is not installed.
        """
        from ipyfleet_client.dask import become_dask

        return become_dask(
            self,
            targets,
            port=port,
            nanny=nanny,
            scheduler_args=scheduler_args,
            worker_args=worker_args,
        )

    become_distributed = become_dask

    def stop_dask(self, targets: Any = "all") -> None:
        """Stop Dask's workers on the targets, and with all of them the scheduler. Idempotent."""
        from ipyfleet_client.dask import stop_dask

        stop_dask(self, targets)

    stop_distributed = stop_dask

    def activate(self, targets: Any = "all", suffix: str = "") -> DirectView:
        """Return a blocking view for ``%px`` and its like; with a suffix, ``%px<suffix>``."""
        view = self.direct_view(targets, block=True)
        view.activate(suffix)
        return view

    def _activate_view(self, view: DirectView, suffix: str) -> None:
        from importlib.metadata import entry_points

        for entry in entry_points(group=ACTIVATION_GROUP):
            entry.load()(view, suffix)

    # -- waiting ------------------------------------------------------------------------------

    @property
    def history(self) -> list[str]:
        """The msg_ids of all tasks of this client, in the order of their calls."""
        submit = self.session.submit
        if not self.session.closed:
            submit.flush()
        return [submit.msg_id(seq) for seq in range(self._forgotten, submit.next_seq)]

    @property
    def outstanding(self) -> set[str]:
        """The msg_ids of the tasks that have not ended."""
        submit, link = self.session.submit, self.session.link
        if not self.session.closed:
            submit.flush()
        with link.lock:
            works = list(link.ledger.works())
        return {
            submit.msg_id(seq)
            for work in works
            for index, first, count in work.ranges
            for offset, seq in enumerate(range(first, first + count))
            if work.status[index + offset] == 255
        }

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
        self, jobs: Any = None, interval: float = 0.1, timeout: float | None = -1
    ) -> bool:
        """As `wait`, and show how many are there."""
        import time

        if jobs is None:
            with self.session.link.lock:
                works = list(self.session.link.ledger.works())
            jobs = [work.owner for work in works if work.owner is not None]
        futures = self._futures(jobs)
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        with make_bar(len(futures), "waiting", "calls") as bar:
            while True:
                left = interval
                if deadline is not None:
                    left = min(left, max(0.0, deadline - time.monotonic()))
                done = self.wait(futures, left)
                bar.update(sum(future.done() for future in futures) - bar.n)
                if done or (deadline is not None and time.monotonic() >= deadline):
                    return done

    def wait_for_engines(
        self,
        n: int | None = None,
        *,
        timeout: float | None = -1,
        block: bool = True,
        interactive: bool | None = None,
        widget: bool | None = None,
    ) -> Future[Any] | None:
        """Wait until there are at least `n` engines.

        Args:
            n: how many; None for as many as ``rc.cluster`` was started with, or one.
            timeout: seconds; None or negative for no limit.
            block: if false, return a future at once.
            interactive: show a progress bar; None for "in IPython".
            widget: a notebook widget instead of text; None for where there can be one.

        Raises:
            TimeoutError: there are fewer.
            EngineError: an engine was lost meanwhile.
        """
        if n is None:
            n = getattr(self.cluster, "n", None) or 1
        wanted = n
        engines = self.session.link.engines
        lost = set(engines.lost)

        def settled() -> bool:
            return len(engines.ids) >= wanted or bool(engines.lost.keys() - lost)

        if not block:
            future: Future[Any] = Future()
            self.session.wire.notify(
                settled, lambda: self.session.call_soon(lambda: future.set_result(None))
            )
            return future
        if interactive is None:
            interactive = in_ipython() and not settled()
        if interactive:
            self._wait_with_bar(settled, wanted, timeout, widget)
        else:
            self.session.wait_until(settled, timeout)
        if len(engines.ids) >= wanted:
            return None
        self.session.wire  # noqa: B018 - raises ClientClosed if that is why
        for engine_id in engines.lost.keys() - lost:
            raise EngineError(
                f"engine {engine_id} was lost while waiting for {wanted} engines: "
                f"{engines.lost[engine_id].reason}"
            )
        raise TimeoutError(
            f"{len(engines.ids)} of {wanted} engines have registered within {timeout} s; look at "
            "the engines' logs, or give a larger timeout"
        )

    def _wait_with_bar(
        self, settled: Any, wanted: int, timeout: float | None, widget: bool | None
    ) -> None:
        import time

        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        with make_bar(wanted, "engines", "engine", widget) as bar:
            done = False
            while not done and (deadline is None or time.monotonic() < deadline):
                done = self.session.wait_until(settled, 0.1)
                bar.update(min(len(self), wanted) - bar.n)

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
        if isinstance(jobs, Iterable):
            return [future for job in jobs for future in self._futures(job)]
        raise TypeError(
            "jobs are results, msg_ids, indices of the history, or collections of those, not "
            f"{type(jobs).__name__}"
        )

    # -- asking engines and the hub -----------------------------------------------------------

    def clear(self, targets: Any = None, block: bool = True) -> Any:
        """Reset the namespace of engines; of all if `targets` is None.

        Waits whatever `self.block` says; if `block` is false, a future is returned.
        """
        return self._control(m.ClearNamespace(), targets, block)

    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Any:
        """Send a signal to the processes of engines, whatever they are doing.

        Args:
            sig: a number, or a name such as "SIGINT".
            targets: the engines; None for all.
            block: whether to wait for the answer; if false, a future is returned.

        Raises:
            ValueError: there is no such signal.
        """
        import signal

        if isinstance(sig, str):
            name = sig if sig.startswith("SIG") else f"SIG{sig}"
            try:
                number = int(signal.Signals[name.upper()])
            except KeyError:
                raise ValueError(f"there is no signal {sig!r}") from None
        else:
            number = int(sig)
        return self._control(m.SendSignal(number), targets, block)

    def _control(self, action: m.ControlAction, targets: Any, block: bool | None) -> Any:
        chosen = self.session.link.engines.targets(targets)
        engines = [chosen] if isinstance(chosen, int) else chosen
        return self._answer(self.session.control(engines, action), block)

    def _answer(self, pending: Pending, block: bool | None) -> Any:
        if self.block if block is None else block:
            return self.session.answer(pending, REQUEST_TIMEOUT_S)
        return pending

    def abort(
        self,
        jobs: Any = None,
        targets: Any = None,
        block: bool | None = None,
        *,
        force: bool = False,
        grace: float = 1.0,
    ) -> None:
        """End tasks that have not ended: their result is `TaskAborted`. See `AsyncResult.abort`.

        Args:
            jobs: results, msg_ids or collections of those; None for everything outstanding.
            targets: accepted for compatibility.
            block: accepted for compatibility.
            force: kill engines whose tasks still run after the grace.
            grace: seconds.

        Raises:
            TypeError: `jobs` is none of what it can be.
        """
        self.session.submit.flush()
        if jobs is None:
            with self.session.link.lock:
                works = list(self.session.link.ledger.works())
        else:
            works = [
                future._work
                for future in self._futures(jobs)
                if isinstance(future, AsyncResult) and not future.ready()
            ]
        self.session.submit.cancel_all(works, interrupt=True, force=force, grace_s=grace)

    def shutdown(
        self,
        targets: Any = "all",
        restart: bool = False,
        hub: bool = False,
        block: bool | None = None,
    ) -> None:
        """Stop engines, and with `hub` the controller.

        Args:
            targets: the engines; "all" or None for all.
            restart: not to be had; use a `Cluster`.
            hub: stop the controller and all engines; this client closes.
            block: whether to wait for the answer.

        Raises:
            NotImplementedError: `restart` was asked for.
        """
        if restart:
            raise NotImplementedError("engines are restarted by the Cluster that started them")
        if hub:
            pending = self.session.request(m.ShutdownCluster(None, hub=True))
            self.session.wait_until(lambda: pending.done() or self.session.closed, 10.0)
            self.close()
            return
        everything = targets is None or (isinstance(targets, str) and targets == "all")
        if everything and not self.ids:
            return
        self._control(m.StopEngine(), targets, block)

    # -- the end ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the client is closed."""
        return self.session.closed

    def close(self, linger: float | None = None) -> None:
        """Close the connection. Tasks under way go on; their results do not come here any more.

        Args:
            linger: milliseconds to wait at most for what is still to be sent.
        """
        self._finalizer.detach()
        self.session.close(0.5 if linger is None or linger < 0 else linger / 1000)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Client: closed>"
        return f"<Client: {len(self)} engines>"

    def _repr_html_(self) -> str:
        """How notebooks show it: its engines, and what they have to do."""
        from ipyfleet_client.reprs import client_html

        return client_html(self)


_IGNORED = frozenset(
    [
        "sshserver",
        "sshkey",
        "password",
        "paramiko",
        "key",
        "packer",
        "unpacker",
        "session",
        "username",
        "config",
    ]
)


def _activate_first(client: Client) -> None:
    """Activate the magics on the first client of an IPython session."""
    if not in_ipython():
        return
    shell = sys.modules["IPython"].get_ipython()
    if getattr(shell, "_ipyfleet_activated", False):
        return
    shell._ipyfleet_activated = True
    client.activate()
