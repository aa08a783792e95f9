"""Results: the values of single runs, their medians, and the JSON file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.sizes import Sizes

FORMAT = 1
"""Version of the JSON file."""

Status = Literal["ok", "not offered", "failed", "timeout"]


@dataclass(frozen=True)
class Record:
    """What became of one figure of one peer in one run.

    Attributes:
        peer: Name of the peer.
        figure: Key of the figure.
        run: Number of the run, from 0.
        status: ``ok``, or why there is no value.
        value: In the figure's unit; None unless ``ok``.
        count: Items really done, where fewer than the figure asks for.
        detail: What went wrong.
    """

    peer: str
    figure: str
    run: int
    status: Status
    value: float | None = None
    count: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """One peer's standing in one figure, over all runs.

    Attributes:
        status: ``ok`` when at least one run gave a value.
        value: The median.
        low: The smallest value.
        high: The largest value.
        runs: How many runs gave a value.
        count: The smallest number of items done, where fewer than the figure asks for.
        detail: What went wrong in the last run that failed.
    """

    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    count: int | None = None
    detail: str = ""


@dataclass
class Results:
    """One bench.

    Attributes:
        machine: What it ran on (:func:`benchmarks.machine.describe_machine`).
        versions: Version of each peer's distribution, by peer; None for the standard library.
        sizes: How much work was done.
        runs: How many runs were asked for.
        quick: Whether the amounts were cut: such figures are not for publication.
        peers: The peers that were asked for, in order.
        figures: The figures that were asked for, in order.
        records: Every single value.
        killed: For each peer, the command lines of what it left behind and had to be killed.
        busiest: The largest share of the CPUs that others used just before a peer was started.
    """

    machine: dict[str, Any]
    versions: dict[str, str | None]
    sizes: Sizes
    runs: int
    quick: bool
    peers: list[str]
    figures: list[str]
    records: list[Record] = field(default_factory=list)
    killed: dict[str, list[str]] = field(default_factory=dict)
    busiest: float = 0.0

    def of(self, peer: str, figure: str) -> Iterator[Record]:
        """Yield the records of one peer and figure."""
        return (r for r in self.records if r.peer == peer and r.figure == figure)

    def cell(self, peer: str, figure: str) -> Cell:
        """Return the median over the runs that gave a value."""
        records = list(self.of(peer, figure))
        bad = [record for record in records if record.status in ("failed", "timeout")]
        detail = bad[-1].detail if bad else ""
        values = [record.value for record in records if record.value is not None]
        if values:
            counts = [record.count for record in records if record.count is not None]
            return Cell(
                status="ok",
                value=median(values),
                low=min(values),
                high=max(values),
                runs=len(values),
                count=min(counts, default=None),
                detail=detail,
            )
        if bad:
            return Cell(bad[-1].status, detail=detail)
        return Cell("not offered")

    def save(self, path: Path) -> None:
        """Write the JSON file; its directory is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        medians = {
            figure: {peer: asdict(self.cell(peer, figure)) for peer in self.peers}
            for figure in self.figures
        }
        content = {"format": FORMAT, **asdict(self), "medians": medians}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that :meth:`save` has written.

        Raises:
            ValueError: The file is of another format.
        """
        content = json.loads(path.read_text())
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a result of this version of the bench; run it again")
        del content["medians"]  # made from the records
        content["sizes"] = Sizes(**content["sizes"])
        content["records"] = [Record(**record) for record in content["records"]]
        return cls(**content)
