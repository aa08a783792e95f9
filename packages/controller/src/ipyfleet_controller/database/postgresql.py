"""Records in a PostgreSQL database, through psycopg 3, which the package's extra ``postgresql``
installs.

What lives here: how one connects, and what the library's errors mean. Each cluster has a schema of
its own in the database that the url names, and holds a lock on it while it runs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import errors, sql

from .base import BadEntry, DatabaseUnavailable, Limits, TaskDatabase
from .place import DatabasePlace
from .sql import SqlDatabase
from .sql_rows import Row

SCHEMA = "ipyfleet"
"""Beginning of the schema's name; the cluster's id follows if it has one."""

CONNECT_PATIENCE_S = 5
STATEMENT_PATIENCE_MS = 30_000
"""How long the server may take."""

LOCK_PATIENCE_MS = 2_000
"""How long another controller may still hold the schema: the server needs a moment to notice that a
connection has ended, and a controller that is started again is often quicker."""

ANSWER_PATIENCE_MS = 10_000
"""How long what was sent may stay unacknowledged, over TCP, until the server counts as gone."""

_FULL = (errors.DiskFull, errors.OutOfMemory)
_BAD = (psycopg.DataError, psycopg.IntegrityError)


def open_database(place: DatabasePlace) -> TaskDatabase:
    """Return the backend for a controller; part of the table of backends."""
    return PostgreSQLDatabase(place.url, schema_name(place.cluster_id), place.limits)


def schema_name(cluster_id: str) -> str:
    """Return the name of a cluster's schema."""
    plain = re.sub(r"\W", "_", cluster_id)
    return f"{SCHEMA}_{plain}"[:63] if cluster_id else SCHEMA


class PostgreSQLDatabase(SqlDatabase):
    """The `TaskDatabase` on a server."""

    def __init__(self, url: str, schema: str = SCHEMA, limits: Limits | None = None) -> None:
        """Choose a database; nothing is connected yet.

        Args:
            url: ``postgresql://user@host/database``, or what libpq takes else; what it does not
                say is taken from libpq's environment variables.
            schema: where the tables are; made if it is not there.
            limits: how much is kept.
        """
        super().__init__(
            lambda: PostgreSQLConnection(url, schema), limits or Limits(), _cannot_set_aside
        )


class PostgreSQLConnection:
    """A `Connection` to a server."""

    blob_type = "BYTEA"

    def __init__(self, url: str, schema: str) -> None:
        """Connect, and make the schema ours.

        Raises:
            DatabaseUnavailable: if the server cannot be reached or does not let us, or another
            controller uses the schema.
        """
        with _translated():
            self._library = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=CONNECT_PATIENCE_S,
                application_name="ipcontroller",
                tcp_user_timeout=ANSWER_PATIENCE_MS,
                options=f"-c statement_timeout={STATEMENT_PATIENCE_MS}",
            )
        try:
            with _translated():
                self._lock(schema)
                name = sql.Identifier(schema)
                self._library.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
                self._library.execute(sql.SQL("SET search_path TO {}").format(name))
        except BaseException:
            self._library.close()
            raise

    def _lock(self, schema: str) -> None:
        try:
            with self._library.transaction():
                self._library.execute(f"SET LOCAL lock_timeout = {LOCK_PATIENCE_MS}")
                key = f"ipyfleet {schema}"
                self._library.execute("SELECT pg_advisory_lock(hashtext(%s))", (key,))
        except errors.LockNotAvailable as error:
            raise DatabaseUnavailable(f"another controller uses the schema {schema}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end of the block, or roll back."""
        with _translated(), self._library.transaction():
            yield

    def rows(self, statement: str, arguments: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""
        with _translated():
            return self._library.execute(_own(statement), _plain(arguments)).fetchall()

    def run(self, statement: str, arguments: Sequence[Any] = ()) -> None:
        """Run a statement."""
        with _translated():
            self._library.execute(_own(statement), _plain(arguments))

    def run_many(self, statement: str, arguments: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row of arguments."""
        with _translated(), self._library.cursor() as cursor:
            cursor.executemany(_own(statement), [_plain(row) for row in arguments])

    def tidy(self) -> None:
        """The server does that by itself."""

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(psycopg.Error):
            self._library.close()


def _own(statement: str) -> str:
    # Our statements are constants, and none has a question mark or a percent sign but for this.
    return statement.replace("?", "%s")


def _plain(row: Sequence[Any]) -> list[Any]:
    """Return arguments that psycopg knows: frames as bytes."""
    return [value if isinstance(value, _PLAIN) else bytes(memoryview(value)) for value in row]


_PLAIN = (int, float, str, bytes)


def _cannot_set_aside() -> str:
    raise DatabaseUnavailable("the server's data is damaged; that is for its administrator")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        is_full = isinstance(error, _FULL)
        raise DatabaseUnavailable(_short(error), is_full=is_full) from error
    except _BAD as error:
        raise BadEntry(_short(error)) from error
    except psycopg.Error as error:
        raise DatabaseUnavailable(_short(error)) from error


def _short(error: psycopg.Error) -> str:
    return " ".join(str(error).split())[:300]


__all__ = ["PostgreSQLConnection", "PostgreSQLDatabase", "open_database", "schema_name"]
