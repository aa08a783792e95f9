"""Strategies that say which engine gets work first; one per file, behind `Scheme`.

What lives here: the interface and the names of ours. What must not: what a scheme does; finding
those of other packages (`ipyfleet_controller.scheme_names`).

A scheme only gives an order. How many tasks an engine gets, and that none idles beside work that it
may do, is not its affair, so no scheme can lose or delay work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Protocol, TypeAlias, cast

from ..engine_queue import EngineQueue

Draw: TypeAlias = Callable[[int], int]
"""Returns a random number from 0 to below its argument. Handed in, so that a history can be
repeated: the scheduler itself draws no lots.
"""

SCHEMES = ("leastload", "lru", "plainrandom", "twobin", "weighted", "pure")
"""The schemes that come with the controller; each is the module of its name."""


class Scheme(Protocol):
    """Ranks engines. Called by the scheduler whenever balanced tasks wait, with the engines that
    may have room for more; it must not change them.
    """

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the one to be served first in front."""
        ...


SchemeFactory: TypeAlias = Callable[[Draw], Scheme]
"""What an entry point of the group ``ipyfleet.schemes`` names."""


def load_scheme(name: str, draw: Draw | None = None) -> Scheme:
    """Return one of our schemes.

    Args:
        name: one of `SCHEMES`.
        draw: for those that draw lots; by default the first of all is drawn each time.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in SCHEMES:
        raise ValueError(f"there is no scheduling scheme {name!r}; there are {', '.join(SCHEMES)}")
    factory = cast("SchemeFactory", import_module(f".{name}", __name__).make)
    return factory(draw or (lambda n: 0))


__all__ = ["SCHEMES", "Draw", "Scheme", "SchemeFactory", "load_scheme"]
