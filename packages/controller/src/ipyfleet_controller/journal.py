"""The journal on disk: what a controller that takes this one's place must know.

What lives here: `JournalFile`. What must not: what the entries mean; that is `hub.journal`'s.

An entry is four bytes of length and a msgpack. The operating system has it when `append` returns,
so it outlives the process, though not the host, with which the peers end too. What was being
written when the process died is incomplete, and ignored.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .hub.journal import Entry

_LENGTH = struct.Struct("<I")


class JournalFile:
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Name the file; `open` makes it."""
        self._path = path
        self._fd = -1

    def open(self, entries: Iterable[Entry]) -> None:
        """Begin anew with some entries, in the place of what was there before.

        Raises:
            OSError: if it cannot be written; what was there before still is.
        """
        draft = self._path.with_suffix(".new")
        fd = os.open(
            draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            for entry in entries:
                _write(fd, entry)
            os.replace(draft, self._path)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def append(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            OSError: if the disk is full. No entry can follow then.
        """
        _write(self._fd, entry)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path) -> list[Entry]:
    """Return the entries of a journal, up to the first that makes no sense; none without one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)
    entries: list[Entry] = []
    at = 0
    while at + _LENGTH.size <= len(content):
        [length] = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if at + length > len(content):
            break
        try:
            entries.append(decoder.decode(content[at : at + length]))
        except msgspec.MsgspecError:
            break
        at += length
    return entries


def _write(fd: int, entry: Entry) -> None:
    content = msgspec.msgpack.encode(entry)
    data = _LENGTH.pack(len(content)) + content
    if os.write(fd, data) < len(data):
        # Half an entry; what came behind it would make no sense to whoever reads.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


__all__ = ["JournalFile", "read_journal"]
