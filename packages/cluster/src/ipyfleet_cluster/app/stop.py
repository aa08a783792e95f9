"""``ipcluster stop``."""

from __future__ import annotations

from typing import Any

from traitlets import Bool

from ipyfleet_protocol import paths

from ..cluster import Cluster
from ..cluster_file import is_running, read_cluster_file
from ..errors import NoClusterFile
from ..leftovers import remove_all_leftovers
from .base import BASE_FLAGS, NO_CLUSTER, ClusterCommand

_FLAGS: dict[str, Any] = {
    **BASE_FLAGS,
    "all": ({"IPClusterStop": {"all": True}}, "Stop every cluster of the profile."),
}


class IPClusterStop(ClusterCommand):
    """Stop running clusters."""

    name = "ipcluster-stop"
    description = """Stop a running cluster and wait until it is gone; exit code 11 if there is
    none."""
    examples = """
ipcluster stop
ipcluster stop night
ipcluster stop --all
    """
    flags = _FLAGS
    all = Bool(False, help="Stop every cluster of the profile.").tag(config=True)

    def start(self) -> None:
        """Called by traitlets: stop what was asked for, and exit."""
        if self.all:
            for path in paths.cluster_files(self.directory):
                self._stop(Cluster.from_file(path, log=self.log))
            remove_all_leftovers(self.directory)
            self.exit(0)
        missing = [
            cluster_id
            for cluster_id in self.extra_args or [self.cluster_id]
            if not self._stop_by_id(cluster_id)
        ]
        self.exit(NO_CLUSTER if missing else 0)

    def _stop_by_id(self, cluster_id: str) -> bool:
        path = paths.cluster_file(self.directory, cluster_id)
        try:
            content = read_cluster_file(path)
        except NoClusterFile as error:
            self.complain(str(error))
            return False
        if not is_running(content):
            remove_all_leftovers(self.directory)
            self.complain(f"the cluster of {path} has ended; its files are removed now")
            return False
        self._stop(Cluster.from_dict(content, cluster_file=str(path), log=self.log))
        return True

    def _stop(self, cluster: Cluster) -> None:
        cluster.stop_cluster_sync()
        self.say(f"Stopped {cluster!r}.")
