"""The fixtures of the test kit, with real clusters; the plugin checks that nothing is left."""

import os
from typing import TYPE_CHECKING

import psutil

from ipyfleet_testing import wait_until

if TYPE_CHECKING:
    from ipyfleet_client import Client
    from ipyfleet_cluster import Cluster
    from ipyfleet_testing.cluster import ClusterFactory

CLUSTER_ENGINES = 3


def test_the_modules_cluster_has_as_many_engines_as_asked_for(client: "Client") -> None:
    """The module's constant says how many engines `cluster` starts."""
    assert client.ids == [0, 1, 2]
    client[:]["kept"] = 7


def test_the_modules_cluster_is_shared(client: "Client", cluster: "Cluster") -> None:
    """The next test has a client of its own, on the same engines."""
    assert client[:]["kept"] == [7, 7, 7]
    assert client.ids == [0, 1, 2]


def test_a_factory_makes_clusters_that_end_with_the_test(cluster_factory: "ClusterFactory") -> None:
    """Two clusters side by side do not see each other, and their engines are real processes."""
    first, second = cluster_factory(n=1), cluster_factory(n=1)
    pids = []
    for made in (first, second):
        with made.connect_client_sync() as client:
            pids += client[:].apply_sync(os.getpid)
    assert len(set(pids)) == 2
    assert all(psutil.pid_exists(pid) for pid in pids)
    first.stop_cluster_sync()
    wait_until(lambda: not psutil.pid_exists(pids[0]), 5, "the first cluster's engine to end")
    assert psutil.pid_exists(pids[1])
