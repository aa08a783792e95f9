"""Connection files: where a controller listens, with which keys, and whether it still lives.

What lives here: `ConnectionInfo`, saving and loading it with an error of its own for each thing
that can be wrong, the identity of a host, and the test whether the controller's process is still
there. What must not: sockets, and the making of key pairs (the controller's; here they are only
stored).

Theory of operation
-------------------
A controller writes one file for clients and one for engines when it is ready, and removes them when
it stops. A file is all that a peer needs, so it is a secret: it is written with rights 0600, into a
directory made with 0700, and `load_connection_file` refuses one that others may read or write, or
that belongs to somebody else, as ssh does with a private key: whoever can change the file can make
its reader unpickle what they like. Writing is atomic: a reader sees the old file, the new one or
none.

A crash leaves a file behind. On the same host the process id and its start time tell whether the
controller is the one that wrote it (`check_alive`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import Any

import msgspec

from . import __version__
from .errors import (
    ConnectionFileError,
    ConnectionFileInvalid,
    ConnectionFileMissing,
    ConnectionFilePermission,
    ConnectionFileStale,
    ConnectionFileUnreachable,
    ConnectionFileUnreadable,
    ConnectionFileVersion,
)
from .hosts import host_id, process_start
from .messages import PROTOCOL_VERSION
from .paths import FileRole

__all__ = [
    "CONNECTION_FORMAT",
    "ConnectionInfo",
    "check_alive",
    "host_id",
    "load_connection_file",
    "new_connection_info",
    "new_instance",
    "pick_url",
    "process_start",
    "remove_connection_file",
    "save_connection_file",
]

CONNECTION_FORMAT = 1
"""Raised when a reader of the format before could not use the file."""

FILE_MAX_BYTES = 64 * 1024
"""No connection file is larger."""

_POLL_S = 0.02
_INSTANCE = re.compile(r"[0-9a-f]{32}")
_START = "start a cluster with `ipcluster start -n 4`"


class ConnectionInfo(msgspec.Struct):
    """The content of a connection file.

    Attributes:
        format: `CONNECTION_FORMAT` of the writer.
        version: the writer's release.
        protocol: the writer's `messages.PROTOCOL_VERSION`.
        instance: 16 random bytes in hex; names this run of the controller.
        role: whose file it is.
        urls: where the controller listens, ``unix://`` first, then ``tcp://``.
        host: `host_id` of the controller.
        hostname: its host's name, for messages.
        location: the address at which other hosts reach it.
        pid, pid_start: its process, and when that started (`process_start`).
        blob_dir: the directory of the cluster's shared memory.
        cluster_id: the name of the cluster in its profile, often empty.
        ssh: the ssh server to tunnel through, or empty.
        server_public, public, secret: CURVE keys in z85; empty where there is no ``tcp://``.
        tunnel: where a tunnel to it begins on this host, once there is one; empty in files.
        heartbeat_s: an engine or agent that is silent for longer is taken for dead; 0 for never.
        recover_s: how long peers wait for a controller that died to be back at the same addresses;
            0 where nobody would start it again.
    """

    format: int
    version: str
    protocol: int
    instance: str
    role: FileRole
    urls: list[str]
    host: str
    hostname: str
    location: str
    pid: int
    pid_start: float
    blob_dir: str
    cluster_id: str
    ssh: str = ""
    server_public: str = ""
    public: str = ""
    secret: str = ""
    heartbeat_s: float = 30.0
    recover_s: float = 0.0
    tunnel: str = ""

    def __repr__(self) -> str:
        # Reprs end up in logs; the secret key must not.
        return f"<ConnectionInfo {self.role} of {self.instance[:12]} at {', '.join(self.urls)}>"


class _Head(msgspec.Struct):
    """What the files of all formats have in common."""

    format: int
    protocol: int
    version: str = "unknown"


def new_instance() -> str:
    """Return a fresh instance id: 16 random bytes in hex."""
    return os.urandom(16).hex()


def new_connection_info(
    *,
    instance: str,
    role: FileRole,
    urls: list[str],
    location: str = "",
    blob_dir: str = "",
    cluster_id: str = "",
    ssh: str = "",
    server_public: str = "",
    public: str = "",
    secret: str = "",
    heartbeat_s: float = 30.0,
    recover_s: float = 0.0,
) -> ConnectionInfo:
    """Return the description of a controller that is this process; for the arguments see the
    class.
    """
    hostname = socket.gethostname()
    return ConnectionInfo(
        format=CONNECTION_FORMAT,
        version=__version__,
        protocol=PROTOCOL_VERSION,
        instance=instance,
        role=role,
        urls=urls,
        host=host_id(),
        hostname=hostname,
        location=location or hostname,
        pid=os.getpid(),
        pid_start=process_start(os.getpid()),
        blob_dir=blob_dir,
        cluster_id=cluster_id,
        ssh=ssh,
        server_public=server_public,
        public=public,
        secret=secret,
        heartbeat_s=heartbeat_s,
        recover_s=recover_s,
    )


def save_connection_file(path: Path, info: ConnectionInfo) -> None:
    """Write a connection file, atomically, readable by nobody else.

    Missing directories are made with rights 0700; a directory named ``security`` gets them.

    Raises:
        ConnectionFileError: if it cannot be written. What was there before is still there then.
    """
    import tempfile  # with all that it imports

    content = msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n"
    temporary = ""
    try:
        _make_directory(path.parent)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError as error:
        raise ConnectionFileError(
            f"cannot write the connection file {path}: {error.strerror or error}; "
            "make its directory writable, or choose another one with --profile-dir"
        ) from error
    finally:
        if temporary:
            # After the replace there is nothing left to remove.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def load_connection_file(
    path: Path, *, timeout_s: float = 0, alive: bool = False
) -> ConnectionInfo:
    """Read and check a connection file.

    Args:
        path: the file.
        timeout_s: how long to wait for a file that is not there yet.
        alive: also require that `check_alive` finds the controller alive; within the timeout a
            stale file is taken for one that is about to be replaced.

    Raises:
        ConnectionFileMissing: there is none.
        ConnectionFilePermission: it may not be read, or others may read or write it.
        ConnectionFileInvalid: its content is not that of a connection file.
        ConnectionFileUnreadable: it cannot be read for another reason; base of the two above.
        ConnectionFileVersion: it is another release's, which speaks another protocol.
        ConnectionFileStale: with `alive`: its controller is gone.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            info = _decode(path, _read(path))
            if alive:
                check_alive(info)
        except (ConnectionFileMissing, ConnectionFileStale):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return info


