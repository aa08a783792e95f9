"""Which cluster a client is to connect to.

What lives here: the way from the constructor's arguments to a connection file's content. What must
    not:
sockets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipyfleet_protocol.connection import ConnectionInfo, load_connection_file
from ipyfleet_protocol.errors import ConnectionFileMissing, ConnectionFileStale
from ipyfleet_protocol.paths import connection_file, profile_dir

RESTART_S = 3.0
"""A controller that died is back by then, if anybody starts it again."""


def find_connection(
    connection_info: str | os.PathLike[str] | Mapping[str, Any] | ConnectionInfo | None = None,
    *,
    profile: str | None = None,
    profile_directory: str | os.PathLike[str] | None = None,
    ipython_dir: str | os.PathLike[str] | None = None,
    cluster_id: str = "",
    timeout_s: float = 10,
) -> ConnectionInfo:
    """Return the connection information that the arguments of `Client` mean.

    Waits for a file that is not there yet, and says so.

    Raises:
        ValueError: an address was given instead of a file.
        TypeError: `connection_info` is nothing that it can be, or `timeout_s` no number.
        ConnectionFileError: the file is missing, unreadable or of another version; an OSError.
    """
    if not hasattr(timeout_s, "__float__"):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout_s).__name__}")
    if isinstance(connection_info, ConnectionInfo):
        return connection_info
    if isinstance(connection_info, Mapping):
        try:
            return msgspec.convert(dict(connection_info), ConnectionInfo)
        except msgspec.ValidationError as error:
            raise ValueError(f"not the content of a connection file: {error}") from None
    if isinstance(connection_info, str) and "://" in connection_info:
        raise ValueError(
            f"{connection_info!r} is an address; a client needs the connection file, which has "
            "the keys, too: give its path, or profile= and cluster_id="
        )
    if connection_info is None:
        directory = profile_dir(profile, profile_directory, ipython_dir)
        path = connection_file(directory, cluster_id, "client")
    elif isinstance(connection_info, str | os.PathLike):
        path = Path(connection_info).expanduser()
    else:
        raise TypeError(
            "connection_info is the path of a connection file or its content, not "
            f"{type(connection_info).__name__}"
        )
    return _load(path, timeout_s)


def _wait_restart(path: Path, timeout_s: float) -> ConnectionInfo:
    """Wait for a controller that died and is started again if its owner is still there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return load_connection_file(path, alive=True)
        except ConnectionFileStale:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _load(path: Path, timeout_s: float) -> ConnectionInfo:
    started = time.monotonic()
    try:
        return load_connection_file(path, alive=True)
    except ConnectionFileMissing:
        if timeout_s <= 0:
            raise
    except ConnectionFileStale:
        if not load_connection_file(path).recover_s:
            raise
        return _wait_restart(path, min(timeout_s, RESTART_S))
    print(f"Waiting for connection file: {path}")
    left = max(0.0, timeout_s - (time.monotonic() - started))
    return load_connection_file(path, timeout_s=left, alive=True)
