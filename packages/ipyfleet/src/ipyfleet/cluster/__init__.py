"""Clusters under the name that scripts import them by: ``ipyfleet.cluster``."""

from ipyfleet_cluster import Cluster, ClusterManager

__all__ = ["Cluster", "ClusterManager"]
