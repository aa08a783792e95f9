"""What goes on in the cluster, for people: why a task is where it is, counters, detached work.

What lives here: the part of `Client` about that, and how it is shown. What must not: records
(`hub.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.pending import PENDING
from ipyfleet_protocol import messages as m

if TYPE_CHECKING:
    from ipyfleet_client.session import Session

EXPLAINED_TASKS = 8
"""Tasks of one result that are explained; those that have not ended come first."""

DETACH_TIMEOUT_S = 300.0
"""How long everything that was submitted may take to be recorded."""


class Explanation(str):
    """Sentences about tasks, one a line; shown as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class ClusterMetrics(dict[str, Any]):
    """Counters of the controller at one moment, by section; shown as a table."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield name and value of each number; those of the engines are left out."""
        for section, content in self.items():
            if section == "engines" or not isinstance(content, Mapping):
                continue
            for name, value in content.items():
                yield f"{section}.{name}", _text(name, value)

    def __repr__(self) -> str:
        rows = list(self.rows())
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for engine, content in self.get("engines", {}).items():
            parts = ", ".join(f"{name} {_text(name, value)}" for name, value in content.items())
            lines.append(f"engine {engine}: {parts}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        engines = self.get("engines", {})
        table = f"<table>{rows}</table>"
        if not engines:
            return table
        names = list(next(iter(engines.values())))
        head = "".join(f"<th>{escape(name)}</th>" for name in ("engine", *names))
        body = "".join(
            f"<tr><td>{engine}</td>"
            + "".join(f"<td>{escape(_text(name, content[name]))}</td>" for name in names)
            + "</tr>"
            for engine, content in engines.items()
        )
        return f"{table}<table><tr>{head}</tr>{body}</table>"


class Observations:
    """Questions about what goes on."""

    session: Session

    if TYPE_CHECKING:

        def _ask(self, question: m.Question, timeout_s: float = 60.0) -> tuple[Any, Any]:
            """As `HubQueries._ask`."""

        def _ask_of_tasks(
            self, question: m.Question, msg_ids: Sequence[str], complaint: str
        ) -> tuple[Any, Any]:
            """As `HubQueries._ask_of_tasks`."""

        def _msg_ids(self, jobs: Any) -> list[str]:
            """As `HubQueries._msg_ids`."""

    def explain(self, task: Any) -> Explanation:
        """Tell where tasks are and why: what happened to them, and what they wait for.

        Args:
            task: a msg_id or an `AsyncResult`, or what else `get_result` takes.

        Returns:
            Sentences; of a result with many tasks, about the first that have not ended.

        Raises:
            KeyError: neither the scheduler nor the records know the task.

        Example:
            >>> rc.explain(ar)  # doctest: +SKIP
            3.2 s ago: submitted
            3.2 s ago: placed at engine 2
            engine 2 runs it since 3.2 s
        """
        msg_ids = self._msg_ids(task)
        self.session.submit.flush()
        chosen = msg_ids
        if len(msg_ids) > EXPLAINED_TASKS:
            status = task._work.status if isinstance(task, AsyncResult) else b""
            if len(status) == len(msg_ids):
                pending = [i for i, s in zip(msg_ids, status, strict=True) if s == PENDING]
                chosen = pending or msg_ids
            chosen = chosen[:EXPLAINED_TASKS]
        answer, _ = self._ask_of_tasks(
            m.ExplainTasks(chosen),
            chosen,
            "no task {} is known to the controller; rc.hub_history() lists those that are recorded",
        )
        if len(msg_ids) == 1:
            return Explanation("\n".join(answer[msg_ids[0]]))
        parts = [f"{msg_id}\n  " + "\n  ".join(answer[msg_id]) for msg_id in chosen]
        if len(chosen) < len(msg_ids):
            parts.append(f"… and {len(msg_ids) - len(chosen)} more tasks")
        return Explanation("\n".join(parts))

    def metrics(self) -> ClusterMetrics:
        """Return a snapshot of the controller's counters: queues, rates, bytes, database.

        Sections: ``peers``, ``tasks`` (``per_s`` is the mean of the last ten seconds),
        ``engines`` (by id), ``bytes``, ``database``, ``messages``, ``process``. Counters
        only grow while a controller runs.
        """
        self.session.submit.flush()
        return ClusterMetrics(self._ask(m.Metrics())[0])

    def detach(self, timeout: float = DETACH_TIMEOUT_S) -> int:
        """Have everything that this client has submitted recorded, so that it needs no client.

        When this returns, the client, its process and even the controller may end: tasks that have
        not ended go on, or are run by the controller that is started again with ``--resume``.
        `get_result` of any client finds the results. What is submitted later needs another call.

        Args:
            timeout: seconds.

        Returns:
            The number of tasks that have not ended.

        Raises:
            TimeoutError: it is not recorded in that time.
            KernelError: the records do not outlive the controller, or the database fails; the text
                says which.
        """
        self.session.submit.flush()
        return int(self._ask(m.DetachClient(), timeout)[0])


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}"


__all__ = ["ClusterMetrics", "Explanation", "Observations"]
