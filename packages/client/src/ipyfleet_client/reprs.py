"""How results and clients show themselves in notebooks.

What lives here: HTML made of what is known, without waiting for anything but a moment. What must
not: updating (`wait_interactive` and `stream_output` do that).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.errors import IPythonError
from ipyfleet_protocol.messages import ABORTED, FAILED

if TYPE_CHECKING:
    from ipyfleet_client.asyncresult import AsyncResult
    from ipyfleet_client.client import Client

LOAD_TIMEOUT_S = 0.5
"""How long a client's repr waits to learn what its engines do."""

MAX_ROWS = 64

MAX_IDS = 8
"""Engines that a line of text names."""


def result_html(result: AsyncResult) -> str:
    """Return a result as HTML: its progress while it runs, its times when it has ended."""
    work = result._work
    name = escape(work.name)
    kind = type(result).__name__
    if not result.ready():
        done, total = result.progress, result._n_items
        return (
            f"<div><b>{kind}</b> <code>{name}</code>: {done} of {total} done, "
            f"{duration(result.elapsed)} since the call<br>"
            f'<progress value="{done}" max="{max(total, 1)}"></progress></div>'
        )
    failed = work.status.count(FAILED)
    aborted = work.status.count(ABORTED)
    rows = [
        ("tasks", str(work.total)),
        ("engines", _engines_of(result)),
        ("wall time", duration(result.wall_time)),
        ("serial time", duration(result.serial_time)),
    ]
    if result.wall_time > 0 and work.total > 1:
        rows.append(("speed-up", f"{result.serial_time / result.wall_time:.1f}"))
    if failed:
        rows.append(("failed", str(failed)))
    if aborted:
        rows.append(("aborted", str(aborted)))
    state = "finished" if not (failed or aborted) else "finished with errors"
    return f"<div><b>{kind}</b> <code>{name}</code>: {state}{_table((), rows)}</div>"


def client_html(client: Client) -> str:
    """Return a client as HTML: its engines, and what they have to do."""
    if client.closed:
        return "<div><b>Client</b>: closed</div>"
    engines = client.session.link.engines
    load = _load_of(client)
    rows: list[tuple[str, ...]] = []
    ids = engines.ids
    for engine in ids[:MAX_ROWS]:
        info = engines.known[engine]
        counts = load.get(engine, {})
        waiting = [counts.get("queue"), counts.get("tasks")]
        busy = "" if None in waiting else str(sum(waiting))
        completed = str(counts.get("completed", ""))
        row = (str(engine), escape(info.hostname), str(info.pid), busy, completed)
        rows.append((*row, escape(_amounts(info.resources))))
    more = f"<br>… and {len(ids) - MAX_ROWS} more" if len(ids) > MAX_ROWS else ""
    unassigned = load.get("unassigned")
    queued = f", {unassigned} tasks not assigned yet" if unassigned else ""
    head: tuple[str, ...] = ("engine", "host", "pid", "queued or running", "completed", "resources")
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    count = f"{len(ids)} engine{'' if len(ids) == 1 else 's'}"
    return f"<div><b>Client</b>: {count}{queued}{_table(head, rows) if rows else ''}{more}</div>"


def resources_text(client: Client) -> str:
    """Return what the engines of a client have, and which: ``; gpu=1 on [0, 1]``, or nothing."""
    engines = client.session.link.engines
    where: dict[str, list[int]] = {}
    for engine in engines.ids:
        for name, amount in engines.known[engine].resources.items():
            where.setdefault(f"{name}={amount:g}", []).append(engine)
    parts = [f"{what} on {_few(ids)}" for what, ids in sorted(where.items())]
    return f"; {', '.join(parts)}" if parts else ""


def _few(ids: list[int]) -> str:
    if len(ids) <= MAX_IDS:
        return str(ids)
    return f"[{', '.join(map(str, ids[:MAX_IDS]))}, … {len(ids)} in all]"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items())


def duration(seconds: float) -> str:
    """Return a duration as people write it."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _engines_of(result: AsyncResult) -> str:
    work = result._work
    engines = {engine for k in range(work.total) if (engine := work.engine(k)) is not None}
    ids = sorted(engines)
    shown = ", ".join(map(str, ids[:16]))
    return f"{shown}, …" if len(ids) > 16 else shown


def _load_of(client: Client) -> Mapping[Any, Any]:
    try:
        load: Mapping[Any, Any] = client._queue_status(LOAD_TIMEOUT_S)
    except (IPythonError, TimeoutError, IndexError):
        return {}  # a busy controller must not keep a cell from showing
    return load


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{titles}</tr>' if titles else ''}{body}</table>"
