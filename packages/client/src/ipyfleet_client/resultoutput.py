"""The output of the tasks of a result, as it comes and afterwards.

What lives here: the part of `AsyncResult` about output: waiting for it, showing it grouped, streaming it live.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ipyfleet_client.metadata import metadata_of
from ipyfleet_client.outputs import (
    ExecuteReply,
    TaskOutput,
    collapse_returns,
    show_display,
    show_result,
    show_stream,
)
from ipyfleet_protocol.errors import CompositeError

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session

GroupBy = Literal["type", "engine", "order"]


class OutputStreamer:
    """Shows the output of a result while it runs, in the thread that waits for it.

    The receiving thread only notes which tasks have news.
    """

    def __init__(self, session: Session, work: Work, single: bool) -> None:
        self._session = session
        self._work = work
        self._single = single
        self._shown: dict[int, int] = {}
        self._last: tuple[int | None, str] | None = None
        self._errors = 0
        self.news: deque[int] = deque()

    def note(self, index: int, output: TaskOutput) -> None:
        """Sink of `Work.sinks`: a task has new output."""
        self.news.append(index)

    def flush(self) -> None:
        """Show what has arrived and was not shown yet."""
        while self.news:
            index = self.news.popleft()
            output = (self._work.outputs or {}).get(index)
            if output is None:
                continue
            items = output.items
            for position in range(self._shown.get(index, 0), len(items)):
                self._shown[index] = position + 1
                self._show(index, *items[position])

    def _show(self, index: int, kind: str, content: Any) -> None:
        engine = self._work.engine(index)
        if kind in ("stdout", "stderr"):
            self._write(engine, kind, content)
        elif kind == "display_data":
            if not self._single:
                print(f"[output:{engine}]")
            show_display(content)
        elif kind == "execute_result":
            metadata = metadata_of(self._session, self._work, index)
            show_result(ExecuteReply(int(content.get("execution_count") or 0), metadata))
        elif kind == "error":
            self._show_error(engine, content)
        if kind not in ("stdout", "stderr"):
            self._last = None

    def _write(self, engine: int | None, kind: str, text: str) -> None:
        file = sys.stdout if kind == "stdout" else sys.stderr
        if self._single:
            file.write(text)
        elif self._last == (engine, kind):
            # The same stream goes on: the prefix has been shown.
            file.write(text)
        else:
            if self._last is not None and not self._ended:
                file.write("\n")
            file.write(f"[{kind}:{engine}] {collapse_returns(text)}")
        self._last = (engine, kind)
        self._ended = text.endswith("\n")
        file.flush()

    _ended = True

    def _show_error(self, engine: int | None, content: dict[str, Any]) -> None:
        self._errors += 1
        head = f"[{engine}:execute]"
        if self._errors > CompositeError.tb_limit:
            print(f"{head} {content.get('ename')}: {content.get('evalue')}", file=sys.stderr)
        else:
            print("\n".join([head, *content.get("traceback", [])]), file=sys.stderr)


class ResultOutput:
    """Output of a result."""

    _work: Work
    _session: Session
    _single: bool
    _streamer: OutputStreamer | None = None

    if TYPE_CHECKING:

        def wait(self, timeout: float | None = -1) -> Any: ...
        def _wait_until(self, predicate: Callable[[], object], timeout: float | None) -> bool: ...

    def wait_for_output(self, timeout: float | None = -1) -> bool:
        """Wait until all output of tasks that have ended is here, which may be after the results.

        Args:
            timeout: seconds; None or negative for no limit.

        Returns:
            Whether it is.
        """
        work = self._work
        return self._wait_until(lambda: work.done and not work.uncounted_outputs, timeout)

    @contextmanager
    def stream_output(self) -> Iterator[None]:
        """Show the output of all tasks as it arrives, while this thread waits for the result.

        Example:
            >>> with ar.stream_output():  # doctest: +SKIP
            ...     ar.wait()
        """
        work = self._work
        streamer = OutputStreamer(self._session, work, self._single)
        if work.sinks is None:
            work.sinks = []
        work.sinks.append(streamer.note)
        streamer.news.extend(work.outputs or ())
        self._streamer = streamer
        try:
            streamer.flush()
            yield
            if work.done:
                self.wait_for_output(1.0)
        finally:
            streamer.flush()
            self._streamer = None
            work.sinks.remove(streamer.note)

    def display_outputs(self, groupby: str = "type", result_only: bool = False) -> None:
        """Show what the tasks have printed and displayed, each behind ``[stdout:0]`` and the like.

        Waits for the result first. With a single target there is no prefix.

        Args:
            groupby: "type" shows all stdouts, then all stderrs, then what was displayed, then the
                values; "engine" shows engine after engine; "order" is like "type" but shows the first
                display of each engine, then the second of each, and so on.
            result_only: show only the values of the last expressions.

        Raises:
            ValueError: `groupby` is none of these.
        """
        if groupby not in ("type", "engine", "order"):
            raise ValueError(f"groupby must be 'type', 'engine' or 'order', not {groupby!r}")
        self.wait()
        self.wait_for_output(1.0)
        work = self._work
        everything = range(work.total)
        if result_only:
            self._show_values(everything)
        elif groupby == "engine":
            for index in everything:
                self._show_streams([index])
                self._show_displays([index])
                self._show_values([index])
        else:
            self._show_streams(everything)
            self._show_displays(everything, in_turn=groupby == "order")
            self._show_values(everything)

    def _outputs_of(self, index: int) -> TaskOutput | None:
        return (self._work.outputs or {}).get(index)

    def _show_streams(self, indices: range | list[int]) -> None:
        for kind, file in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            for index in indices:
                output = self._outputs_of(index)
                if output is not None:
                    prefix = "" if self._single else f"[{kind}:{self._work.engine(index)}]"
                    show_stream(output.text(kind), prefix, file)

    def _show_displays(self, indices: range | list[int], in_turn: bool = False) -> None:
        shown: list[tuple[int, int, dict[str, Any]]] = []
        for index in indices:
            output = self._outputs_of(index)
            for place, content in enumerate(output.displays() if output else ()):
                shown.append((place if in_turn else 0, index, content))
        last = None
        for _, index, content in sorted(shown, key=lambda entry: entry[:2]):
            if not self._single and index != last:
                print(f"[output:{self._work.engine(index)}]")
            last = index
            show_display(content)

    def _show_values(self, indices: range | list[int]) -> None:
        for index in indices:
            output = self._outputs_of(index)
            result = output.of_kind("execute_result") if output else None
            if result:
                metadata = metadata_of(self._session, self._work, index)
                show_result(ExecuteReply(int(result.get("execution_count") or 0), metadata))
