"""`ipcontroller`: the command line and the order of starting and ending.

What lives here: the Application. What must not: what a controller does; that is the router's.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from traitlets import Bool, Float, Int, Unicode
from traitlets.config import Application, Configurable

from . import __version__

if TYPE_CHECKING:
    from .database.keeper import RecordKeeper
    from .scheduler.core import SchedulerCore

SWITCH_S = 0.0005
"""How long one thread may make another wait for the interpreter."""

YOUNG_OBJECTS = 10_000
"""New objects after which the collector looks at them; at 700, looking was 3 % of a round trip."""

CLOSE_PATIENCE_S = 3.0
"""How long the last records may take to be written."""


def _db(name: str) -> dict[str, Any]:
    return {"IPController": {"db_class": name}}


class TaskScheduler(Configurable):
    """How tasks of load-balanced views are placed."""

    scheme_name = Unicode(
        "leastload",
        help="which engine gets a task first: leastload, lru, plainrandom, twobin, weighted, pure, "
        "or an entry point of the group ipyfleet.schemes",
    ).tag(config=True)
    hwm = Int(0, min=0, help="tasks an engine may hold; 0 for about 10 ms of work").tag(config=True)


class IPController(Application):
    """The controller of an ipyfleet cluster: engines and clients connect to it."""

    name = "ipcontroller"
    version = __version__
    description = "Start the controller of an ipyfleet cluster. Most people want `ipcluster start`."
    examples = """
    ipcontroller                       # for this host
    ipcontroller --ip=10.0.0.7         # for other hosts too, encrypted
    ipcontroller --cluster-id=blue     # a second one in the same profile
    """

    profile = Unicode("default", help="name of the IPython profile").tag(config=True)
    profile_dir = Unicode("", help="directory of the profile, instead of its name").tag(config=True)
    ipython_dir = Unicode("", help="where profiles are, instead of $IPYTHONDIR").tag(config=True)
    cluster_id = Unicode("", help="tells clusters of one profile apart").tag(config=True)
    ip = Unicode(
        "", help="address to listen at for other hosts, * for all; empty: this host only"
    ).tag(config=True)
    port = Int(0, min=0, max=65535, help="TCP port; 0 for any free one").tag(config=True)
    location = Unicode("", help="address that other hosts use, if it is not --ip").tag(config=True)
    ssh_server = Unicode(
        "", help="ssh server, user@host[:port], through which clients on other hosts are to come"
    ).tag(config=True)
    engine_ssh_server = Unicode("", help="the same for engines on other hosts").tag(config=True)
    db_class = Unicode(
        "sqlite", help="the database of task records: sqlite, memory, postgresql or none"
    ).tag(config=True)
    db_file = Unicode("", help="SQLite's file, if it is not to be in the profile").tag(config=True)
    db_url = Unicode("", help="which PostgreSQL: postgresql://user@host/database").tag(config=True)
    recover = Float(
        0.0,
        min=0.0,
        help="seconds that peers wait for the controller to be started again if it dies; for "
        "whoever will do that",
    ).tag(config=True)
    resume = Bool(
        False, help="take the place of a controller that died: same address, keys and peers"
    ).tag(config=True)
    away_limit = Float(
        15.0, min=0.0, help="seconds that a peer may be away before it is taken for gone"
    ).tag(config=True)
    db_max_records = Int(0, min=0, help="records kept; 0 for any number").tag(config=True)
    db_max_bytes = Int(1 << 30, min=0, help="bytes of results kept").tag(config=True)
    db_max_age_s = Float(7 * 86400.0, min=0.0, help="seconds that results are kept").tag(
        config=True
    )
    db_result_bytes = Int(64 << 20, min=0, help="larger results are not kept").tag(config=True)
    heartbeat_limit = Float(
        30.0, min=0.0, help="seconds of silence after which an engine is taken for dead; 0: never"
    ).tag(config=True)
    log_to_file = Bool(False, help="log to a file in the profile's log directory").tag(config=True)
    log_json = Bool(False, help="log JSON, one object a line").tag(config=True)
    outbox_max_bytes = Int(
        512 << 20, min=1 << 20, help="bytes that may wait for a client before it is parted with"
    ).tag(config=True)
    lease_fd = Int(-1, help="file descriptor of a pipe; the controller ends when it closes").tag(
        config=True
    )

    classes: ClassVar[list[type[Configurable]]] = [TaskScheduler]  # type: ignore[misc]
    aliases: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        "profile": "IPController.profile",
        "profile-dir": "IPController.profile_dir",
        "ipython-dir": "IPController.ipython_dir",
        "cluster-id": "IPController.cluster_id",
        "ip": "IPController.ip",
        "port": "IPController.port",
        "location": "IPController.location",
        "ssh": "IPController.ssh_server",
        "enginessh": "IPController.engine_ssh_server",
        "hwm": "TaskScheduler.hwm",
        "scheme": "TaskScheduler.scheme_name",
        "heartbeat-limit": "IPController.heartbeat_limit",
        "away-limit": "IPController.away_limit",
        "recover": "IPController.recover",
        "db": "IPController.db_class",
        "db-file": "IPController.db_file",
        "db-url": "IPController.db_url",
        "outbox-max-bytes": "IPController.outbox_max_bytes",
        "lease-fd": "IPController.lease_fd",
        "log-level": "Application.log_level",
    }
    flags: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "sqlitedb": (_db("sqlite"), "keep records in a file of the profile (the default)"),
        "dictdb": (_db("memory"), "keep records in memory, until the controller ends"),
        "nodb": (_db("none"), "keep no records"),
        "postgresdb": (_db("postgresql"), "keep records in PostgreSQL; see --db-url"),
        "resume": (
            {"IPController": {"resume": True}},
            "take the place of a controller that died; start fresh if there was none",
        ),
        "log-to-file": (
            {"IPController": {"log_to_file": True}},
            "log to a file in the profile's log directory",
        ),
        "log-json": ({"IPController": {"log_json": True}}, "log JSON, one object a line"),
        "debug": ({"Application": {"log_level": logging.DEBUG}}, "log everything"),
    }

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the command line, then the profile's configuration file; the command line wins."""
        self.parse_command_line(argv)
        command_line = self.cli_config
        if (self._profile_dir() / "ipcontroller_config.py").exists():
            self.load_config_file("ipcontroller_config", str(self._profile_dir()))
            self.update_config(command_line)

    def start(self) -> None:
        """Run until told to end.

        Raises:
            SystemExit: with code 1 and one line on stderr if the controller cannot start.
        """
        from .endpoints import SiteError

        self._start_logging()
        try:
            self._run()
        except SiteError as error:
            print(f"ipcontroller: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    def _run(self) -> None:
        from .allocation import give_back_large_blocks
        from .endpoints import ControllerSite, SiteError
        from .lease import SignalPipe, read_lease

        site = ControllerSite(
            self._profile_dir(),
            self.cluster_id,
            self.ip,
            self.port,
            self.location,
            self.heartbeat_limit,
            recover_s=self.recover,
            resume=self.resume,
        )
        site.ssh_servers = {"client": self.ssh_server, "engine": self.engine_ssh_server}
        _raise_file_limit()
        give_back_large_blocks()
        with SignalPipe() as signals:
            try:
                site.open()
                keeper = self._make_keeper()
                router = make_router(
                    site,
                    self._make_scheduler(),
                    keeper=keeper,
                    result_max_bytes=self.db_result_bytes,
                    away_s=self.away_limit,
                )
                router.outbox_max_bytes = self.outbox_max_bytes
                router.journal = site.journal
                if site.past is not None:
                    router.restart(site.past)
                site.doors.add_reader(signals.fd, lambda: router.close_soon(signals.read()))
                if self.lease_fd >= 0:

                    def on_lease() -> None:
                        if not read_lease(self.lease_fd):
                            router.close_soon("whoever started the controller is gone")
                            # The owner wrote it, and can no longer remove it.
                            self._cluster_file().unlink(missing_ok=True)

                    site.doors.add_reader(self.lease_fd, on_lease)
                # What is there now stays to the end; the collector need not look at it each time.
                gc.freeze()
                # Tasks come and go without cycles: to look at what is young is in vain, mostly.
                gc.set_threshold(YOUNG_OBJECTS)
                # The database's thread is to give way soon when the loop has something to do.
                sys.setswitchinterval(SWITCH_S)
                site.publish()
                keeper.start()
                router.run()
                keeper.close(CLOSE_PATIENCE_S)
            except SiteError:
                raise
            except Exception:
                # Not asked for, so whoever watches starts another one in its place.
                site.close(keep=self.recover > 0)
                raise
            finally:
                site.close()

    def _make_scheduler(self) -> SchedulerCore:
        from .endpoints import SiteError
        from .scheduler.core import SchedulerCore
        from .scheme_names import find_scheme

        options = TaskScheduler(parent=self)
        try:
            scheme = find_scheme(options.scheme_name)
        except ValueError as error:
            raise SiteError(str(error)) from None
        return SchedulerCore(hwm=options.hwm, scheme=scheme)

    def _make_keeper(self) -> RecordKeeper:
        from .database.base import Limits
        from .database.keeper import RecordKeeper
        from .database.place import DatabasePlace, backend_name, open_backend
        from .endpoints import SiteError

        limits = Limits(
            self.db_max_records or None, self.db_max_bytes, self.db_max_age_s, self.db_result_bytes
        )
        place = DatabasePlace(
            self._profile_dir(), self.cluster_id, self.db_file, self.db_url, limits
        )
        try:
            name = backend_name(self.db_class)
        except ValueError as error:
            raise SiteError(str(error)) from None
        # The thread imports the backend; that takes too long for those who wait for the start.
        return RecordKeeper(partial(open_backend, name, place))

    def _profile_dir(self) -> Path:
        from ipyfleet_protocol.paths import profile_dir

        return profile_dir(self.profile, self.profile_dir or None, self.ipython_dir or None)

    def _cluster_file(self) -> Path:
        from ipyfleet_protocol.paths import cluster_file

        return cluster_file(self._profile_dir(), self.cluster_id)

    def _start_logging(self) -> None:
        from ipyfleet_protocol.logs import log_handler, log_path
        from ipyfleet_protocol.paths import log_dir

        path = None
        if self.log_to_file:
            path = log_path(log_dir(self._profile_dir()), "ipcontroller", self.cluster_id)
        logger = logging.getLogger("ipyfleet.controller")
        logger.addHandler(log_handler("ipcontroller", path, as_json=self.log_json))
        logger.setLevel(cast("int", self.log_level))
        logger.propagate = False


def _raise_file_limit() -> None:
    """Each engine has three connections; the usual limit is made for programs that use `select`."""
    try:
        import resource
    except ImportError:
        return  # this system has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_router(
    site: Any,
    scheduler: SchedulerCore,
    *,
    keeper: RecordKeeper,
    result_max_bytes: int = 64 << 20,
    away_s: float = 15.0,
) -> Any:
    """Return a `Router` at an open `ControllerSite`, with what keeps its records."""
    from ipyfleet_protocol.checks import INCARNATION_BYTES
    from ipyfleet_protocol.connection import host_id
    from ipyfleet_protocol.versions import python_version

    from .desk import Desk
    from .hub.core import HubCore
    from .hub.joining import Cluster
    from .router import Router

    instance = bytes.fromhex(site.instance)
    cluster = Cluster(
        instance,
        host_id(),
        str(site.blob_dir),
        __version__,
        python=python_version(),
        incarnation=os.urandom(INCARNATION_BYTES),
    )
    hub = HubCore(cluster, away_s=away_s)
    desk = Desk(keeper, hub.registry, scheduler.state)
    desk.blob_dir = site.blob_dir
    desk.result_max_bytes = result_max_bytes
    router = Router(site.doors, hub, scheduler, desk, stop_limit_s=site.heartbeat_s)
    router.blob_dir = site.blob_dir
    site.doors.add_reader(keeper.fd, keeper.deliver)
    return router


def main(argv: list[str] | None = None) -> None:
    """Run `ipcontroller`."""
    IPController.launch_instance(argv)


__all__ = ["IPController", "TaskScheduler", "main", "make_router"]
