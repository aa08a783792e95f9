"""Which versions two sides must share so that what one pickles the other can unpickle.

What lives here: how a peer finds its own versions (`python_version`, `package_versions`) and the
rule by which two peers' versions fit (`misfits`). What must not: who is told.

A function that is defined in a session travels as byte code, and each minor version of Python has
its own; so two Pythons fit where their minor version is the same. Packages only matter to objects
that are made of them, so a difference there is worth a warning and no more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache

WATCHED: dict[str, Callable[[str], object]] = {
    # Arrays of one minor version are read by the next, as a rule; by the next but one, less so.
    "numpy": lambda version: version.split(".")[:2],
    # Promises nothing from one release to another.
    "cloudpickle": lambda version: version,
}
"""Packages whose versions are told, each with what must be the same."""


def python_version() -> str:
    """Return the version of Python as peers tell it, such as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@lru_cache(1)
def package_versions() -> dict[str, str]:
    """Return the versions of the `WATCHED` packages that are installed; imports none of them."""
    found = {}
    for name in WATCHED:
        version = getattr(sys.modules.get(name), "__version__", None) or _installed_version(name)
        if version:
            found[name] = version
    return found


def _installed_version(name: str) -> str:
    # `importlib.metadata` does the same in 50 ms, most of it for imports of its own.
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            stem, extension = os.path.splitext(entry)
            if extension in (".dist-info", ".egg-info") and stem.startswith(f"{name}-"):
                return stem[len(name) + 1 :].split("-")[0]
    return ""


def misfits(mine: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Return the packages that both have, in versions that may not understand each other."""
    return [
        name
        for name, essence in WATCHED.items()
        if name in mine and name in others and essence(mine[name]) != essence(others[name])
    ]


def same_release(mine: str, others: str) -> bool:
    """Return whether two ipyfleet releases fit: the last of their three numbers may differ."""
    return mine.split(".")[:2] == others.split(".")[:2]


__all__ = ["WATCHED", "misfits", "package_versions", "python_version", "same_release"]