def remove_connection_file(path: Path, instance: str) -> None:
    """Remove a connection file if this instance wrote it: not that of a successor. Idempotent."""
    try:
        if _decode(path, _read(path)).instance == instance:
            path.unlink(missing_ok=True)
    except ConnectionFileError:
        # Not there, or not one that we wrote.
        return


def check_alive(info: ConnectionInfo) -> None:
    """Check that the controller's process is there. Says nothing about a controller elsewhere.

    Raises:
        ConnectionFileStale: if it is gone, or its process id is another process's now.
    """
    if info.host != host_id():
        return
    try:
        start = process_start(info.pid)
    except ProcessLookupError:
        what = "has ended"
    else:
        if not info.pid_start or not start or abs(start - info.pid_start) < 0.05:
            return
        what = "has ended (its process id is another process's now)"
    name = f" (cluster id {info.cluster_id})" if info.cluster_id else ""
    raise ConnectionFileStale(
        f"the connection file is stale: the controller that wrote it{name}, process {info.pid}, "
        f"{what} without removing it; {_START}, which replaces the file"
    )


def pick_url(info: ConnectionInfo) -> str:
    """Return the address to connect to: ``unix://`` on the controller's host, ``tcp://`` elsewhere.

    On the same host ``tcp://`` is taken too where the socket's path is not there: file systems may
    be private though the host is the same.

    Raises:
        ConnectionFileUnreachable: if the controller does not listen for connections from this host.
    """
    if info.tunnel:
        return info.tunnel
    local = next((url for url in info.urls if url.startswith("unix://")), "")
    tcp = next((url for url in info.urls if url.startswith("tcp://")), "")
    if info.host == host_id() and local and (not tcp or os.path.exists(local[len("unix://") :])):
        return local
    if tcp:
        return tcp
    where = f"host {info.hostname}"
    if info.hostname == socket.gethostname():
        where += " before it was restarted, or in another container of it"
    raise ConnectionFileUnreachable(
        f"the controller was started on {where} and listens for local connections only; "
        "start it with `--ip=0.0.0.0` there to reach it from other hosts, or "
        f"{_START} on this one"
    )


