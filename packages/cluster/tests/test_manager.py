from collections.abc import Callable
from pathlib import Path

import pytest

from ipyfleet_cluster import Cluster, ClusterManager

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def manager() -> ClusterManager:
    """Give a manager that knows nothing yet."""
    return ClusterManager()


def test_running_clusters_are_found_and_dropped_when_stopped(
    make_cluster: MakeCluster, manager: ClusterManager
):
    """Loading finds what runs, keeps objects it knows, and forgets what has stopped."""
    cluster = make_cluster(n=2, cluster_id="c")
    cluster.start_cluster_sync()
    found = manager.load_clusters(profile_dir=cluster.profile_dir)
    (key,) = found
    assert key.endswith(":c")
    assert manager.get_cluster(key).engines["1"].n == 2
    assert manager.load_clusters(profile_dir=cluster.profile_dir)[key] is found[key]
    cluster.stop_cluster_sync()
    assert manager.load_clusters(profile_dir=cluster.profile_dir) == {}


def test_all_profiles_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: ClusterManager
):
    """Without arguments every profile is looked at; each can have its stopped default cluster."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    for name in ("default", "other"):
        (tmp_path / f"profile_{name}").mkdir()
    assert manager.load_clusters() == {}
    assert sorted(manager.load_clusters(init_default_clusters=True)) == ["default:", "other:"]


def test_clusters_are_made_and_removed_by_key(tmp_path: Path, manager: ClusterManager):
    """new_cluster makes one per key, remove_cluster forgets it; wrong keys are KeyErrors."""
    place = {"profile_dir": str(tmp_path / "profile_p"), "cluster_id": "c"}
    key, cluster = manager.new_cluster(n=3, **place)
    assert key == "p:c"
    assert cluster.n == 3
    assert manager.get_cluster(key) is cluster
    with pytest.raises(KeyError, match="p:c"):
        manager.new_cluster(**place)
    manager.remove_cluster(key)
    for call in (manager.get_cluster, manager.remove_cluster):
        with pytest.raises(KeyError):
            call(key)


def test_unreadable_file_does_not_hide_the_others(
    make_cluster: MakeCluster, manager: ClusterManager
):
    """A broken cluster file is passed over with a warning."""
    cluster = make_cluster(n=1, cluster_id="good")
    cluster.start_cluster_sync()
    bad = Path(cluster.profile_dir) / "security" / "ipyfleet-cluster-bad.json"
    bad.write_text("{")
    assert len(manager.load_clusters(profile_dir=cluster.profile_dir)) == 1
