"""Removing what a controller left that was killed and did not come back.

What lives here: `remove_traces`, and whether somebody would start it again. What must not: anything
that a living controller may need.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ipyfleet_protocol.blobs import remove_blob_dir
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    check_alive,
    load_connection_file,
    remove_connection_file,
)
from ipyfleet_protocol.errors import ConnectionFileError, ConnectionFileStale
from ipyfleet_protocol.hosts import host_id, process_start
from ipyfleet_protocol.paths import remove_runtime_dir, runtime_dir

_OURS = "ipyfleet-"


def remove_traces(info: ConnectionInfo, file: Path) -> bool:
    """Remove shared memory, socket and connection files of a controller that is dead.

    Args:
        info: its connection file's content.
        file: the connection file; the client's lies beside it.

    Returns:
        Whether the controller is known to be dead: it was of this host, and its process is gone.
    """
    if info.host != host_id():
        return False
    # It may have been started again since: the file has another process id then.
    with contextlib.suppress(ConnectionFileError):
        now = load_connection_file(file)
        info = now if now.instance == info.instance else info
    try:
        check_alive(info)
    except ConnectionFileStale:
        pass
    else:
        return False
    if Path(info.blob_dir).name.startswith(_OURS):
        remove_blob_dir(Path(info.blob_dir))
    remove_runtime_dir(runtime_dir(info.instance))
    for path in (file, file.with_name(file.name.replace("-engine.json", "-client.json"))):
        remove_connection_file(path, info.instance)
    return True


def remove_ownerless(info: ConnectionInfo, file: Path) -> None:
    """Remove the traces of a dead controller, and its cluster file, if nobody looks after it.

    Called when whoever started an agent is gone, which need not be who started the controller.

    Args:
        info: the connection file's content.
        file: the connection file; the cluster file lies beside it.
    """
    cluster_file = file.with_name(f"ipyfleet-cluster-{info.cluster_id}.json")
    try:
        content = json.loads(cluster_file.read_text(encoding="utf-8"))
        owner = content["owner"]
        if content["host"] != host_id() or process_start(owner["pid"]) == owner["started"]:
            return
    except (FileNotFoundError, ProcessLookupError):
        pass  # There is no owner, or none any more.
    except (ValueError, KeyError, TypeError):
        return  # Nothing that could be judged.
    if remove_traces(info, file):
        cluster_file.unlink(missing_ok=True)
