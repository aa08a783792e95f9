import os
import stat
from pathlib import Path

import pytest

from ipyfleet_cluster.cluster_file import (
    claim_cluster_file,
    is_running,
    owner_fields,
    read_cluster_file,
    write_cluster_file,
)
from ipyfleet_cluster.errors import ClusterRunning, NoClusterFile

DEAD = {"pid": 2**22 - 1, "started": 1.0}


def _content(**changes: object) -> dict[str, object]:
    return {
        "format": 1,
        **owner_fields(),
        "supervised": False,
        "cluster": {"cluster_id": "x", "profile_dir": "/p", "n": 1},
        "controller": None,
        "engines": None,
        **changes,
    }


def test_file_is_private_and_reads_back(tmp_path: Path):
    """What is written is read back, and nobody else may read it."""
    path = tmp_path / "security" / "c.json"
    write_cluster_file(path, _content())
    assert read_cluster_file(path) == _content()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["c.json"]


def test_running_cluster_keeps_its_file(tmp_path: Path):
    """Of two that claim one file, the second is told what is running and changes nothing."""
    path = tmp_path / "c.json"
    claim_cluster_file(path, _content())
    with pytest.raises(ClusterRunning, match=r"'x' is already running in /p.*ipcluster stop"):
        claim_cluster_file(path, _content(supervised=True))
    assert read_cluster_file(path) == _content()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("old", ["{}", "not json", '{"format": 1, "owner": 3}'])
def test_unusable_file_is_replaced(tmp_path: Path, old: str):
    """A file that nobody can use does not keep a cluster from starting."""
    path = tmp_path / "c.json"
    path.write_text(old)
    claim_cluster_file(path, _content())
    assert read_cluster_file(path) == _content()


def test_dead_clusters_file_is_replaced(tmp_path: Path):
    """The file of a cluster whose processes are gone is taken over, though its owner lives."""
    path = tmp_path / "c.json"
    claim_cluster_file(path, _content(controller={"class": "local", "state": DEAD}))
    claim_cluster_file(path, _content())
    assert read_cluster_file(path)["controller"] is None


def test_who_counts_as_running():
    """Controller, engines and a supervisor count; an owner only until it has a controller."""
    alive = owner_fields()["owner"]
    gone = {"class": "local", "state": DEAD}
    assert is_running(_content())
    assert not is_running(_content(owner=DEAD))
    assert not is_running(_content(controller=gone))
    assert is_running(_content(controller=gone, supervised=True))
    assert is_running(_content(controller={"class": "local", "state": alive}, owner=DEAD))
    assert is_running(
        _content(controller=gone, engines={"class": "local", "sets": {"1": alive}}, owner=DEAD)
    )
    assert not is_running({})


def test_other_host_counts_as_running_and_an_earlier_boot_does_not():
    """A cluster that cannot be looked at is left alone; one from before a restart is gone."""
    assert is_running(_content(host="another", hostname="elsewhere", owner=DEAD))
    assert not is_running(_content(host="another", owner=owner_fields()["owner"]))


def test_missing_file_says_what_to_do(tmp_path: Path):
    """Reading a file that is not there names it and the command that starts a cluster."""
    with pytest.raises(NoClusterFile, match=r"c\.json.*ipcluster start"):
        read_cluster_file(tmp_path / "c.json")


def test_wrong_content_is_refused(tmp_path: Path):
    """A file of another format or of no format is a ValueError that names it."""
    path = tmp_path / "c.json"
    for text in ("[", "[]", '{"format": 99}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"c\.json is no cluster file"):
            read_cluster_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no cluster file"):
        read_cluster_file(path)
    assert os.path.exists(path)
