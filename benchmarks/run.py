"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from benchmarks import publish, report
from benchmarks.driver import ROOT, Driver
from benchmarks.figures import BY_KEY
from benchmarks.machine import describe_machine, version_of
from benchmarks.peers import NAMES, OURS, load_peer
from benchmarks.plot import save_plot
from benchmarks.records import Results
from benchmarks.sizes import QUICK, Sizes

RESULTS_DIRECTORY = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return an exit code.

    Returns:
        0, or 1 when a figure of ipyfleet's could not be measured, or 2 when something else that was
        asked for could not be done.
    """
    options = _parse(arguments)
    say = _say
    if options.load is not None:
        results = Results.load(options.load)
    else:
        peers = _installed(options.peers)
        if not peers:
            say("none of the peers is installed: pip install -r benchmarks/requirements.txt")
            return 2
        results = _prepare(options, peers)
        Driver(results, timeout_s=options.timeout, settle_s=options.settle, say=say).run_all()
        for path in _save(results):
            say(f"wrote {path.relative_to(ROOT)}")
    print(report.as_text(results))
    if options.plot is not None:
        try:
            save_plot(results, options.plot)
        except ModuleNotFoundError as error:
            say(f"no plot: {error}")
            return 2
        say(f"wrote {options.plot}")
    if options.write_docs:
        try:
            say(f"wrote {publish.write_docs(results).relative_to(ROOT)}")
        except publish.NotFitForPublication as error:
            say(f"docs not written: {error}")
            return 2
    bad = ("failed", "timeout")
    return int(any(r.peer == OURS and r.status in bad for r in results.records))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure ipyfleet and its peers side by side: every peer, 5 runs, about 25 "
        "minutes on a quiet machine. Publish with --write-docs. See benchmarks/README.md.",
    )
    names = ",".join
    parser.add_argument(
        "--runs", type=_positive, help="runs of each figure (default 5; 1 with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="little work: shows that it works")
    parser.add_argument(
        "--peers",
        type=lambda text: _names(text, NAMES),
        default=list(NAMES),
        help=f"comma-separated, of {names(NAMES)}",
    )
    parser.add_argument(
        "--figures",
        type=lambda text: _names(text, BY_KEY),
        default=list(BY_KEY),
        help=f"comma-separated, of {names(BY_KEY)}",
    )
    parser.add_argument("--workers", type=_positive, default=2, help="engines (default 2)")
    parser.add_argument(
        "--timeout", type=float, default=180.0, help="seconds that one figure may take"
    )
    parser.add_argument(
        "--settle", type=float, default=15.0, help="seconds to wait for a quiet machine"
    )
    parser.add_argument(
        "--load", type=Path, metavar="JSON", help="show an earlier result, measure nothing"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (matplotlib)")
    parser.add_argument(
        "--write-docs", action="store_true", help="put the table into docs/performance.md"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _names(text: str, known: Collection[str]) -> list[str]:
    """Split a comma-separated list and bring it into the order of ``known``."""
    wanted = set(text.split(","))
    if unknown := wanted - set(known):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return [name for name in known if name in wanted]


def _installed(names: Sequence[str]) -> list[str]:
    """Return the peers that can be imported; say which cannot."""
    found = []
    for name in names:
        if importlib.util.find_spec(load_peer(name).module) is None:
            _say(f"{name} is not installed: its column is left out")
        else:
            found.append(name)
    return found


def _prepare(options: argparse.Namespace, peers: list[str]) -> Results:
    sizes = replace(QUICK if options.quick else Sizes(), workers=options.workers)
    return Results(
        machine=describe_machine(),
        versions={name: version_of(load_peer(name).distribution) for name in peers},
        sizes=sizes,
        runs=options.runs or (1 if options.quick else 5),
        quick=options.quick,
        peers=peers,
        figures=options.figures,
    )


def _save(results: Results) -> list[Path]:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    paths = [RESULTS_DIRECTORY / f"{stamp}.json", RESULTS_DIRECTORY / "latest.json"]
    for path in paths:
        results.save(path)
    return paths


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
