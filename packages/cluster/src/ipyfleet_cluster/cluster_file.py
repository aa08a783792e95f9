"""The cluster file: how a running cluster is found by other processes.

What lives here: the form of the file, reading and writing it, and the question whether what it
describes still runs. What must not: starting and stopping.

A cluster file is JSON, readable by its owner only, in the profile's ``security`` directory::

    {"format": 1,
     "host": "<host id>", "hostname": "node1",
     "owner": {"pid": 1, "started": 2.5},
     "supervised": true,
     "guarded": true,
     "cluster": {"class": "<its path>", "cluster_id": "", "profile_dir": "/…", "n": 4},
     "controller": {"class": "local", "state": {…}, "restarts": 0} | null,
     "engines": {"class": "local", "sets": {"1": {…}}}}

`supervised`: the owner does nothing but look after the cluster; `guarded`: it starts a controller
that died again. The file is first written before anything is started, so that of two who start the
same cluster only one succeeds; it is replaced whenever something starts or stops and removed when
nothing runs any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from ipyfleet_protocol import paths
from ipyfleet_protocol.hosts import host_id

from .errors import ClusterRunning, NoClusterFile
from .processes import ProcessRef

FORMAT = 1

ClusterDict = dict[str, Any]
"""The content of a cluster file (module docstring)."""


def write_cluster_file(path: Path, content: ClusterDict) -> None:
    """Write a cluster file, atomically."""
    temporary = _write_temporary(path, content)
    os.replace(temporary, path)


def claim_cluster_file(path: Path, content: ClusterDict) -> None:
    """Write a cluster file where there is none; replace that of a cluster which is gone.

    Raises:
        ClusterRunning: a cluster with this file is running, or being started.
    """
    temporary = _write_temporary(path, content)
    try:
        while True:
            try:
                os.link(temporary, path)
            except FileExistsError:
                try:
                    found = read_cluster_file(path)
                except FileNotFoundError:
                    continue
                except ValueError:
                    found = {}  # Unreadable, so nobody can be using it.
                if is_running(found):
                    raise ClusterRunning(describe_running(found)) from None
                path.unlink(missing_ok=True)
            else:
                return
    finally:
        os.unlink(temporary)


def _write_temporary(path: Path, content: ClusterDict) -> str:
    paths.make_private_dir(path.parent)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    return temporary


def read_cluster_file(path: Path) -> ClusterDict:
    """Read a cluster file.

    Raises:
        NoClusterFile: it is not there.
        ValueError: it is no cluster file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoClusterFile(
            f"there is no cluster file {path}: no cluster is running under this profile and "
            "cluster id; start one with `ipcluster start -n 4`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no cluster file: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no cluster file of this release")
    return content


def remove_cluster_file(path: Path) -> None:
    """Remove a cluster file; does nothing where there is none."""
    path.unlink(missing_ok=True)


def owner_fields() -> ClusterDict:
    """Return the fields of a cluster file that say whose it is: this process's."""
    return {
        "host": host_id(),
        "hostname": socket.gethostname(),
        "owner": ProcessRef.of(os.getpid()).to_dict(),
    }


def is_running(content: ClusterDict) -> bool:
    """Whether a process of the cluster runs, or is about to be started.

    A cluster on another host cannot be looked at from here and counts as running; one that was left
    by an earlier boot of this host does not run.
    """
    host = content.get("host")
    if host != host_id():
        return bool(host) and content.get("hostname") != socket.gethostname()
    return any(process.is_alive() for process in processes_of(content))


def is_awaited(content: ClusterDict) -> bool:
    """Whether the controller is started again when it is dead: its files are needed then."""
    if not content.get("guarded") or content.get("host") != host_id():
        return False
    with contextlib.suppress(ValueError):
        return ProcessRef.from_dict(content.get("owner")).is_alive()
    return False


def processes_of(content: ClusterDict) -> list[ProcessRef]:
    """Return the processes that a cluster file names, whether they run or not.

    The owner counts as long as it has not started a controller (it is about to), when it supervises
    and when it starts a controller that died again.
    """
    controller = content.get("controller")
    states = [controller["state"]] if controller else []
    states += (content.get("engines") or {}).get("sets", {}).values()
    if content.get("supervised") or content.get("guarded") or not controller:
        states.append(content.get("owner"))
    found = []
    for state in states:
        # Launchers that start no local process have states of another form.
        with contextlib.suppress(ValueError):
            found.append(ProcessRef.from_dict(state))
    return found


def describe_running(content: ClusterDict) -> str:
    """Say which cluster is running already, and what to do."""
    cluster = content.get("cluster", {})
    cluster_id = cluster.get("cluster_id", "")
    name = f"cluster {cluster_id!r}" if cluster_id else "the default cluster"
    option = f" --cluster-id={cluster_id}" if cluster_id else ""
    return (
        f"{name} is already running in {cluster.get('profile_dir')}: connect to it, stop it with "
        f"`ipcluster stop{option}`, or start another one with a different --cluster-id"
    )
