"""The client of a cluster.

What lives here: `Client`, the door to everything that users do: how it connects, its views, its
tasks, its end. What must not: the protocol (`session.py`), how calls are made (`views`), waiting
(`waits.py`), questions to the hub (`hub.py`) and to engines (`engine_control.py`).
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.engine_control import EngineControls
from ipyfleet_client.hub import HubQueries
from ipyfleet_client.lookup import find_connection
from ipyfleet_client.observing import Observations
from ipyfleet_client.outputs import in_ipython
from ipyfleet_client.pending import PENDING, Work
from ipyfleet_client.route import choose_tunnel
from ipyfleet_client.session import Session
from ipyfleet_client.taskmaps import TaskMap, metadata_of_tasks, results_of
from ipyfleet_client.views.balanced import LoadBalancedView
from ipyfleet_client.views.broadcast import BroadcastView
from ipyfleet_client.views.direct import DirectView
from ipyfleet_client.waits import ClientWaits
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.connection import ConnectionInfo

if TYPE_CHECKING:
    from types import TracebackType

    from ipyfleet_client.executor import ViewExecutor

ACTIVATION_GROUP = "ipyfleet.activation"
"""Entry points called with ``(view, suffix)`` when a view is activated: the magics."""


class Client(HubQueries, Observations, EngineControls, ClientWaits):
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
        reconnect_timeout: float | None = None,
        url_file: str | os.PathLike[str] | None = None,
        context: Any = None,
        debug: bool = False,
        sshserver: str | None = None,
        sshkey: str | os.PathLike[str] | None = None,
        password: str | None = None,
        paramiko: bool | None = None,
        ssh_args: Sequence[str] = (),
        **ignored: Any,
    ) -> None:
        """Connect to a cluster.

        Args:
            connection_info: path or content of a connection file; None to look it up.
            profile: name of the IPython profile to look in.
            profile_dir: its directory instead.
            ipython_dir: where profiles are, instead of ``~/.ipython``.
            cluster_id: which cluster of the profile.
            cluster: the `Cluster` object this client belongs to; where nothing else says which, the
                one to connect to.
            timeout: seconds to wait for the file, and for the controller's answer.
            reconnect_timeout: seconds to wait, later, for a controller that died or cannot be
                reached to be back; 0 for not at all. None for what the cluster is set up for.
            url_file: old name of `connection_info`.
            context: accepted for compatibility.
            debug: log all messages.
            sshserver: ``user@host`` or ``user@host:port``: reach the controller through this ssh
                server; by default the one that the connection file names, if it names one and the
                controller is on another host.
            sshkey: path of a private key, where ssh does not find it by itself.
            password: not to be had; use a key.
            paramiko: not to be had; the system's ssh is used.
            ssh_args: more arguments for ssh, such as ``["-J", "jump.host"]``.
            **ignored: accepted for compatibility: what only other transports need.

        Raises:
            ConnectionFileError: the file is missing, stale, unreadable or of another version.
            TimeoutError: the controller, or the ssh server, does not answer.
            ConnectionError: ssh has failed, and the message says why.
            NotImplementedError: a password was given.
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
        where = connection_info if connection_info is not None else url_file
        if where is None and cluster is not None and not (profile or profile_dir or cluster_id):
            profile_dir, cluster_id = cluster.profile_dir, cluster.cluster_id
        info = find_connection(
            where,
            profile=profile,
            profile_directory=profile_dir,
            ipython_dir=ipython_dir,
            cluster_id=cluster_id,
            timeout_s=timeout,
        )
        tunnel = choose_tunnel(info, sshserver, sshkey, password, paramiko, ssh_args)
        self.session = Session(info, reconnect_timeout, tunnel=tunnel)
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

    # -- tasks --------------------------------------------------------------------------------

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
            if work.status[index + offset] == PENDING
        }

    @property
    def results(self) -> TaskMap:
        """The values of tasks that have ended, by msg_id. Looked up, not kept here."""
        return results_of(self)

    @property
    def metadata(self) -> TaskMap:
        """The `Metadata` of tasks, by msg_id. Looked up, not kept here."""
        return metadata_of_tasks(self)

    def spin(self) -> None:
        """Do nothing: what arrives is taken at once. Deprecated."""
        _warn_of_spin("spin")

    def spin_thread(self, interval: float = 1) -> None:
        """Do nothing, as `spin`. Deprecated."""
        _warn_of_spin("spin_thread")

    def stop_spin_thread(self) -> None:
        """Do nothing, as `spin`. Deprecated."""
        _warn_of_spin("stop_spin_thread")

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
            targets: engines: only what was submitted to these directly; None for all.
            block: accepted for compatibility.
            force: kill engines whose tasks still run after the grace.
            grace: seconds.

        Raises:
            TypeError: `jobs` is none of what it can be.
            IndexError: there is no such engine.
            RuntimeError: a task that has not ended was submitted by another client.
        """
        self.session.submit.flush()
        if jobs is None:
            with self.session.link.lock:
                works = list(self.session.link.ledger.works())
        else:
            results = [
                future
                for future in self._futures(jobs)
                if isinstance(future, AsyncResult) and not future.ready()
            ]
            for result in results:
                result._check_abortable()
            works = [result._work for result in results]
        submit = self.session.submit
        if targets is None or (isinstance(targets, str) and targets == "all"):
            submit.cancel_all(works, interrupt=True, force=force, grace_s=grace)
            return
        chosen = self.session.link.engines.choose(targets)
        ranges = _seqs_at([chosen] if isinstance(chosen, int) else chosen, works)
        if ranges:
            submit.send_message(encode(m.Cancel(ranges, True, force, grace)))

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
        from ipyfleet_client.reprs import resources_text

        if self.session.reconnecting:
            return f"<Client: {len(self)} engines, reconnecting>"
        return f"<Client: {len(self)} engines{resources_text(self)}>"

    def _repr_html_(self) -> str:
        """How notebooks show it: its engines, and what they have to do."""
        from ipyfleet_client.reprs import client_html

        return client_html(self)


_IGNORED = frozenset(
    [
        "key",
        "packer",
        "unpacker",
        "session",
        "username",
        "config",
    ]
)


def _warn_of_spin(name: str) -> None:
    warnings.warn(
        f"{name}() does nothing: results are taken as they arrive; leave it out",
        DeprecationWarning,
        stacklevel=3,
    )


def _seqs_at(engines: Iterable[int], works: Iterable[Work]) -> list[m.SeqRange]:
    """Return the tasks of direct calls to these engines."""
    wanted = set(engines)
    return [
        m.SeqRange(first + offset, 1)
        for work in works
        if work.targets is not None
        for index, first, count in work.ranges
        for offset in range(count)
        if work.targets[index + offset] in wanted and work.status[index + offset] == PENDING
    ]


def _activate_first(client: Client) -> None:
    """Activate the magics on the first client of an IPython session."""
    if not in_ipython():
        return
    shell = sys.modules["IPython"].get_ipython()
    if getattr(shell, "_ipyfleet_activated", False):
        return
    shell._ipyfleet_activated = True
    client.activate()
