"""What can go wrong with the processes of a cluster.

What lives here: the exceptions of this package. Those of tasks, connections and connection files
are in `ipyfleet_protocol.errors`.
"""

from __future__ import annotations


class LauncherError(RuntimeError):
    """A process of the cluster could not be started, or ended when it should not have.

    The message ends with the last lines of the process's log, where there are any.
    """


class NotRunning(LauncherError):
    """The process that a cluster file speaks of is gone."""


class ClusterRunning(RuntimeError):
    """A cluster with this id is running in this profile already."""


class NoClusterFile(FileNotFoundError):
    """No cluster with this id is known in this profile."""
