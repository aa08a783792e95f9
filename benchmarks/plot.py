"""A picture of the ratios, where matplotlib is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.figures import BY_KEY
from benchmarks.peers import FLOOR, OURS, load_peer
from benchmarks.records import Results
from benchmarks.report import ratio_to


def save_plot(results: Results, path: Path) -> None:
    """Draw, for each figure, how many times better than each peer ipyfleet is.

    Args:
        results: The bench.
        path: Where to; its suffix names the format. Nothing is drawn for figures without a value
            of ipyfleet's.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    picture, axes = pyplot.subplots(figsize=(9, 0.5 * len(results.figures) + 1.5))
    others = [name for name in results.peers if name not in (OURS, FLOOR)]
    for name in others:
        points = [
            (ratio, row)
            for row, key in enumerate(results.figures)
            if (ratio := ratio_to(results, BY_KEY[key], name)) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=load_peer(name).title.split("\n")[0])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(results.figures)),
        [BY_KEY[key].describe(results.sizes) for key in results.figures],
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times better than the peer (right of 1: ipyfleet is ahead)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    picture.savefig(path, bbox_inches="tight", dpi=150)
    pyplot.close(picture)
