"""``ipcluster engines``."""

from __future__ import annotations

from typing import Any

from ..cluster import Cluster
from ..errors import NoClusterFile
from ..launchers.local import LocalEngineLauncher
from .foreground import ForegroundCommand
from .supervise import Supervisor

_CLASSES: list[Any] = [Cluster, LocalEngineLauncher]


class IPClusterEngines(ForegroundCommand):
    """Start engines for a cluster that is running already."""

    name = "ipcluster-engines"
    subcommand = "engines"
    description = "Start more engines for a running cluster, on this host, until Ctrl-C."
    examples = "ipcluster engines -n 4"
    classes = _CLASSES

    async def run(self, supervisor: Supervisor) -> int:
        """Start engines, look after them, stop them."""
        cluster = self._find_cluster()
        set_id = await cluster.start_engines()
        launcher = cluster.engines[set_id]
        try:
            await supervisor.run(self._wait_ready(cluster, launcher))
            self._report(0, f"{launcher.n} more engines are ready.")
            ended = await supervisor.wait_end([launcher])
            code = 0
            if ended is not None and ended.exit_status != 0:
                self.complain(ended.describe_end())
                code = 1
        finally:
            await cluster.stop_engines(set_id)
        self.say("Stopped.")
        return code

    def _find_cluster(self) -> Cluster:
        try:
            cluster = Cluster.from_file(
                profile_dir=self.directory, cluster_id=self.cluster_id, parent=self
            )
        except NoClusterFile:
            # The controller may be elsewhere, and only its connection file be here.
            cluster = Cluster(
                parent=self,
                profile_dir=str(self.directory),
                cluster_id=self.cluster_id,
                cluster_file="",
            )
        # These engines are this process's, whoever owns the rest, and as many as it was told.
        cluster.shutdown_atexit = True
        cluster.n = Cluster(parent=self).n
        return cluster

    async def _wait_ready(self, cluster: Cluster, launcher: LocalEngineLauncher) -> None:
        rc = await cluster.connect_client()
        try:
            await cluster.wait_for_engines(rc)
        finally:
            rc.close()
