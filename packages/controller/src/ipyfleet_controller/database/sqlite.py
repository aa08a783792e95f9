"""Records in a SQLite file of the profile: the default.

What lives here: how the file is opened, what SQLite's errors mean, and what happens to a file that
is corrupt. The file is in WAL mode: reading needs no lock, and what was committed survives the end
of the process, whatever way it ends (after a crash of the machine the last seconds may be missing,
but the file is whole).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ipyfleet_protocol.paths import connection_file

from .base import BadEntry, DatabaseUnavailable, Limits, TaskDatabase
from .place import DatabasePlace
from .sql import SqlDatabase
from .sql_connection import DatabaseCorrupt
from .sql_rows import Row

STEM = "ipyfleet-tasks"
"""Beginning of the file's name; the cluster's id follows if it has one."""

LOCK_PATIENCE_S = 1.0
"""How long a lock of another process is waited for, each time."""

WAL_MAX_BYTES = 16 << 20
"""Size to which the log file is cut back."""

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BAD = (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_CONSTRAINT)


def open_database(place: DatabasePlace) -> TaskDatabase:
    """Return the backend for a controller; part of the table of backends."""
    if place.file:
        return SQLiteDatabase(Path(place.file).expanduser(), place.limits)
    path = database_file(place.profile_dir, place.cluster_id)
    remove_outdated(place.profile_dir, path, time.time() - place.limits.max_age_s)
    return SQLiteDatabase(path, place.limits)


def database_file(profile_dir: Path, cluster_id: str) -> Path:
    """Return where a cluster's records are."""
    return profile_dir / (f"{STEM}-{cluster_id}.db" if cluster_id else f"{STEM}.db")


def remove_outdated(profile_dir: Path, own: Path, before: float) -> None:
    """Remove other clusters' files in which nothing was written since a time (all that is in them
    is older than records are kept), unless the cluster has a connection file.
    """
    for path in profile_dir.glob(f"{STEM}-*.db"):
        cluster_id = path.stem.removeprefix(f"{STEM}-")
        with contextlib.suppress(OSError, ValueError):
            files = [path, *_companions(path)]
            is_old = max(file.stat().st_mtime for file in files if file.exists()) < before
            has_owner = connection_file(profile_dir, cluster_id, "client").exists()
            if path != own and is_old and not has_owner:
                for file in files:
                    file.unlink(missing_ok=True)


class SQLiteDatabase(SqlDatabase):
    """The `TaskDatabase` in a file.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        """Choose a file; nothing is touched yet."""
        super().__init__(
            lambda: SQLiteConnection(path), limits or Limits(), lambda: set_aside(path)
        )
        self.path = path

    def close(self) -> None:
        """Close the file. One without any record is removed: each cluster has its own."""
        is_empty = self.is_open and not self.statistics()["records"]
        super().close()
        if is_empty:
            for path in (self.path, *_companions(self.path)):
                with contextlib.suppress(OSError):
                    path.unlink()


class SQLiteConnection:
    """A `Connection` to a file."""

    blob_type = "BLOB"

    def __init__(self, path: Path) -> None:
        """Open or make the file, with rights 0600.

        Raises:
            DatabaseUnavailable: if it cannot be opened.
            DatabaseCorrupt: if it is no database.
        """
        self._path = path
        with _translated():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # Before SQLite opens it: it would make it with the rights of the umask, and its
                # companions get the rights that it has.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                found = os.stat(path)
            except OSError as error:
                raise DatabaseUnavailable(f"cannot open {path}: {error.strerror}") from None
            self._identity = (found.st_dev, found.st_ino)
            self._library = sqlite3.connect(
                path, timeout=LOCK_PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            try:
                for pragma in (
                    "journal_mode = WAL",
                    "synchronous = NORMAL",
                    f"journal_size_limit = {WAL_MAX_BYTES}",
                ):
                    self._library.execute(f"PRAGMA {pragma}").close()
            except sqlite3.Error:
                self._library.close()
                raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end of the block, or roll back."""
        self._check_file()
        with _translated():
            self._library.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._library.execute("COMMIT")
            except BaseException:
                if self._library.in_transaction:
                    self._library.execute("ROLLBACK")
                raise

    def rows(self, statement: str, arguments: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""
        with _translated():
            return self._library.execute(statement, arguments).fetchall()

    def run(self, statement: str, arguments: Sequence[Any] = ()) -> None:
        """Run a statement."""
        with _translated():
            self._library.execute(statement, arguments)

    def run_many(self, statement: str, arguments: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row of arguments."""
        with _translated():
            self._library.executemany(statement, arguments)

    def tidy(self) -> None:
        """Move what is in the log file into the file, and empty it."""
        # On a full disk, or while somebody reads, it does what it can.
        with contextlib.suppress(sqlite3.OperationalError):
            self._library.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()

    def close(self) -> None:
        """Close the file."""
        # An error here was one before; the file is as the last commit left it.
        with contextlib.suppress(sqlite3.Error):
            self._library.close()

    def _check_file(self) -> None:
        """Notice that somebody removed or replaced the file: SQLite would go on writing to one
        that nobody can find any more.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise DatabaseUnavailable(f"{self._path} was removed; making a new one", at_once=True)


def set_aside(path: Path) -> str:
    """Rename a corrupt file and its companions; return where to, in words.

    Raises:
        DatabaseUnavailable: if it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    try:
        os.rename(path, target)
        for file in _companions(path):
            if file.exists():
                os.rename(file, f"{target}{file.name.removeprefix(path.name)}")
    except OSError as error:
        raise DatabaseUnavailable(f"{path} is corrupt and cannot be renamed: {error}") from None
    return f"it is kept as {target}, and a new one is made"


def _companions(path: Path) -> list[Path]:
    """Return the files that SQLite keeps beside its own."""
    return [path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm")]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OverflowError) as error:
        _raise_translated(error)


def _raise_translated(error: Exception) -> NoReturn:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in _CORRUPT:
        raise DatabaseCorrupt(f"the database is corrupt ({error})") from error
    if primary is None or primary in _BAD:
        # Not an answer of SQLite's: what was to be stored does not fit.
        raise BadEntry(str(error)) from error
    is_full = primary == sqlite3.SQLITE_FULL
    is_connected = is_full or primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    raise DatabaseUnavailable(str(error), is_full=is_full, is_connected=is_connected) from error


__all__ = [
    "SQLiteConnection",
    "SQLiteDatabase",
    "database_file",
    "open_database",
    "remove_outdated",
    "set_aside",
]
