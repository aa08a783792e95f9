"""Large buffers in the shared memory of one host.

What lives here: `BlobStore`, with which a peer writes buffers and later frees them, and the
functions that map, remove and sweep. What must not: messages' transport, knowledge of tasks,
pickling; how bytes are copied (`copying.py`) and files become memory (`mapping.py`).

Theory of operation
-------------------
A buffer of `BLOB_MIN_BYTES` or more whose receiver is on the same host is written once, as a file
of the cluster's blob directory on ``/dev/shm``, and travels as a `messages.BlobHandle`. Any number
of receivers map the file privately: no copy on arrival, writable, and what one writes no other
sees. When the file's name is removed the pages stay for as long as somebody maps them.

A large one is some files, each written by a thread of its own, which receivers map one behind the
other. A handle names the first; the others have its name with a number.

* **Never a SIGBUS.** A writer that maps and then touches pages dies when shared memory is full.
  This one uses ``write``, for which a full file system is an error like any other. A file is
  complete before its handle is given out and is never changed or truncated afterwards.
* **Never an error for want of memory.** `BlobStore.put` returns None when the budget is used up,
  when there is no space or no ``/dev/shm``; the caller then sends the buffer in the message.
* **Nobody else's files.** The directory has rights 0700 and must be ours and no link; names are
  checked by pattern and opened relative to the directory, not through links; the size must be what
  the handle says.
* **Only what is there counts.** Receivers of results remove the names, so the owner looks, when its
  budget seems to be used up, which of its blobs are gone.
* **After a crash.** Files are named for their owner, so that its agent, or the controller, can
  remove what a dead owner left (`sweep_blobs`); the whole directory goes when the cluster stops
  (`remove_blob_dir`).
* **After a fork** a child's copy of a store is inert: it puts nothing and removes nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from .copying import THREADS_MAX, cut, run_together, threads_for, write_file
from .errors import ProtocolError
from .ids import PEER_ID_BYTES
from .mapping import PAGE, File, map_files
from .messages import BlobHandle

if TYPE_CHECKING:
    from .ids import PeerId

BLOB_MIN_BYTES = 256 * 1024
"""Smaller buffers travel in the message: a file of its own costs more than the copy."""

FREE_SHARE = 0.8
"""The share of what is free that a single blob may take."""

LOOKS = 64
"""Blobs that are found to be there still when there is no room for one more; then it has none."""

FILES_MAX = THREADS_MAX
"""Files of one blob."""

_NAME = re.compile(rf"[0-9a-f]{{{2 * PEER_ID_BYTES}}}-[0-9]{{1,18}}")
_FILE_NAME = re.compile(rf"{_NAME.pattern}(\.[0-9])?")

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_SUPPORTED = os.open in os.supports_dir_fd and os.unlink in os.supports_dir_fd


class BlobStore:
    """The blobs of one owner: what it has written and not yet freed. Thread-safe.

    Attributes:
        directory: the cluster's blob directory; made by the first `put`.
        owner: whose blobs these are.
        budget_bytes: how much may be held at once; None for half of the file system's size.
    """

    def __init__(self, directory: Path, owner: PeerId, budget_bytes: int | None = None) -> None:
        self.directory = directory
        self.owner = owner
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._held: dict[str, BlobHandle] = {}
        # Of those the names of blobs that are being written, and may not be there yet.
        self._begun: set[str] = set()
        self._reserved_bytes = 0
        self._next = 0
        self._pid = os.getpid()
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes of the blobs that are held, and of those that are being written; some may have been
        removed by others.
        """
        return self._reserved_bytes

    def put(self, buffer: Any) -> BlobHandle | None:
        """Write a buffer to shared memory.

        Args:
            buffer: any contiguous object with the buffer protocol, of any format and shape.

        Returns:
            Its handle; None if it does not fit, there is no shared memory, the store is closed or
            belongs to the process that this one was forked from. Nothing is left behind then.

        Raises:
            BufferError: if the buffer is not contiguous.
        """
        with PickleBuffer(buffer).raw() as view:
            handle = self._reserve(view.nbytes)
            if handle is None:
                return None
            try:
                written = self._write(handle, view)
            except BaseException:
                # Only an interrupt gets here (Ctrl-C during a large write).
                self._forget(handle)
                self._unlink(handle)
                raise
            if not written:
                self._forget(handle)
                return None
            with self._lock:
                self._begun.discard(handle.name)
                closed = self._closed
            if closed:
                # `close` ran while this thread was writing and could not know of the files.
                self._unlink(handle)
                _remove_if_empty(self.directory)
                return None
            return handle

    def release(self, handle: BlobHandle) -> None:
        """Free a blob that `put` returned. What others have mapped stays theirs. Idempotent."""
        if os.getpid() == self._pid and self._forget(handle):
            self._unlink(handle)

    def close(self) -> None:
        """Free all blobs; `put` returns None from now on. Removes the directory if nobody else
        uses it.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            handles = list(self._held.values())
            self._held.clear()
            self._reserved_bytes = 0
        for handle in handles:
            self._unlink(handle)
        _remove_if_empty(self.directory)

    def __enter__(self) -> BlobStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _reserve(self, size: int) -> BlobHandle | None:
        """Take the bytes from the budget and return what names the blob; None if that cannot be."""
        # In a forked child the lock may be held for ever by a thread that did not come along.
        if os.getpid() != self._pid or not _SUPPORTED or not size:
            return None
        try:
            space = os.statvfs(self.directory.parent)
        except OSError:
            return None
        budget = self.budget_bytes
        if budget is None:
            budget = space.f_blocks * space.f_frsize // 2
        if size > space.f_bavail * space.f_frsize * FREE_SHARE:
            return None
        with self._lock:
            self._forget_removed(budget - size)
            if self._closed or self._reserved_bytes + size > budget:
                return None
            handle = BlobHandle(f"{self.owner.hex()}-{self._next}", size, threads_for(size))
            self._next += 1
            self._held[handle.name] = handle
            self._begun.add(handle.name)
            self._reserved_bytes += size
            return handle

    def _forget_removed(self, max_bytes: int) -> None:
        """Forget blobs that others have removed, until no more is held than that."""
        looks = LOOKS
        while looks and self._held and self._reserved_bytes > max_bytes:
            name, handle = next(iter(self._held.items()))
            del self._held[name]
            if name in self._begun or os.path.lexists(os.path.join(self.directory, name)):
                self._held[name] = handle  # behind the others, which are looked for before it
                looks -= 1
            else:
                self._reserved_bytes -= handle.size

    def _forget(self, handle: BlobHandle) -> bool:
        with self._lock:
            self._begun.discard(handle.name)
            held = self._held.pop(handle.name, None)
            if held is None:
                return False
            self._reserved_bytes -= held.size
            return True

    def _write(self, handle: BlobHandle, view: memoryview) -> bool:
        """Write the files; False, and no file, if the system does not let us."""
        fds: list[int] = []
        try:
            for name in _file_names(handle):
                fds.append(self._create(name))
            pieces = cut(view.nbytes, handle.files, PAGE)
            run_together(
                [
                    write_file(fd, view[start:end])
                    for fd, (start, end) in zip(fds, pieces, strict=True)
                ]
            )
        except OSError:
            # ENOSPC most of all: statvfs told the truth a moment ago, and others write too.
            self._unlink(handle)
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
        for _ in range(4):
            try:
                with _open_directory(self.directory) as directory_fd:
                    return os.open(name, flags, 0o600, dir_fd=directory_fd)
            except FileNotFoundError:
                # Nobody has made it yet, or a store that closed has just removed it.
                try:
                    os.mkdir(self.directory, 0o700)
                except FileExistsError:
                    continue
        raise FileNotFoundError(errno.ENOENT, "the directory vanishes as fast as it is made")

    def _unlink(self, handle: BlobHandle) -> None:
        _unlink_names(self.directory, _file_names(handle))


def map_blob(directory: Path, handle: BlobHandle) -> memoryview:
    """Return the content of a blob: writable, private to the caller, not copied.

    The pages live as long as the view, or anything made of it, does. A process that has very many
    mappings gets a copy instead.

    Raises:
        ProtocolError: if the handle is none of ours (name, size), or the blob is gone.
    """
    if not _SUPPORTED:
        raise ProtocolError("a blob arrived on a system that cannot map one")
    names = _file_names(handle)
    pieces = cut(handle.size, len(names), PAGE)
    if any(start == end for start, end in pieces):
        raise ProtocolError(f"blob {handle.name} has {handle.size} bytes in {len(names)} files")
    # O_NONBLOCK: opening a FIFO that somebody put there must not block.
    flags = os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW
    files: list[File] = []
    try:
        with _open_directory(directory) as directory_fd:
            for name, (start, end) in zip(names, pieces, strict=True):
                files.append(File(os.open(name, flags, dir_fd=directory_fd), end - start))
        for file in files:
            _check_file(file, handle)
        return map_files(files)
    except OSError as error:
        raise ProtocolError(f"blob {handle.name} cannot be had: {error.strerror}") from None
    except EOFError:
        raise ProtocolError(f"blob {handle.name} shrank") from None
    finally:
        for file in files:
            os.close(file.fd)


def unlink_blob(directory: Path, handle: BlobHandle) -> None:
    """Remove a blob's names, whoever owns it. Idempotent; who has mapped it keeps the pages.

    Raises:
        ProtocolError: if the name is not a blob's.
    """
    _unlink_names(directory, _file_names(handle))


def sweep_blobs(directory: Path, owner: PeerId) -> int:
    """Remove what a dead owner left; return how many blobs that were."""
    names = [name for name in _blob_names(directory) if _owner_of(name) == owner]
    return len({name.partition(".")[0] for name in _unlink_names(directory, names)})


def remove_blob_dir(directory: Path) -> None:
    """Remove the directory of a cluster that has ended, with all blobs in it. Idempotent.

    Files that are no blobs stay, and then the directory does.
    """
    _unlink_names(directory, _blob_names(directory))
    _remove_if_empty(directory)


def _file_names(handle: BlobHandle) -> list[str]:
    """Return the names of a blob's files.

    Raises:
        ProtocolError: if the handle is none of ours.
    """
    if not _NAME.fullmatch(handle.name) or handle.size < 1 or not 1 <= handle.files <= FILES_MAX:
        raise ProtocolError(f"not a blob's handle: {handle.name[:80]!r} of {handle.size} bytes")
    return [handle.name, *(f"{handle.name}.{k}" for k in range(1, handle.files))]


def _check_file(file: File, handle: BlobHandle) -> None:
    found = os.fstat(file.fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise ProtocolError(f"blob {handle.name} is not a file of ours")
    if found.st_size != file.size:
        raise ProtocolError(
            f"blob {handle.name} has {found.st_size} bytes, its handle says {file.size}"
        )


@contextmanager
def _open_directory(directory: Path) -> Iterator[int]:
    """Open the blob directory, if it is ours and private.

    Raises:
        OSError: if it is not, or not there.
    """
    fd = os.open(directory, os.O_RDONLY | _DIRECTORY | _NO_FOLLOW)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EACCES, "the blob directory is not ours alone")
        yield fd
    finally:
        os.close(fd)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        # Others' blobs are in it, or it was never made. Whoever stops the cluster removes it.
        return


def _blob_names(directory: Path) -> list[str]:
    try:
        with _open_directory(directory) as directory_fd:
            return [name for name in os.listdir(directory_fd) if _FILE_NAME.fullmatch(name)]
    except OSError:
        return []


def _unlink_names(directory: Path, names: Iterable[str]) -> list[str]:
    """Remove files of the directory; return those that were there."""
    removed = []
    try:
        with _open_directory(directory) as directory_fd:
            for name in names:
                try:
                    os.unlink(name, dir_fd=directory_fd)
                    removed.append(name)
                except FileNotFoundError:
                    # Its owner, or who swept, was faster.
                    continue
    except OSError:
        # No directory, or not ours: there is nothing of ours in it.
        return removed
    return removed


def _owner_of(name: str) -> bytes:
    return bytes.fromhex(name.partition("-")[0])
