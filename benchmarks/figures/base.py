"""What a figure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.peers.base import Peer
from benchmarks.sizes import Sizes


@dataclass(frozen=True)
class Sample:
    """What one run gives for one figure.

    Attributes:
        value: In the figure's unit.
        count: How many items were really done, where the peer was given fewer than the title says.
    """

    value: float
    count: int | None = None


@dataclass(frozen=True)
class Session:
    """A started peer, while it is measured.

    Attributes:
        peer: The peer.
        sizes: How much to do.
        token: The mark of the peer's processes (:mod:`benchmarks.processes`).
        first_result_s: Time from before the import of the peer until its first result.
        kept: What one figure has measured for another; by name.
    """

    peer: Peer
    sizes: Sizes
    token: str
    first_result_s: float
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """What ipyfleet must reach in a figure.

    Attributes:
        value: So many times better than the peer, or a bound in the figure's unit.
        peer: Name of the peer; empty for a bound.
    """

    value: float
    peer: str = ""


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        key: Its name in JSON and on the command line.
        title: What is measured; fields of :class:`~benchmarks.sizes.Sizes` in braces.
        unit: One of ``s``, ``/s``, ``MiB``, ``%`` and ``""`` (a plain number).
        better: Which direction is the good one.
        measure: Measures it once. Raises :class:`~benchmarks.peers.base.NotOffered` where the peer
            has no such notion.
        goals: What ipyfleet must reach.
        only: Names of the peers that are asked; empty for all. Where the others have nothing to
            compare with, or waiting for them would take too long.
    """

    key: str
    title: str
    unit: Literal["s", "/s", "MiB", "%", ""]
    better: Literal["lower", "higher"]
    measure: Callable[[Session], Sample]
    goals: tuple[Goal, ...] = ()
    only: tuple[str, ...] = ()

    def describe(self, sizes: Sizes) -> str:
        """Return the title with the amounts filled in."""
        amounts = {
            name: f"{value:,}" if isinstance(value, int) else f"{value:g}"
            for name, value in vars(sizes).items()
        }
        return self.title.format(**amounts)


class WrongResult(AssertionError):
    """A peer returned something else than what the work asked for: its figure does not count."""
