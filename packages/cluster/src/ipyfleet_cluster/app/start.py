"""``ipcluster start``."""

from __future__ import annotations

from typing import Any

from ..cluster import Cluster
from ..launchers.base import Launcher
from ..launchers.local import LocalControllerLauncher, LocalEngineLauncher
from .foreground import ForegroundCommand
from .supervise import Supervisor

_ALIASES: dict[str, Any] = {
    **ForegroundCommand.aliases,
    "controller": "Cluster.controller_launcher_class",
    "ip": "Cluster.controller_ip",
    "location": "Cluster.controller_location",
    "delay": "Cluster.delay",
}


_FLAGS: dict[str, Any] = {
    **ForegroundCommand.flags,
    "no-restart-controller": (
        {"Cluster": {"restart_controller": False}},
        "Stop the cluster when the controller dies, instead of starting it again.",
    ),
}


_CLASSES: list[Any] = [Cluster, LocalControllerLauncher, LocalEngineLauncher]


class IPClusterStart(ForegroundCommand):
    """Start a controller and engines."""

    name = "ipcluster-start"
    subcommand = "start"
    description = """Start a cluster and look after it until Ctrl-C, SIGTERM or `ipcluster stop`.

    Arguments after `--` go to the controller.
    """
    examples = """
ipcluster start -n 4
ipcluster start -n 4 --daemonize --cluster-id=night
ipcluster start -n 4 --ip=10.0.0.5       # let other hosts connect
    """
    aliases = _ALIASES
    flags = _FLAGS
    classes = _CLASSES

    async def run(self, supervisor: Supervisor) -> int:
        """Start a cluster, look after it, stop it."""
        cluster = self._make_cluster()
        n = await supervisor.run(self._start(cluster))
        try:
            self._report(0, self._describe_ready(cluster, n))
            ended = await supervisor.wait(cluster.wait_ended())
            code = self._explain(supervisor, cluster, ended)
        finally:
            await cluster.stop_cluster()
        self.say("Stopped.")
        return code

    def _make_cluster(self) -> Cluster:
        cluster = Cluster(
            parent=self,
            profile_dir=str(self.directory),
            cluster_id=self.cluster_id,
            supervised=True,
        )
        if any("log_level" in section for section in self.cli_config.values()):
            cluster.log_level = self.log_level
        cluster.controller_args = [*cluster.controller_args, *self.extra_args]
        return cluster

    async def _start(self, cluster: Cluster) -> int:
        """Start everything and wait for the engines; return how many there are."""
        rc = await cluster.start_and_connect()
        try:
            return len(rc.ids)
        finally:
            rc.close()

    def _describe_ready(self, cluster: Cluster, n: int) -> str:
        named = {}
        if self.profile_dir:
            named["profile_dir"] = self.profile_dir
        elif self.profile and self.profile != "default":
            named["profile"] = self.profile
        if self.cluster_id:
            named["cluster_id"] = self.cluster_id
        args = [f"{name}={value!r}" for name, value in named.items()]
        flags = [f"--{name.replace('_', '-')}={value!r}" for name, value in named.items()]
        stop = ["ipcluster stop", *flags]
        return (
            f"{n} engines are ready. Connect: import ipyfleet as ipf; "
            f"rc = ipf.Client({', '.join(args)})\n"
            f"Stop: {' '.join(stop)}" + ("" if self.daemonize else ", or Ctrl-C here")
        )

    def _explain(self, supervisor: Supervisor, cluster: Cluster, ended: Launcher | None) -> int:
        """Say why the cluster is stopped now; return the exit code that goes with it."""
        if ended is None:
            assert supervisor.stop_signal is not None
            self.say(f"Got {supervisor.stop_signal.name}: stopping the cluster …")
            return 0
        # When the controller goes, the engines' agents go too, and may be seen to go first.
        if cluster.controller is not None and not cluster.controller.is_running:
            ended = cluster.controller
        if ended.exit_status == 0:
            self.say(f"{ended.what} was shut down: stopping the cluster …")
            return 0
        self.complain(f"{ended.describe_end()}\nStopping what is left of the cluster …")
        return 1
