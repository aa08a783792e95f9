"""No records at all, for those who want none.

What lives here: `NoDatabase`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from .base import Entry, NoData, NotKept, Record, StoredResult, TaskDatabase
from .detached import DetachedGroup
from .output import OutputRecord
from .place import DatabasePlace


def open_database(place: DatabasePlace) -> TaskDatabase:
    """Return the backend for a controller; part of the table of backends."""
    return NoDatabase()


class NoDatabase:
    """The `TaskDatabase` that takes everything in and has nothing."""

    def open(self) -> None:
        """Nothing is to be opened."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Forget entries."""

    def get(self, msg_id: str) -> Record | None:
        """Raise `NoData`."""
        self._refuse()

    def result(self, msg_id: str) -> StoredResult | None:
        """Raise `NoData`."""
        self._refuse()

    def outputs(self, msg_id: str) -> list[OutputRecord]:
        """Raise `NoData`."""
        self._refuse()

    def find(self, query: dict[str, Any], keys: Sequence[str] | None = None) -> list[Record]:
        """Raise `NoData`."""
        self._refuse()

    def history(self) -> list[str]:
        """Raise `NoData`."""
        self._refuse()

    def purge(
        self, msg_ids: Sequence[str] | None = None, engine_ids: Sequence[int] | None = None
    ) -> int:
        """Drop nothing; there is nothing."""
        return 0

    def cull(self, now: float) -> int:
        """Drop nothing; there is nothing."""
        return 0

    def keep_detached(self, groups: Sequence[DetachedGroup]) -> None:
        """Raise `NotKept`."""
        raise NotKept(
            "records are not kept, so nothing outlives the controller; start it with "
            "--sqlitedb or --postgresdb to detach from work"
        )

    def detached(self) -> list[DetachedGroup]:
        """Return none."""
        return []

    def make_room(self) -> int:
        """Drop nothing; there is nothing."""
        return 0

    def statistics(self) -> dict[str, int]:
        """Return zeros."""
        return {"records": 0, "bytes": 0, "culled": 0}

    def close(self) -> None:
        """Nothing is open."""

    def _refuse(self) -> NoReturn:
        raise NoData("no records are kept: the controller was started with --nodb")


__all__ = ["NoDatabase", "open_database"]
