"""Cleaning up after processes that were killed.

A controller that exits removes its files itself. What one that was killed leaves (connection files,
the directory of its socket, its shared memory) is removed by whoever notices: the cluster that
started it when it stops, and the next start in the same profile. Only files of processes of this
host that are known to be gone are touched.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from ipyfleet_protocol import paths
from ipyfleet_protocol.blobs import remove_blob_dir
from ipyfleet_protocol.connection import ConnectionInfo, check_alive, load_connection_file
from ipyfleet_protocol.errors import ConnectionFileError, ConnectionFileStale
from ipyfleet_protocol.hosts import host_id

from .cluster_file import is_awaited, is_running, read_cluster_file, remove_cluster_file

_OURS = "ipyfleet-"


def remove_leftovers(profile_dir: Path, cluster_id: str) -> list[Path]:
    """Remove what a killed controller of this cluster left behind; return the files removed.

    Does nothing while the controller is alive. Called by the owner: nobody else starts it again.
    """
    files = [paths.connection_file(profile_dir, cluster_id, role) for role in ("client", "engine")]
    return [path for path in files if _remove_if_stale(path)]


def remove_all_leftovers(profile_dir: Path) -> list[Path]:
    """Remove what killed clusters of a profile left behind; return the files removed."""
    connection_files = paths.security_dir(profile_dir).glob("ipyfleet*.json")
    removed = [
        path
        for path in sorted(connection_files)
        if path.stem.endswith(("-client", "-engine"))
        and not _is_awaited(profile_dir, path)
        and _remove_if_stale(path)
    ]
    for path in paths.cluster_files(profile_dir):
        try:
            if is_running(read_cluster_file(path)):
                continue
        except FileNotFoundError:
            continue
        except ValueError:
            pass  # Nobody can use a file that cannot be read.
        remove_cluster_file(path)
        removed.append(path)
    return removed


def _is_awaited(profile_dir: Path, path: Path) -> bool:
    """Whether somebody is about to start the controller of a connection file again."""
    try:
        info = load_connection_file(path)
        return is_awaited(read_cluster_file(paths.cluster_file(profile_dir, info.cluster_id)))
    except (ConnectionFileError, FileNotFoundError, ValueError):
        return False


def _remove_if_stale(path: Path) -> bool:
    try:
        info = load_connection_file(path)
    except ConnectionFileError:
        # Not there, or none of ours to judge: the controller's own start says what to do then.
        return False
    if info.host != host_id():
        if info.hostname != socket.gethostname():
            return False
    else:
        try:
            check_alive(info)
        except ConnectionFileStale:
            pass
        else:
            return False
    _remove_directories(info)
    path.unlink(missing_ok=True)
    return True


def _remove_directories(info: ConnectionInfo) -> None:
    """Remove the directories that a connection file names, if their names are of our making."""
    for url in info.urls:
        scheme, _, socket_path = url.partition("://")
        directory = Path(socket_path).parent
        if scheme == "unix" and directory.name.startswith(_OURS):
            shutil.rmtree(directory, ignore_errors=True)
    if info.blob_dir and Path(info.blob_dir).name.startswith(_OURS):
        remove_blob_dir(Path(info.blob_dir))