def _make_directory(directory: Path) -> None:
    for parent in [*reversed(directory.parents), directory]:
        if not parent.exists():
            with contextlib.suppress(FileExistsError):
                parent.mkdir(mode=0o700)
    if directory.name == "security" and directory.stat().st_mode & 0o077:
        directory.chmod(0o700)


def _read(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO must not block.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ConnectionFileMissing(
            f"there is no connection file {path}: no cluster is running under this profile and "
            f"cluster id; {_START}, or give the path of a running cluster's file"
        ) from None
    except PermissionError:
        raise ConnectionFilePermission(
            f"the connection file {path} may not be read by this user: it is its owner's secret; "
            f"{_START} of your own, or ask the owner for a copy"
        ) from None
    except OSError as error:
        raise ConnectionFileUnreadable(
            f"the connection file {path} cannot be read: {error.strerror}"
        ) from None
    try:
        with open(fd, "rb") as file:
            _check_rights(path, os.fstat(fd))
            content = file.read(FILE_MAX_BYTES + 1)
    except ConnectionFileError:
        raise
    except OSError as error:
        raise ConnectionFileUnreadable(
            f"the connection file {path} cannot be read: {error.strerror}"
        ) from None
    if len(content) > FILE_MAX_BYTES:
        raise ConnectionFileInvalid(f"{path} is no connection file: it is far too large")
    return content


def _check_rights(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConnectionFileUnreadable(f"{path} is no connection file: it is not a regular file")
    if not hasattr(os, "geteuid"):
        return
    if os.geteuid() not in (0, found.st_uid):
        raise ConnectionFilePermission(
            f"the connection file {path} belongs to user {found.st_uid}, who could make this "
            "process run anything; copy it if you trust its owner"
        )
    if found.st_mode & 0o077:
        raise ConnectionFilePermission(
            f"the connection file {path} has rights {stat.filemode(found.st_mode)}: others than "
            f"its owner may read or change it, and it is a secret; run `chmod 600 {path}`"
        )


def _decode(path: Path, content: bytes) -> ConnectionInfo:
    try:
        head = msgspec.json.decode(content, type=_Head)
        if (head.format, head.protocol) != (CONNECTION_FORMAT, PROTOCOL_VERSION):
            raise ConnectionFileVersion(
                f"the connection file {path} was written by ipyfleet {head.version} (format "
                f"{head.format}, protocol {head.protocol}); this is ipyfleet {__version__} (format "
                f"{CONNECTION_FORMAT}, protocol {PROTOCOL_VERSION}): use the same release here and "
                "there, and start the cluster again"
            )
        info = msgspec.json.decode(content, type=ConnectionInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(path, str(error)) from None
    problem = _problem(info)
    if problem:
        raise _invalid(path, problem)
    return info


def _invalid(path: Path, problem: str) -> ConnectionFileInvalid:
    return ConnectionFileInvalid(
        f"{path} is no connection file of ipyfleet: {problem}; remove it and {_START}"
    )


def _problem(info: ConnectionInfo) -> str:
    """Return what is wrong with the values, or an empty string."""
    checks: dict[str, Any] = {
        "instance is not 32 hexadecimal digits": _INSTANCE.fullmatch(info.instance),
        "there is no address in it": info.urls,
        "an address is neither unix:// nor tcp://": all(
            url.startswith(("unix://", "tcp://")) for url in info.urls
        ),
        "the process id is not positive": info.pid > 0,
    }
    return next((problem for problem, fine in checks.items() if not fine), "")
