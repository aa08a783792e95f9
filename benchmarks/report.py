"""The table: rows are figures, columns are peers, the last two are ipyfleet's ratios."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import BY_KEY
from benchmarks.figures.base import Figure, Goal
from benchmarks.machine import QUIET_SHARE
from benchmarks.peers import FLOOR, OURS, REFERENCE, load_peer
from benchmarks.records import Cell, Results

DASH = "–"


@dataclass(frozen=True)
class Table:
    """A table before it is laid out.

    Attributes:
        heading: Titles of the columns; a newline where a narrow column would break it.
        rows: Cells, ready to print.
        notes: What the numbers in brackets of the cells refer to, from 1 on.
    """

    heading: list[str]
    rows: list[list[str]]
    notes: list[str]


def build_table(results: Results) -> Table:
    """Make the table of one bench."""
    heading = ["", *(load_peer(name).title for name in results.peers)]
    heading += [f"vs\n{REFERENCE}", "vs best\nother", "to be\nreached"]
    notes: list[str] = []
    rows = []
    for key in results.figures:
        figure = BY_KEY[key]
        row = [figure.describe(results.sizes)]
        for name in results.peers:
            cell = results.cell(name, key)
            marks = "".join(
                f"[{_number(note, notes)}]" for note in _notes(results, name, key, cell)
            )
            row.append(f"{format_cell(cell, figure)} {marks}".strip())
        row += [format_ratio(ratio_to(results, figure, REFERENCE)), _ratio_to_best(results, figure)]
        row.append("; ".join(format_goal(results, figure, goal) for goal in figure.goals))
        rows.append(row)
    return Table(heading, rows, notes)


def format_value(value: float, unit: str) -> str:
    """Return a value with its unit, with three digits that matter."""
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{_three_digits(value * factor)} {name}"
        return f"{_three_digits(value * 1e6)} µs"
    if unit == "MiB":
        return f"{value:,.0f} MiB"
    if unit == "%":
        return f"{_three_digits(value)} %"
    if unit == "/s":
        return f"{float(f'{value:.3g}'):,.0f}/s"
    return f"{value:.3g}"


def format_cell(cell: Cell, figure: Figure) -> str:
    """Return the median, a dash, or the word for what went wrong."""
    if cell.value is not None:
        return format_value(cell.value, figure.unit)
    return DASH if cell.status == "not offered" else cell.status


def ratio_to(results: Results, figure: Figure, peer: str) -> float | None:
    """Return how many times better than ``peer`` ipyfleet is; None where one has no value."""
    ours = results.cell(OURS, figure.key).value
    theirs = results.cell(peer, figure.key).value
    if not ours or not theirs or peer == OURS:
        return None
    return theirs / ours if figure.better == "lower" else ours / theirs


def best_other(results: Results, figure: Figure) -> str | None:
    """Return the peer, other than ipyfleet, with the best value."""
    values = {
        name: value
        for name in results.peers
        if name not in (OURS, FLOOR) and (value := results.cell(name, figure.key).value) is not None
    }
    if not values:
        return None
    pick = min if figure.better == "lower" else max
    return pick(values, key=lambda name: values[name])


def format_ratio(ratio: float | None) -> str:
    """Return a number of times; above 1 ipyfleet is ahead, below it is behind."""
    return DASH if ratio is None else f"{_three_digits(ratio)} ×"


def is_met(results: Results, figure: Figure, goal: Goal) -> bool | None:
    """Return whether ipyfleet reaches a goal; None where that was not measured."""
    if goal.peer:
        ratio = ratio_to(results, figure, goal.peer)
        return None if ratio is None else ratio >= goal.value
    ours = results.cell(OURS, figure.key).value
    if ours is None:
        return None
    return ours <= goal.value if figure.better == "lower" else ours >= goal.value


def format_goal(results: Results, figure: Figure, goal: Goal) -> str:
    """Return a goal, and a mark for whether it is reached."""
    mark = {True: " ✓", False: " ✗", None: ""}[is_met(results, figure, goal)]
    if goal.peer:
        title = load_peer(goal.peer).title.split("\n")[0]
        return f"{format_ratio(goal.value)} {title}{mark}"
    sign = "≤" if figure.better == "lower" else "≥"
    return f"{sign} {format_value(goal.value, figure.unit)}{mark}"


def as_text(results: Results) -> str:
    """Lay the table out for a terminal."""
    table = build_table(results)
    heading_lines = max(title.count("\n") + 1 for title in table.heading)
    head = [title.split("\n") for title in table.heading]
    padded = [[""] * (heading_lines - len(title)) + title for title in head]
    lines = [list(column) for column in zip(*padded, strict=True)]
    widths = [
        max(len(line[column]) for line in [*lines, *table.rows])
        for column in range(len(table.heading))
    ]
    text = [
        "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in [*lines, ["-" * width for width in widths], *table.rows]
    ]
    text += ["", *(f"[{number}] {note}" for number, note in enumerate(table.notes, 1))]
    return "\n".join([*text, *_remarks(results)])


def as_markdown(results: Results) -> str:
    """Lay the table out for the documentation."""
    table = build_table(results)
    heading = [title.replace("\n", " ") for title in table.heading]
    lines = [heading, ["---", *["--:"] * (len(heading) - 1)], *table.rows]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    text += ["", *(f"- [{number}] {note}" for number, note in enumerate(table.notes, 1))]
    return "\n".join([*text, "", *(f"{remark}  " for remark in _remarks(results))])


def _remarks(results: Results) -> list[str]:
    """Say what the table was measured on, and what speaks against it."""
    machine = results.machine
    versions = [
        f"{load_peer(name).title.split(chr(10))[0]} {version}"
        for name, version in results.versions.items()
        if version
    ]
    plural = "s" if results.runs > 1 else ""
    measured = (
        f"Medians of {results.runs} run{plural}; {machine['date'][:10]}, "
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}; {', '.join(versions)}."
    )
    remarks = [measured]
    if results.quick:
        remarks.append("A quick run: these figures show that the bench works, nothing else.")
    if results.busiest > QUIET_SHARE:
        remarks.append(
            f"The machine was not quiet: others used up to {results.busiest:.0%} of the CPUs."
        )
    for name, commands in results.killed.items():
        remarks.append(f"{name} left {len(commands)} processes behind, which were killed.")
    return remarks


def _notes(results: Results, peer: str, key: str, cell: Cell) -> list[str]:
    notes = []
    if cell.value is not None and key in load_peer(peer).notes:
        notes.append(load_peer(peer).notes[key])
    if cell.count is not None:
        notes.append(f"measured with {cell.count:,} items: more would have taken too long")
    if 0 < cell.runs < results.runs:
        notes.append(f"{cell.runs} of {results.runs} runs; the others: {cell.detail}")
    elif cell.status in ("failed", "timeout"):
        notes.append(cell.detail)
    return notes


def _number(note: str, notes: list[str]) -> int:
    """Return the number of a note, giving it one at its first use."""
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _ratio_to_best(results: Results, figure: Figure) -> str:
    best = best_other(results, figure)
    ratio = None if best is None else ratio_to(results, figure, best)
    if best is None or ratio is None:
        return DASH
    return f"{format_ratio(ratio)} {load_peer(best).title.split(chr(10))[0]}"


def _three_digits(value: float) -> str:
    if 0 < value < 0.1:
        return f"{value:.2g}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
