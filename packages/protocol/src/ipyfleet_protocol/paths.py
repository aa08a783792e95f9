"""Where things are: profile directories, connection files, sockets, shared memory.

What lives here: names only. What must not: reading or writing a file; nothing here touches the file
system but the functions that make and remove directories of sockets, which their owners call.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Literal, TypeAlias

FileRole: TypeAlias = Literal["client", "engine"]

SOCKET_DIR_MAX_BYTES = 70
"""Unix socket paths must stay below 100 bytes; the socket's own name and its slash need some."""

EMPTY_S = 60.0
"""How long a directory of sockets may be empty before it is nobody's."""

_NAME = re.compile(r"[^/\\\0]+")
_INSTANCE = re.compile(r"[0-9a-f]{8,64}")


def ipython_dir() -> Path:
    """Return ``$IPYTHONDIR``, or ``~/.ipython`` where that is not set."""
    configured = os.environ.get("IPYTHONDIR")
    return Path(configured or "~/.ipython").expanduser()


def profile_dir(
    profile: str | None = None,
    profile_dir: str | os.PathLike[str] | None = None,
    ipython_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the directory of a profile, absolute; it need not exist.

    Args:
        profile: the profile's name; "default" if None.
        profile_dir: the directory itself; wins over `profile`.
        ipython_dir: where the profiles are; by default what `ipython_dir` returns.

    Raises:
        ValueError: if the name cannot be part of a file name.
    """
    if profile_dir is not None:
        return Path(profile_dir).expanduser().absolute()
    name = "default" if profile is None else profile
    _check_name(name, "profile")
    base = _default_ipython_dir() if ipython_dir is None else Path(ipython_dir).expanduser()
    return base.absolute() / f"profile_{name}"


_default_ipython_dir = ipython_dir


def security_dir(profile_dir: Path) -> Path:
    """Return the directory of a profile's connection files."""
    return profile_dir / "security"


def connection_file(profile_dir: Path, cluster_id: str, role: FileRole) -> Path:
    """Return the path of a cluster's connection file for clients or for engines.

    Raises:
        ValueError: if `cluster_id` cannot be part of a file name, or ends like another file's.
    """
    return security_dir(profile_dir) / f"ipyfleet{_infix(cluster_id)}-{role}.json"


def cluster_file(profile_dir: Path, cluster_id: str) -> Path:
    """Return the path of the file in which a `Cluster` describes itself.

    Raises:
        ValueError: as `connection_file`.
    """
    _infix(cluster_id)
    return security_dir(profile_dir) / f"ipyfleet-cluster-{cluster_id}.json"


def cluster_files(profile_dir: Path) -> list[Path]:
    """Return the cluster files that are in a profile, sorted; no connection files among them."""
    found = security_dir(profile_dir).glob("ipyfleet-cluster-*.json")
    return sorted(path for path in found if not path.stem.endswith(("-client", "-engine")))


def log_dir(profile_dir: Path) -> Path:
    """Return the directory of a profile's log files."""
    return profile_dir / "log"


def runtime_dir(instance: str) -> Path:
    """Return the directory of a cluster instance's sockets; short enough for a socket's path.

    In ``$XDG_RUNTIME_DIR`` where that is a directory of ours and not too long, else in ``/tmp``.
    Whoever binds there makes it with `make_private_dir`.

    Raises:
        ValueError: if `instance` is not hexadecimal.
    """
    short = _short(instance)
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    if configured.startswith("/"):
        path = Path(configured) / f"ipyfleet-{short}"
        if len(os.fsencode(path)) <= SOCKET_DIR_MAX_BYTES and _is_own_dir(configured):
            return path
    return Path("/tmp") / f"ipyfleet-{os.getuid()}-{short}"


def blob_dir(instance: str) -> Path:
    """Return the directory of a cluster instance's shared memory; `blobs.BlobStore` makes it.

    In ``$IPYFLEET_SHM_DIR`` where that is set (to a directory on a file system in memory), else in
    ``/dev/shm``.

    Raises:
        ValueError: if `instance` is not hexadecimal.
    """
    base = os.environ.get("IPYFLEET_SHM_DIR") or "/dev/shm"
    return Path(base) / f"ipyfleet-{os.getuid()}-{_short(instance)}"


def make_private_dir(path: Path) -> Path:
    """Make a directory with rights 0700, and its parents; return it.

    What is there already is used if it is a directory of ours that nobody else may write to: anyone
    could have put one into ``/tmp`` under this name before us.

    Raises:
        PermissionError: if it is somebody else's, a symbolic link, or can be written to by others.
        OSError: if it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise PermissionError(f"{path} is in the way: it is not a directory") from None
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"{path} is not private: it belongs to user {found.st_uid} and has rights "
                f"{stat.filemode(found.st_mode)}; remove it, or run `chmod 700 {path}`"
            ) from None
    return path


def remove_runtime_dir(path: Path) -> None:
    """Remove a directory of sockets with its content; several processes may do so at a time.

    Raises:
        OSError: if it cannot be removed.
    """
    from shutil import rmtree

    while True:
        try:
            rmtree(path)
        except FileNotFoundError:
            # Another process has removed a file of it, or all.
            if not path.exists():
                return
        else:
            return


def remove_empty_runtime_dirs(beside: Path) -> None:
    """Remove what processes left that were killed after they had made a directory of sockets and
    before there was one in it, or the other way round.

    Args:
        beside: a directory of sockets, which stays.
    """
    kind, _, _ = beside.name.rpartition("-")
    for path in beside.parent.glob(f"{kind}-*"):
        try:
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if is_ours and path != beside and found.st_mtime < time.time() - EMPTY_S:
                path.rmdir()
        except OSError:
            continue  # There is something in it, or it is gone.


def _is_own_dir(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _infix(cluster_id: str) -> str:
    if not cluster_id:
        return ""
    _check_name(cluster_id, "cluster id")
    if cluster_id.endswith(("-client", "-engine")):
        raise ValueError(f"not a cluster id: {cluster_id!r}; it must not end in -client or -engine")
    return f"-{cluster_id}"


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or len(os.fsencode(name)) > 200:
        raise ValueError(
            f"not a {what}: {name!r}; it becomes part of a file's name, "
            "so it has 1 to 200 bytes and no slash"
        )


def _short(instance: str) -> str:
    if not _INSTANCE.fullmatch(instance):
        raise ValueError(f"not a cluster instance: {instance!r}; it is 32 hexadecimal digits")
    return instance[:12]
