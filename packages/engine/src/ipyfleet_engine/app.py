"""`ipengine`: the command line of the host agent and of single engines.

What lives here: options, logging, the order of what happens at start. What must not: anything
that an embedder would need; that is in `agent` and `engine`.

Heavy imports come after the options have been read and the native threads capped, so that numpy,
imported by whatever user code, sees the cap.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from traitlets import Any as AnyTrait
from traitlets import Bool, Enum, Float, Int, List, Unicode
from traitlets.config import Application, Config

from ipyfleet_protocol import paths
from ipyfleet_protocol.connection import ConnectionInfo, host_id, load_connection_file
from ipyfleet_protocol.errors import ConnectionFileError
from ipyfleet_protocol.ids import PeerId, new_peer_id
from ipyfleet_protocol.tunnel import Tunnel
from ipyfleet_protocol.versions import package_versions

from . import __version__
from .guard import Guard
from .mark import RunningMark
from .process import cap_native_threads, die_with_parent
from .ranks import NO_RANK, Rank, find_rank
from .resources import Resources, format_resources
from .respawn import POLICIES, Respawn
from .stacks import write_on_signal

if TYPE_CHECKING:
    from .agent import Agent
    from .children import Nursery
    from .kernel import FleetKernel

log = logging.getLogger("ipyfleet.agent")

_PEER_VARIABLE = "IPYFLEET_ENGINE_PEER"
_AGENT_VARIABLE = "IPYFLEET_ENGINE_AGENT"
_MARK_VARIABLE = "IPYFLEET_ENGINE_MARK"
_STACKS_VARIABLE = "IPYFLEET_ENGINE_STACKS"


class IPEngineApp(Application):
    """Start IPython engines and link them to a controller."""

    name = "ipengine"
    version = __version__
    description = (
        "Start IPython engines on this host and link them to a controller.\n\n"
        "An agent process imports everything once and forks the engines, so that they start fast; "
        "it tells the controller when and why one ends."
    )
    examples = "ipengine -n 4\nipengine -n 2 --profile=mpi --cluster-id=big"

    n = Int(1, min=1, help="How many engines to start.").tag(config=True)
    profile = Unicode("default", help="The IPython profile.").tag(config=True)
    profile_dir = Unicode("", help="The directory of the profile; wins over the name.").tag(
        config=True
    )
    ipython_dir = Unicode(
        "", help="Where the profiles are; default $IPYTHONDIR or ~/.ipython."
    ).tag(config=True)
    cluster_id = Unicode("", help="Which of the profile's clusters to join.").tag(config=True)
    file = Unicode("", help="The connection file, if it is not in the profile.").tag(config=True)
    ssh = Unicode(
        "",
        help="An ssh server, user@host[:port], to reach the controller through; by default what "
        "the connection file names, on other hosts than the controller's.",
    ).tag(config=True)
    sshkey = Unicode("", help="A private key for it, where ssh does not find one.").tag(config=True)
    ssh_args = List(
        Unicode(), help="More arguments for ssh, such as -J and jump.host; one each time."
    ).tag(config=True)
    lease_fd = Int(
        -1, help="Read end of a pipe; the agent and its engines end when the other end closes."
    ).tag(config=True)
    timeout = Float(
        60.0, help="Seconds to wait for the connection file, and for the controller."
    ).tag(config=True)
    fork = Bool(True, help="Fork engines off the agent; else start each as its own program.").tag(
        config=True
    )
    single = Bool(False, help="Be one engine, without an agent.").tag(config=True)
    log_to_file = Bool(False, help="Write the agent's log to the profile's log directory.").tag(
        config=True
    )
    log_json = Bool(False, help="Log JSON, one object a line.").tag(config=True)
    respawn = Enum(
        POLICIES,
        "never",
        help="Whether engines that end by themselves are started again: never, on_failure, always.",
    ).tag(config=True)
    respawn_limit = Int(
        10, min=0, help="Respawns in a row, each within a minute, that may fail; 0 for no limit."
    ).tag(config=True)
    respawn_delay = Float(
        30.0, min=0.0, help="Seconds that a respawn waits at most, when several were needed."
    ).tag(config=True)
    controller_timeout = Float(
        60.0,
        min=0.0,
        help="Seconds that a controller may be gone before engines end; 0 for any time. More, if "
        "the controller asks for it (`ipcontroller --recover`).",
    ).tag(config=True)
    mpi = Bool(
        False, help="Be one engine of an MPI program or batch job: its rank is wanted as its id."
    ).tag(config=True)
    log_max_bytes = Int(
        10 * 1024 * 1024, min=0, help="Bytes of an engine's log before it is rotated; 0 for any."
    ).tag(config=True)
    startup_script = Unicode("", help="A file to run in each engine's namespace first.").tag(
        config=True
    )
    output_max_bytes = Int(
        8 * 1024 * 1024,
        min=64 * 1024,
        help="Bytes of output that an engine holds until they are sent; beyond it the oldest is "
        "dropped, and the output says so.",
    ).tag(config=True)
    startup_command = Unicode("", help="Code to run in each engine's namespace first.").tag(
        config=True
    )
    resources = Resources(
        help="What each engine has that tasks may need, such as gpu=1,mem=16; tasks of a view with "
        "view.resources = {'gpu': 1} run only where there is as much. A name alone has amount 1."
    ).tag(config=True)
    kernel = AnyTrait(help="The engine's kernel; GUI event loops look for it here.")

    aliases = {  # noqa: RUF012 - as traitlets has it
        "n": "IPEngineApp.n",
        "profile": "IPEngineApp.profile",
        "profile-dir": "IPEngineApp.profile_dir",
        "ipython-dir": "IPEngineApp.ipython_dir",
        "cluster-id": "IPEngineApp.cluster_id",
        "file": "IPEngineApp.file",
        "ssh": "IPEngineApp.ssh",
        "sshkey": "IPEngineApp.sshkey",
        "lease-fd": "IPEngineApp.lease_fd",
        "log-level": "Application.log_level",
        "timeout": "IPEngineApp.timeout",
        "resources": "IPEngineApp.resources",
        "controller-timeout": "IPEngineApp.controller_timeout",
        "respawn": "IPEngineApp.respawn",
        "respawn-delay": "IPEngineApp.respawn_delay",
        "startup-script": "IPEngineApp.startup_script",
        "output-max-bytes": "IPEngineApp.output_max_bytes",
        "s": "IPEngineApp.startup_script",
        "startup-command": "IPEngineApp.startup_command",
        "c": "IPEngineApp.startup_command",
    }
    flags = {  # noqa: RUF012
        "no-fork": (
            {"IPEngineApp": {"fork": False}},
            "Start each engine as its own program instead of forking it off the agent.",
        ),
        "mpi": (
            {"IPEngineApp": {"mpi": True, "single": True}},
            "Be one engine of an MPI program or batch job; its rank is wanted as its id.",
        ),
        "single": ({"IPEngineApp": {"single": True}}, "Be one engine, without an agent."),
        "log-to-file": (
            {"IPEngineApp": {"log_to_file": True}},
            "Write the agent's log to the profile's log directory.",
        ),
        "log-json": ({"IPEngineApp": {"log_json": True}}, "Log JSON, one object a line."),
        "debug": ({"Application": {"log_level": 10}}, "Log everything."),
    }

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the command line and the profile's ``ipengine_config.py``.

        There ``c.IPEngine``, the name that users know, means ``c.IPEngineApp``.
        """
        self.parse_command_line(argv)
        self.load_config_file("ipengine_config", path=[str(self.profile_path)])
        if "IPEngine" in self.config:
            config = Config({"IPEngineApp": self.config.IPEngine})
            config.merge(self.config)
            self.update_config(config)

    @property
    def profile_path(self) -> Path:
        """The directory of the profile."""
        return paths.profile_dir(self.profile, self.profile_dir or None, self.ipython_dir or None)

    @property
    def file_path(self) -> Path:
        """The connection file."""
        if self.file:
            return Path(self.file).expanduser().absolute()
        return paths.connection_file(self.profile_path, self.cluster_id, "engine")

    def start(self) -> None:
        """Run until the cluster ends; then exit the process."""
        try:
            exit_code = self._run_single() if self.single else self._run_agent()
        except (ConnectionFileError, ConnectionError, TimeoutError) as error:
            log.critical("%s", error)
            exit_code = 1
        self.exit(exit_code)

    # -- one engine without an agent ----------------------------------------------------------

    def _run_single(self) -> int:
        agent = os.environ.pop(_AGENT_VARIABLE, "")
        peer = PeerId(bytes.fromhex(os.environ.pop(_PEER_VARIABLE, ""))) or new_peer_id()
        agent_peer, _, agent_pid = agent.partition(":")
        if agent_pid:
            die_with_parent(int(agent_pid))
        mark_fd = int(os.environ.pop(_MARK_VARIABLE, "-1"))
        write_on_signal(int(os.environ.pop(_STACKS_VARIABLE, "-1")))
        if not agent:
            with Guard() as mark:
                return self._be_single(peer, b"", mark)
        mark = RunningMark(mark_fd)
        if mark_fd >= 0:
            os.close(mark_fd)
        return self._be_single(peer, bytes.fromhex(agent_peer), mark)

    def _be_single(self, peer: PeerId, agent: bytes, mark: RunningMark) -> int:
        # After a crash its log, or its agent's report, has the stack.
        faulthandler.enable()
        self._start_logging(None)
        place = find_rank(os.environ) if self.mpi else None
        if self.mpi and place is None:
            log.critical("--mpi: %s", NO_RANK)
            return 1
        if place is not None:
            cap_native_threads(place.local_size or 1, os.cpu_count(), os.environ)
        self.kernel = self._make_kernel()
        info = self._load_connection()
        return self._run_engine(info, peer, agent, mark, place)

    def _run_engine(
        self,
        info: ConnectionInfo,
        peer: PeerId,
        agent: bytes,
        mark: RunningMark,
        place: Rank | None = None,
    ) -> int:
        from .engine import EngineSettings, run_engine

        settings = EngineSettings(
            info,
            peer,
            mark,
            agent,
            timeout_s=self.timeout,
            profile_path=self.profile_path,
            startup_script=self.startup_script,
            startup_command=self.startup_command,
            wanted_id=-1 if place is None else place.rank,
            # An engine that has an agent ends with it.
            away_s=0.0 if agent else self._patience_s(info),
            names={} if place is None else {"mpi_rank": place.rank, "mpi_size": place.size},
            resources=self.resources,
        )
        return run_engine(settings, self.kernel)

    # -- the agent ----------------------------------------------------------------------------

    def _run_agent(self) -> int:
        from .agent import Agent, log_stem, make_log_dir
        from .children import Nursery
        from .logs import LogKeeper

        logs = make_log_dir(paths.log_dir(self.profile_path))
        stem = log_stem(self.cluster_id, os.getpid())
        self._start_logging(logs / f"{stem}.log" if self.log_to_file else None)
        cap_native_threads(self.n, os.cpu_count(), os.environ)
        if self.fork:
            self.kernel = self._make_warm_kernel()
        info = self._load_connection()
        peer = new_peer_id()
        nursery = Nursery(logs, stem)

        def start(agent: Agent, slot: int | None) -> None:
            if self.fork:
                self._fork_engine(agent, nursery, info, peer, slot)
            else:
                self._spawn_engine(nursery, peer, slot)

        agent = Agent(
            info,
            peer,
            nursery,
            timeout_s=self.timeout,
            away_s=self._patience_s(info),
            file=self.file_path,
            respawn=Respawn(self.respawn, self.respawn_limit, self.respawn_delay),
            keeper=LogKeeper(self.log_max_bytes),
            start=start,
            forks=self.fork,
            lease_fd=None if self.lease_fd < 0 else self.lease_fd,
        )
        agent.prepare()
        for _ in range(self.n):
            start(agent, None)
        log.info("started %d engines; their logs are %s-*.log", self.n, logs / stem)
        return agent.run()

    def _fork_engine(
        self,
        agent: Agent,
        nursery: Nursery,
        info: ConnectionInfo,
        agent_peer: PeerId,
        slot: int | None,
    ) -> None:
        nursery.fork(
            lambda peer, mark: self._run_engine(info, peer, agent_peer, mark),
            agent.private_fds,
            slot,
        )

    def _spawn_engine(self, nursery: Nursery, agent_peer: PeerId, slot: int | None) -> None:
        command = [
            sys.executable,
            "-m",
            "ipyfleet_engine",
            "--single",
            f"--file={self.file_path}",
            f"--ssh={self.ssh}",
            f"--sshkey={self.sshkey}",
            *(f"--IPEngineApp.ssh_args={argument}" for argument in self.ssh_args),
            f"--timeout={self.timeout}",
            f"--log-level={self.log_level}",
            f"--profile-dir={self.profile_path}",
            f"--output-max-bytes={self.output_max_bytes}",
            f"--startup-script={self.startup_script}",
            f"--startup-command={self.startup_command}",
            f"--resources={format_resources(self.resources)}",
        ]

        def environ(peer: PeerId, mark_fd: int, stacks_fd: int) -> Mapping[str, str]:
            return {
                **os.environ,
                _PEER_VARIABLE: peer.hex(),
                _AGENT_VARIABLE: f"{agent_peer.hex()}:{os.getpid()}",
                _MARK_VARIABLE: str(mark_fd),
                _STACKS_VARIABLE: str(stacks_fd),
            }

        nursery.spawn(command, environ, slot)

    # -- common -------------------------------------------------------------------------------

    def _patience_s(self, info: ConnectionInfo) -> float:
        """Return how long the controller may be gone; 0 for any time."""
        if not self.controller_timeout:
            return 0.0
        return max(self.controller_timeout, info.recover_s)

    def _load_connection(self) -> ConnectionInfo:
        info = load_connection_file(self.file_path, timeout_s=self.timeout, alive=True)
        server = self.ssh or ("" if info.host == host_id() else info.ssh)
        if server:
            # Engines that are forked share it; it ends with this process.
            self._tunnel = Tunnel(info, server, key=self.sshkey, args=self.ssh_args)
            self._tunnel.start(self.timeout)
            info.tunnel = self._tunnel.url
        return info

    def _make_kernel(self) -> FleetKernel:
        from .kernel import make_kernel
        from .output import OutputCollector

        return make_kernel(OutputCollector(self.output_max_bytes), self.config)

    def _make_warm_kernel(self) -> FleetKernel:
        """Make the kernel, with all imported and cached that engines need until their first tasks.

        What is in memory then is shared by all engines as long as nobody writes to it; the garbage
        collector would, so it is told to leave these objects alone. Before, it would find nothing
        worth its time.
        """
        gc.disable()
        kernel = self._make_kernel()
        from . import engine  # noqa: F401 - imported for its imports
        from .ipykernel_hooks import warm_up

        warm_up(kernel)
        package_versions()
        gc.freeze()
        gc.enable()
        return kernel

    def _start_logging(self, path: Path | None) -> None:
        from ipyfleet_protocol.logs import log_handler

        handler = log_handler("ipengine", path, as_json=self.log_json)
        root = logging.getLogger("ipyfleet")
        root.addHandler(handler)
        root.setLevel(
            int(str(self.log_level)) if str(self.log_level).isdigit() else str(self.log_level)
        )


def main(argv: list[str] | None = None) -> None:
    """Run `ipengine`."""
    app = IPEngineApp.instance()
    app.initialize(argv)
    app.start()
