"""``ipcluster list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from traitlets import Enum

from ..cluster import Cluster
from ..launchers.registry import abbreviate_launcher_class
from ..manager import ClusterManager
from .base import BASE_ALIASES, ClusterCommand

_HEADERS = ("PROFILE", "CLUSTER ID", "RUNNING", "RESTARTS", "ENGINES", "LAUNCHER")


_ALIASES: dict[str, Any] = {**BASE_ALIASES, "o": "IPClusterList.output_format"}


class IPClusterList(ClusterCommand):
    """List running clusters."""

    name = "ipcluster-list"
    description = """List the running clusters of all profiles, or of the one that is given."""
    examples = """
ipcluster list
ipcluster list -o json
    """
    aliases = _ALIASES
    output_format = Enum(["text", "json"], "text", help="How to print the list.").tag(config=True)

    def start(self) -> None:
        """Called by traitlets: print the list."""
        asked = [self.directory] if self.profile or self.profile_dir else None
        clusters = ClusterManager(log=self.log).load_clusters(profile_dirs=asked)
        rows = [_describe(cluster) for cluster in clusters.values()]
        if self.output_format == "json":
            print(json.dumps(rows, indent=2))
        else:
            print(_table(rows))


def _describe(cluster: Cluster) -> dict[str, Any]:
    first = cluster.engine_set
    controller = cluster.controller
    return {
        "profile": Path(cluster.profile_dir).name.removeprefix("profile_"),
        "profile_dir": cluster.profile_dir,
        "cluster_id": cluster.cluster_id,
        "running": controller is not None and controller.is_running,
        "restarts": cluster.restarts,
        "engines": sum(launcher.n for launcher in cluster.engines.values()),
        "launcher": abbreviate_launcher_class("engine", type(first)) if first else "",
        "cluster_file": cluster.cluster_file,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    keys = ("profile", "cluster_id", "running", "restarts", "engines", "launcher")
    lines = [_HEADERS, *(tuple(str(row[key]) or "''" for key in keys) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADERS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
