from pathlib import Path

import msgspec
import pytest

from ipyfleet_cluster.leftovers import remove_all_leftovers, remove_leftovers
from ipyfleet_protocol import paths
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    new_connection_info,
    new_instance,
    save_connection_file,
)


def _leave(profile: Path, cluster_id: str = "c", **changes: object) -> tuple[Path, Path, Path]:
    """Leave what a controller leaves; return its connection file, socket and memory directories."""
    instance = new_instance()
    runtime = paths.make_private_dir(paths.runtime_dir(instance))
    (runtime / "router").touch()
    blobs = paths.make_private_dir(paths.blob_dir(instance))
    (blobs / f"{32 * '0'}-0").touch()
    info: ConnectionInfo = new_connection_info(
        instance=instance,
        role="client",
        urls=[f"unix://{runtime}/router"],
        blob_dir=str(blobs),
        cluster_id=cluster_id,
    )
    path = paths.connection_file(profile, cluster_id, "client")
    save_connection_file(path, msgspec.structs.replace(info, **changes))
    return path, runtime, blobs


DEAD = {"pid": 2**22 - 1, "pid_start": 1.0}


def test_dead_controllers_files_are_removed(tmp_path: Path):
    """File, socket directory and shared memory of a controller that is gone are removed."""
    left = _leave(tmp_path, **DEAD)
    assert remove_leftovers(tmp_path, "c") == [left[0]]
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("changes", [{}, {"host": "another", "hostname": "elsewhere", **DEAD}])
def test_live_and_foreign_controllers_are_left_alone(tmp_path: Path, changes: dict[str, object]):
    """What belongs to a live controller, or to one on another host, is not touched."""
    left = _leave(tmp_path, **changes)
    assert remove_leftovers(tmp_path, "c") == []
    assert remove_all_leftovers(tmp_path) == []
    assert all(path.exists() for path in left)
    for directory in left[1:]:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def test_earlier_boot_of_this_host_is_gone(tmp_path: Path):
    """A controller of this host before it was restarted cannot be alive."""
    left = _leave(tmp_path, host="before the restart", **DEAD)
    assert remove_all_leftovers(tmp_path) == [left[0]]
    assert not any(path.exists() for path in left)


def test_directories_of_other_names_are_not_touched(tmp_path: Path):
    """A connection file cannot make us remove a directory that is not of our making."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").touch()
    path, runtime, blobs = _leave(
        tmp_path, urls=[f"unix://{mine}/router"], blob_dir=str(mine), **DEAD
    )
    remove_leftovers(tmp_path, "c")
    assert not path.exists()
    assert (mine / "thesis").exists()
    for directory in (runtime, blobs):
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def test_unusable_files(tmp_path: Path):
    """A connection file that cannot be read is left for the controller's start to judge."""
    path = paths.connection_file(tmp_path, "c", "client")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert remove_leftovers(tmp_path, "c") == []
    assert path.exists()
    assert remove_leftovers(tmp_path, "not there") == []
