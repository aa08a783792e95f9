"""The output of the tasks of a result, as it comes and afterwards.

What lives here: the part of `AsyncResult` about output: waiting for it, showing it grouped,
    streaming it live.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ipyfleet_client.merging import merge_texts
from ipyfleet_client.metadata import metadata_of
from ipyfleet_client.outputs import (
    ExecuteReply,
    TaskOutput,
    show_display,
    show_result,
    show_stream,
)
from ipyfleet_client.streaming import OutputStreamer

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session

Sink: TypeAlias = Callable[[int, TaskOutput], None]
GroupBy = Literal["type", "engine", "order"]


class ResultOutput:
    """Output of a result."""

    _work: Work
    _session: Session
    _single: bool
    _streamer: OutputStreamer | None = None

    if TYPE_CHECKING:

        def wait(self, timeout: float | None = -1) -> Any:
            """As `AsyncResult.wait`."""

        def _sources(self) -> list[tuple[Work, int]]: ...

        def _wait_until(self, predicate: Callable[[], object], timeout: float | None) -> bool: ...

    def wait_for_output(self, timeout: float | None = -1) -> bool:
        """Wait until all output of tasks that have ended is here, which may be after the results.

        Args:
            timeout: seconds; None or negative for no limit.

        Returns:
            Whether it is.
        """
        work = self._work
        return self._wait_until(lambda: work.has_all_output, timeout)

    @contextmanager
    def stream_output(self, follow: bool = False) -> Iterator[None]:
        """Show the output of all tasks as it arrives, while this thread waits for the result.

        Args:
            follow: when the result is there by the end of the block, go on showing what threads of
                its tasks print afterwards, in the place where the block was: the same cell of a
                notebook.

        Example:
            >>> with ar.stream_output():  # doctest: +SKIP
            ...     ar.wait()
        """
        streamer = OutputStreamer(self._session, self._work, self._single)
        sinks = self._attach(streamer)
        self._streamer = streamer
        try:
            yield
        finally:
            self._streamer = None
            if follow and self._work.done:
                streamer.finish()
                for work, _ in sinks:
                    self._session.link.follow(work)
                streamer.follow()
            else:
                for work, sink in sinks:
                    if work.sinks is not None:
                        work.sinks.remove(sink)
                streamer.finish()

    def _attach(self, streamer: OutputStreamer) -> list[tuple[Work, Sink]]:
        """Have a streamer told of output; return what is to be taken back."""
        positions: dict[int, tuple[Work, dict[int, int]]] = {}
        for position, (work, index) in enumerate(self._sources()):
            positions.setdefault(id(work), (work, {}))[1][index] = position
        sinks: list[tuple[Work, Sink]] = []
        for work, places in positions.values():

            def note(index: int, output: TaskOutput, places: dict[int, int] = places) -> None:
                if index in places:
                    streamer.note(places[index], output)

            if work.sinks is None:
                work.sinks = []
            work.sinks.append(note)
            sinks.append((work, note))
        return sinks

    def display_outputs(self, groupby: str = "type", result_only: bool = False) -> None:
        """Show what the tasks have printed and displayed, each behind ``[stdout:0]`` and the like.

        Waits for the result first. With a single target there is no prefix.

        Args:
            groupby: "type" shows all stdouts, then all stderrs, then what was displayed, then the
                values; "engine" shows engine after engine; "order" is like "type" but shows the
                first display of each engine, then the second of each, and so on.
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
            texts = []
            for index in indices:
                output = self._outputs_of(index)
                text = output.visible_text(kind) if output is not None else ""
                if text:
                    texts.append((self._work.engine(index), text))
            for engines, text in merge_texts(texts):
                show_stream(text, "" if self._single else f"[{kind}:{engines}]", file)

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
