"""Where a controller's database is, and which one: what the command line says.

What lives here: `DatabasePlace`, and the table of backends by name. What must not: backends; a
module of one is imported when it is chosen, by the thread that works with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from .base import Limits, TaskDatabase

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "ipyfleet.databases"
"""Other packages offer backends under this group: a function as `open_database` below."""

BACKENDS = {
    "sqlite": "ipyfleet_controller.database.sqlite:open_database",
    "memory": "ipyfleet_controller.database.memory:open_database",
    "postgresql": "ipyfleet_controller.database.postgresql:open_database",
    "none": "ipyfleet_controller.database.nothing:open_database",
}
"""Our own backends: where the function is that takes a `DatabasePlace` and returns a
`TaskDatabase`. It opens nothing."""

ALIASES = {
    "sqlitedb": "sqlite",
    "dictdb": "memory",
    "nodb": "none",
    "postgresdb": "postgresql",
    "postgresqldb": "postgresql",
    "postgres": "postgresql",
}
"""Other names for them, in lower case; those that users know among them."""


class DatabasePlace(msgspec.Struct, frozen=True):
    """What a backend is told.

    Attributes:
        profile_dir: the profile's directory; a backend that has files keeps them there.
        cluster_id: the cluster's name in the profile.
        file: where a database file is, instead of there.
        url: of a database server, in the form that its client library takes.
        limits: how much is kept.
    """

    profile_dir: Path
    cluster_id: str = ""
    file: str = ""
    url: str = ""
    limits: Limits = Limits()


def backend_name(text: str) -> str:
    """Return the name of the backend that a user means.

    Takes our names, those that users know (``SQLiteDB``, ``DictDB``, ``NoDB``), also with a
    module's path in front, and those of other packages' entry points.

    Raises:
        ValueError: if there is no such backend; the text says which there are.
    """
    name = text.rpartition(".")[2].lower()
    name = ALIASES.get(name, name)
    if name in BACKENDS:
        return name
    if _entry_points(text):
        return text
    raise ValueError(f"there is no database {text!r}; there are {', '.join(BACKENDS)}")


def open_backend(name: str, place: DatabasePlace) -> TaskDatabase:
    """Import a backend, by the name that `backend_name` returned, and make its database.

    Raises:
        ImportError: if what the backend needs is not installed.
    """
    target = BACKENDS.get(name)
    if target is None:
        return cast("TaskDatabase", _entry_points(name)[0].load()(place))
    module, _, function = target.partition(":")
    opener: Callable[[DatabasePlace], TaskDatabase]
    opener = getattr(importlib.import_module(module), function)
    return opener(place)


def _entry_points(name: str) -> list[EntryPoint]:
    # Takes some ms to import, and is needed for others' backends only.
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINTS, name=name))


__all__ = ["ALIASES", "BACKENDS", "ENTRY_POINTS", "DatabasePlace", "backend_name", "open_backend"]
