"""Where a controller listens and what it leaves on disk: sockets, connection files, shared memory.

What lives here: `ControllerSite`. `open` takes everything, `close` removes it; nothing else in
the package writes files. What must not: the loop.
"""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ipyfleet_protocol.blobs import remove_blob_dir
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    check_alive,
    load_connection_file,
    new_connection_info,
    new_instance,
    remove_connection_file,
    save_connection_file,
)
from ipyfleet_protocol.errors import ConnectionFileError, ConnectionFileStale
from ipyfleet_protocol.local import local_url
from ipyfleet_protocol.paths import (
    FileRole,
    blob_dir,
    connection_file,
    make_private_dir,
    remove_empty_runtime_dirs,
    remove_runtime_dir,
    runtime_dir,
)

from .doors import Doors
from .hub.journal import KeysKept, Recollection, recall
from .journal import JournalFile, read_journal

if TYPE_CHECKING:
    from .curve import KeyRing
    from .tcp import TcpDoor

log = logging.getLogger("ipyfleet.controller")

JOURNAL = "peers.journal"
"""Name of the journal in the socket's directory."""

SOCKET = "router"
"""Name of the socket in its directory."""

LINGER_S = 0.5
"""How long what was sent last may take to leave after the end."""

_KEYED: tuple[FileRole, FileRole] = ("client", "engine")

ROLES: tuple[FileRole, ...] = ("engine", "client")


class SiteError(Exception):
    """The controller cannot start here; the text is one line for people."""


