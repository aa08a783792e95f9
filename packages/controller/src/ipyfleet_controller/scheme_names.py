"""Scheduling schemes by name: ours, and those that other packages bring.

What lives here: `find_scheme`. Other packages declare theirs as entry points of the group
``ipyfleet.schemes``, each a `SchemeFactory`. What must not: what a scheme does.
"""

from __future__ import annotations

import random
from typing import cast

from .scheduler.schemes import SCHEMES, Scheme, SchemeFactory, load_scheme

GROUP = "ipyfleet.schemes"


def find_scheme(name: str, seed: int | None = None) -> Scheme:
    """Return a scheme.

    Args:
        name: of ours, or of an entry point.
        seed: of the lots that it draws; None for a different one each time.

    Raises:
        ValueError: if there is none of this name, or it cannot be loaded.
    """
    draw = random.Random(seed).randrange
    if name in SCHEMES:
        # Looking through all that is installed would take longer than the rest of the start.
        return load_scheme(name, draw)
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        names = ", ".join([*SCHEMES, *sorted(found.keys() - set(SCHEMES))])
        raise ValueError(f"there is no scheduling scheme {name!r}; there are {names}")
    try:
        return cast("SchemeFactory", found[name].load())(draw)
    except Exception as error:
        raise ValueError(
            f"the scheduling scheme {name!r} ({found[name].value}) cannot be used: {error!r}"
        ) from error


__all__ = ["GROUP", "find_scheme"]
