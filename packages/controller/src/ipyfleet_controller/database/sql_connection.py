"""What `sql.SqlDatabase` needs of a library that speaks to a database.

What lives here: the interface `Connection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class DatabaseCorrupt(Exception):
    """What is stored cannot be read; `Connection.set_aside` has moved it away or cannot."""


class Connection(Protocol):
    """An open connection; statements have ``?`` for their arguments.

    Every method raises `DatabaseUnavailable`, `DatabaseCorrupt` or `BadEntry`, and nothing of the
    library below.
    """

    blob_type: str
    """Name of the type of byte strings."""

    def transaction(self) -> AbstractContextManager[None]:
        """Commit at the end of the block, or roll back."""
        ...

    def rows(self, statement: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        ...

    def run(self, statement: str, arguments: Sequence[Any] = ()) -> None:
        """Run a statement."""
        ...

    def run_many(self, statement: str, arguments: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of arguments."""
        ...

    def tidy(self) -> None:
        """Give back room that is not needed, as far as that goes now."""
        ...

    def close(self) -> None:
        """Close it; may be called whatever happened before."""
        ...
