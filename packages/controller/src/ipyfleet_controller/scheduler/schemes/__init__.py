"""Strategies that say which engine gets work first; one per file, behind `Scheme`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..engine_queue import EngineQueue


class Scheme(Protocol):
    """Ranks engines. Called by the scheduler whenever balanced tasks wait, with the engines that
    may have room for more; it must not change them.
    """

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the one to be served first in front."""
        ...


def load_scheme(name: str) -> Scheme:
    """Return a scheme by name.

    Raises:
        ValueError: if there is none of this name.
    """
    if name == "leastload":
        from .leastload import LeastLoad

        return LeastLoad()
    raise ValueError(f"there is no scheduling scheme {name!r}; there is leastload")


__all__ = ["Scheme", "load_scheme"]
