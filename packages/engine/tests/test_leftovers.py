"""What is removed of a controller that is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipyfleet_engine.leftovers import remove_ownerless
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    new_connection_info,
    new_instance,
    save_connection_file,
)
from ipyfleet_protocol.hosts import host_id, process_start


@pytest.fixture
def dead(tmp_path: Path) -> tuple[ConnectionInfo, Path]:
    """Give a connection file whose controller is gone."""
    info = new_connection_info(
        instance=new_instance(), role="engine", urls=["unix://nowhere/router"], cluster_id="c"
    )
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    info.pid = process.pid
    file = tmp_path / "ipyfleet-c-engine.json"
    save_connection_file(file, info)
    return info, file


def write_owner(folder: Path, pid: int, started: float) -> Path:
    """Write what is needed of a cluster file."""
    file = folder / "ipyfleet-cluster-c.json"
    owner = {"pid": pid, "started": started}
    file.write_text(json.dumps({"host": host_id(), "owner": owner}))
    return file


def test_nobody_is_left(dead: tuple[ConnectionInfo, Path]) -> None:
    """When owner and controller are gone, connection and cluster files go, too."""
    info, file = dead
    cluster_file = write_owner(file.parent, info.pid, 1.0)
    remove_ownerless(info, file)
    assert not file.exists()
    assert not cluster_file.exists()


def test_an_owner_starts_it_again(dead: tuple[ConnectionInfo, Path]) -> None:
    """A controller that is dead for now needs its files: only one of its agents' owners is gone."""
    info, file = dead
    cluster_file = write_owner(file.parent, os.getpid(), process_start(os.getpid()))
    remove_ownerless(info, file)
    assert file.exists()
    assert cluster_file.exists()


def test_a_controller_that_lives(dead: tuple[ConnectionInfo, Path]) -> None:
    """It removes its files itself, and until then they are needed."""
    info, file = dead
    info.pid, info.pid_start = os.getpid(), process_start(os.getpid())
    save_connection_file(file, info)
    cluster_file = write_owner(file.parent, 2**22 + 1, 1.0)
    remove_ownerless(info, file)
    assert file.exists()
    assert cluster_file.exists()
