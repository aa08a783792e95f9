"""Where a controller listens and what it leaves on disk: sockets, connection files, shared memory.

What lives here: `ControllerSite`. `open` takes everything, `close` removes it; nothing else in
the package writes files. What must not: the loop.
"""

from __future__ import annotations

import errno
import logging
import socket as stdlib_socket
from pathlib import Path
from typing import cast

import zmq

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
from ipyfleet_protocol.paths import (
    FileRole,
    blob_dir,
    connection_file,
    make_private_dir,
    remove_empty_runtime_dirs,
    remove_runtime_dir,
    runtime_dir,
)

from .curve import Doorkeeper, KeyPair, KeyRing
from .hub.journal import KeysKept, Recollection, recall
from .journal import JournalFile, read_journal

log = logging.getLogger("ipyfleet.controller")

JOURNAL = "peers.journal"
"""Name of the journal in the directory of the sockets."""

SEND_QUEUE = 1024
"""Messages that the socket keeps for a peer that does not read; the rest waits in the outbox."""

RECEIVE_QUEUE = 512
"""Messages of a peer that the socket takes in before the loop has read them."""

LINGER_MS = 500
"""How long what was sent last may take to leave after the end."""

_NOT_FOR: dict[FileRole, str] = {"client": "/engines", "engine": "/router"}

_KEYED: tuple[FileRole, FileRole] = ("client", "engine")

ROLES: tuple[FileRole, ...] = ("engine", "client")


class SiteError(Exception):
    """The controller cannot start here; the text is one line for people."""


class ControllerSite:
    """One controller's place in the file system and on the network.

    Attributes:
        instance: id of this run, hex.
        socket: the ROUTER, after `open`.
        ssh_servers: through which peers on other hosts are to come; by role, empty for directly.
        doorkeeper: admits keys, where there is TCP.
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
        self._heartbeat_s = heartbeat_s
        self._recover_s = recover_s
        self._resume = resume
        self._is_open = False
        self._is_kept = False
        self.past: Recollection | None = None
        self.journal: JournalFile
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.ssh_servers: dict[FileRole, str] = {}
        self.doorkeeper: Doorkeeper | None = None
        self._keys: KeyRing | None = None
        self.urls: list[str] = []
        self.socket: zmq.Socket[bytes]

    def open(self) -> None:
        """Bind the socket; peers can connect, but nobody knows where until `publish`.

        Raises:
            SiteError: if a live controller is here already, or the port or a directory cannot be
            had.
        """
        if self._resume:
            self._take_over()
        if self.past is None:
            self._evict_stale()
        self._context = zmq.Context()
        self.socket = router = self._context.socket(zmq.ROUTER)
        router.router_mandatory = True
        router.router_handover = True
        router.linger = LINGER_MS
        router.sndhwm = SEND_QUEUE
        # A peer that sends faster than it is served waits; nothing is dropped.
        router.rcvhwm = RECEIVE_QUEUE
        try:
            make_private_dir(self._runtime_dir)
            remove_empty_runtime_dirs(self._runtime_dir)
            # Two on this host, so that a client may be suspended for a while and an engine not:
            # options hold for what is bound after them.
            self._bind(f"ipc://{self._runtime_dir}/router")
            self._set_heartbeat()
            self._bind(f"ipc://{self._runtime_dir}/engines")
            if self._ip:
                self._bind_tcp()
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
            urls=[url for url in self.urls if not url.endswith(_NOT_FOR[role])],
            location=self._location,
            blob_dir=str(self.blob_dir),
            cluster_id=self._cluster_id,
            heartbeat_s=self._heartbeat_s,
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
            if self._context is not None:
                self._context.destroy(linger=0)
                self._context = None
            return
        for path in self._files.values():
            remove_connection_file(path, self.instance)
        if self.doorkeeper is not None:
            self.doorkeeper.close()
        if self._context is not None:
            # Waits until the last messages have left, at most for the linger time.
            self._context.destroy(linger=LINGER_MS)
            self._context = None
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

    def _set_heartbeat(self) -> None:
        """Have connections made from here on drop when the other end is silent.

        zmq's I/O threads send and answer the beats, so an engine whose C code holds the GIL is
        heard, and one that is stopped is not. The broken connection is what the router notices.
        """
        limit_ms = int(self._heartbeat_s * 1000)
        if limit_ms:
            self.socket.heartbeat_ivl = max(1, limit_ms // 3)
            self.socket.heartbeat_timeout = limit_ms

    def _bind(self, url: str) -> None:
        try:
            self.socket.bind(url)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "the port is in use; choose another --port, or none for any free one"
            else:
                reason = f"{zmq.strerror(error.errno or 0)}; is --ip an address of this host?"
            raise SiteError(f"cannot listen at {url}: {reason}") from error
        self.urls.append(url)

    def _bind_tcp(self) -> None:
        assert self._context is not None
        if self._keys is None:
            self._keys = KeyRing.make()
        self.doorkeeper = Doorkeeper(self._context, self._keys)
        self.socket.curve_server = True
        self.socket.curve_secretkey = self._keys.server.secret
        self._bind(f"tcp://{self._ip}:{self._port or '*'}")
        bound = cast("bytes", self.socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
        if not self._location:
            is_any = self._ip in ("*", "0.0.0.0")
            self._location = stdlib_socket.gethostname() if is_any else self._ip
        self.urls[-1] = f"tcp://{self._location}:{bound.rpartition(':')[2]}"


def _is_ours(info: ConnectionInfo) -> bool:
    return info.blob_dir == str(blob_dir(info.instance))


def _remove_traces(runtime: Path, blobs: Path) -> None:
    remove_runtime_dir(runtime)
    remove_blob_dir(blobs)
