"""Starts, stops and finds ipyfleet clusters: Cluster, launchers, ipcluster."""

__version__ = "0.1.0"
