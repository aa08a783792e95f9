"""Starts, stops and finds ipyfleet clusters: Cluster, launchers, ipcluster."""

from .cluster import Cluster
from .errors import ClusterRunning, LauncherError, NoClusterFile, NotRunning
from .manager import ClusterManager, clean_cluster_files

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "ClusterManager",
    "ClusterRunning",
    "LauncherError",
    "NoClusterFile",
    "NotRunning",
    "__version__",
    "clean_cluster_files",
]