class ControllerSite:
    """One controller's place in the file system and on the network.

    Attributes:
        instance: id of this run, hex.
        ssh_servers: through which peers on other hosts are to come; by role, empty for directly.
        heartbeat_s: silence after which an engine is taken for dead; 0 for never.
        journal: where it is written down who is here, after `open`.
        past: what the controller has left whose place this one takes; None if there was none.
    """

    def __init__(
        self,
        profile_dir: Path,
        cluster_id: str = "",
        ip: str = "",
        port: int = 0,
        location: str = "",
        heartbeat_s: float = 30.0,
        *,
        recover_s: float = 0.0,
        resume: bool = False,
    ) -> None:
        """Choose a place; nothing is touched.

        Args:
            profile_dir: whose connection files to write.
            cluster_id: name of the cluster in the profile.
            ip: address for other hosts to connect to, ``*`` for all; empty for this host only.
            port: TCP port, 0 for any free one.
            location: the address that other hosts use, where it is not `ip`.
            heartbeat_s: silence after which an engine is taken for dead; 0 for never.
            recover_s: how long peers wait for the controller to be started again if it dies.
            resume: take the place of a controller that died here, if one did.
        """
        self.instance = new_instance()
        self.blob_dir = blob_dir(self.instance)
        self._runtime_dir = runtime_dir(self.instance)
        self._files = {role: connection_file(profile_dir, cluster_id, role) for role in ROLES}
        self._cluster_id = cluster_id
        self._ip = ip
        self._port = port
        self._location = location
        self.heartbeat_s = heartbeat_s
        self._recover_s = recover_s
        self._resume = resume
        self._is_open = False
        self._is_kept = False
        self.past: Recollection | None = None
        self.journal: JournalFile
        self.ssh_servers: dict[FileRole, str] = {}
        self._keys: KeyRing | None = None
        self._urls: list[str] = []
        self._doors: Doors | None = None

    @property
    def doors(self) -> Doors:
        """Through which peers come, after `open`."""
        assert self._doors is not None
        return self._doors

    def open(self) -> None:
        """Listen; peers can connect, but nobody knows where until `publish`.

        Raises:
            SiteError: if a live controller is here already, or the port or a directory cannot be
            had.
        """
        if self._resume:
            self._take_over()
        if self.past is None:
            self._evict_stale()
        try:
            make_private_dir(self._runtime_dir)
            remove_empty_runtime_dirs(self._runtime_dir)
            path = self._runtime_dir / SOCKET
            path.unlink(missing_ok=True)  # of one that died, and whose place this one takes
            self._doors = Doors(path)
            self._urls.append(local_url(path))
            if self._ip:
                self._doors.add_tcp(self._open_tcp())
            self._open_journal()
            self._is_open = True
        except OSError as error:
            raise SiteError(f"cannot use {self._runtime_dir}: {error}") from error

    def publish(self) -> None:
        """Write the connection files.

        Raises:
            SiteError: if they cannot be written.
        """
        try:
            for role, path in self._files.items():
                save_connection_file(path, self.info(role))
        except ConnectionFileError as error:
            raise SiteError(str(error)) from error

    def info(self, role: FileRole) -> ConnectionInfo:
        """Return the content of a role's connection file."""
        keys = self._keys
        return new_connection_info(
            instance=self.instance,
            role=role,
            urls=self._urls,
            location=self._location,
            blob_dir=str(self.blob_dir),
            cluster_id=self._cluster_id,
            heartbeat_s=self.heartbeat_s,
            recover_s=self._recover_s,
            ssh=self.ssh_servers.get(role, ""),
            server_public=keys.server.public.decode() if keys else "",
            public=keys.of(role).public.decode() if keys else "",
            secret=keys.of(role).secret.decode() if keys else "",
        )

    def close(self, *, keep: bool = False) -> None:
        """Close the sockets and remove everything; may be called at any time, also twice.

        With `keep` everything stays for a controller that takes this one's place, as it does when
        this one could not take another's.
        """
        if self._is_kept:
            return
        if self._is_open:
            self.journal.close()
        if keep or (self.past is not None and not self._is_open):
            self._is_kept = True
            if self._doors is not None:
                self._doors.close(0.0)
            return
        for path in self._files.values():
            remove_connection_file(path, self.instance)
        if self._doors is not None:
            self._doors.close(LINGER_S)
        _remove_traces(self._runtime_dir, self.blob_dir)

    def _take_over(self) -> None:
        """Take the identity of a controller that died here, if one did.

        Raises:
            SiteError: if it has not died.
        """
        found: dict[FileRole, ConnectionInfo] = {}
        for role, path in self._files.items():
            try:
                found[role] = load_connection_file(path)
            except ConnectionFileError as error:
                log.warning("nothing to resume: %s", error)
                return
        info = found["client"]
        if info.instance != found["engine"].instance or not _is_ours(info):
            log.warning("nothing to resume: the connection files are of different controllers")
            return
        self._require_dead(info)
        self.instance = info.instance
        self.blob_dir = blob_dir(info.instance)
        self._runtime_dir = runtime_dir(info.instance)
        self.past = recall(read_journal(self._runtime_dir / JOURNAL))
        tcp = next((url for url in info.urls if url.startswith("tcp://")), "")
        if self._ip and tcp and self.past.keys is not None:
            from .curve import KeyPair, KeyRing

            self._port = int(tcp.rpartition(":")[2])
            self._location = self._location or info.location
            pairs = [KeyPair(found[r].public.encode(), found[r].secret.encode()) for r in _KEYED]
            self._keys = KeyRing(KeyPair(self.past.keys.public, self.past.keys.secret), *pairs)

    def _require_dead(self, info: ConnectionInfo) -> None:
        try:
            check_alive(info)
        except ConnectionFileStale:
            return
        raise SiteError(f"there is nothing to resume: the controller lives (pid {info.pid})")

    def _open_journal(self) -> None:
        entries = self.past.entries() if self.past is not None else []
        if self._keys is not None:
            server = KeysKept(self._keys.server.public, self._keys.server.secret)
            entries = [server, *(e for e in entries if not isinstance(e, KeysKept))]
        self.journal = JournalFile(self._runtime_dir / JOURNAL)
        self.journal.open(entries)

    def _evict_stale(self) -> None:
        """Make sure that the connection files are nobody's; clean up after a controller that
        crashed.
        """
        for path in self._files.values():
            if not path.exists():
                continue
            try:
                info = load_connection_file(path)
            except ConnectionFileError:
                continue  # of no use to anybody; it will be overwritten
            try:
                check_alive(info)
            except ConnectionFileStale:
                if _is_ours(info):
                    _remove_traces(runtime_dir(info.instance), blob_dir(info.instance))
                continue
            raise SiteError(
                f"a controller runs here already (pid {info.pid} on {info.hostname}, {path}); "
                "stop it with `ipcluster stop`, or give this one another --cluster-id"
            )

    def _open_tcp(self) -> TcpDoor:
        # Not before it is wanted: it imports zmq.
        from .curve import KeyRing
        from .tcp import TcpDoor

        if self._keys is None:
            self._keys = KeyRing.make()
        try:
            door = TcpDoor(self._ip, self._port, self._keys, self.heartbeat_s)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "the port is in use; choose another --port, or none for any free one"
            else:
                reason = f"{error.strerror}; is --ip an address of this host?"
            url = f"tcp://{self._ip}:{self._port or '*'}"
            raise SiteError(f"cannot listen at {url}: {reason}") from error
        if not self._location:
            is_any = self._ip in ("*", "0.0.0.0")
            self._location = socket.gethostname() if is_any else self._ip
        self._urls.append(f"tcp://{self._location}:{door.port}")
        return door


def _is_ours(info: ConnectionInfo) -> bool:
    return info.blob_dir == str(blob_dir(info.instance))


def _remove_traces(runtime: Path, blobs: Path) -> None:
    remove_runtime_dir(runtime)
    remove_blob_dir(blobs)
