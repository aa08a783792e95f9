"""Finding launcher classes: by class, by import string, or by the short name of an entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from traitlets.utils.importstring import import_item

from .base import ControllerLauncher, EngineLauncher, Launcher

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

Kind: TypeAlias = Literal["controller", "engine"]

GROUPS: dict[Kind, str] = {
    "controller": "ipyfleet.controller_launchers",
    "engine": "ipyfleet.engine_launchers",
}
_BASES: dict[Kind, type[Launcher]] = {"controller": ControllerLauncher, "engine": EngineLauncher}

# Reading the metadata of every installed distribution takes longer than starting a process, so the
# one launcher that nearly everybody uses is found without it.
_BUILT_IN: dict[Kind, dict[str, str]] = {
    "controller": {"local": "ipyfleet_cluster.launchers.local.LocalControllerLauncher"},
    "engine": {"local": "ipyfleet_cluster.launchers.local.LocalEngineLauncher"},
}


def find_launcher_class(kind: Kind, name: str | type[Launcher]) -> type[Launcher]:
    """Return a launcher class.

    Args:
        kind: what it launches.
        name: the class itself, its import string, or its short name (in any case).

    Raises:
        ValueError: nothing of this name is installed, or it is no launcher of this kind.
    """
    found = name if isinstance(name, type) else _find(kind, name)
    if not (isinstance(found, type) and issubclass(found, _BASES[kind])):
        raise ValueError(f"{name!r} is no {kind} launcher: it is not a subclass of {_BASES[kind]}")
    return found


def _find(kind: Kind, name: str) -> object:
    built_in = _BUILT_IN[kind].get(name.lower())
    if built_in is not None:
        return import_item(built_in)
    if "." in name:
        try:
            return import_item(name)
        except ImportError as error:
            raise ValueError(f"cannot import the {kind} launcher {name!r}: {error}") from error
    for entry in _announced(kind):
        if entry.name.lower() == name.lower():
            return entry.load()
    known = ", ".join(all_launchers(kind))
    raise ValueError(f"no {kind} launcher is called {name!r}; installed: {known}")


def _announced(kind: Kind) -> EntryPoints:
    # Its import takes a quarter of the time that ours does.
    from importlib.metadata import entry_points

    return entry_points(group=GROUPS[kind])


def all_launchers(kind: Kind) -> list[str]:
    """Return the short names of the installed launchers of a kind, sorted."""
    announced = {entry.name for entry in _announced(kind)}
    return sorted(announced | set(_BUILT_IN[kind]))


def abbreviate_launcher_class(kind: Kind, cls: type[Launcher]) -> str:
    """Return the short name of a launcher class, or its import string where it has none."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    for name, built_in in _BUILT_IN[kind].items():
        if built_in == path:
            return name
    for entry in _announced(kind):
        if entry.value.replace(":", ".") == path:
            return entry.name
    return path
