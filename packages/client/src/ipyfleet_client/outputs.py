"""What a task has printed and displayed, collected and shown.

What lives here: `TaskOutput`, which puts the items of one task in order, `ExecuteReply`, the value
    of an
`execute`, and the functions that print or display outputs with the prefixes that users know. What
must
not: sockets, knowledge of which message brought an item.

Items may come in any order, over two channels; `OutputItem.index` restores theirs. What cannot be
shown yet, because an item before it is missing, waits in `TaskOutput`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import OutputItem

_STREAMS = ("stdout", "stderr")
_GAP = ("stderr", "[output was lost here: the controller was started anew]\n")
_REPLACING = frozenset({*_STREAMS, "display_data", "execute_result", "error"})
_RED, _RESET = "\x1b[0;31m", "\x1b[0m"


class TaskOutput:
    """The output of one task.

    Attributes:
        items: ``(kind, content)`` in order; content is a str for the streams, else the dictionary
            of the Jupyter message, with ``buffers`` where there are some.
            Those of earlier attempts come before those of the last.
        received: number of items of the last attempt that have arrived, in order or not.
        dropped_bytes: output that was dropped on the way because a bound was hit.
        n_bytes: about what the items take.
    """

    __slots__ = (
        "_early",
        "_has_lost",
        "_next",
        "_over",
        "_source",
        "dropped_bytes",
        "items",
        "n_bytes",
        "received",
    )

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self.received = 0
        self.dropped_bytes = 0
        self.n_bytes = 0
        self._early: dict[int, tuple[str, Any]] = {}
        self._next = 0
        self._has_lost = False
        # Where the items come from now, an engine and an attempt; and where they came from before.
        self._source: tuple[int, int] | None = None
        self._over: tuple[tuple[int, int], ...] = ()

    def add(self, item: OutputItem, buffers: Sequence[Frame], engine: int = -1) -> None:
        """Take one item; one that is there already, or comes from an attempt that is over, is
        ignored.
        """
        source = (engine, item.attempt)
        if source != self._source and not self._begin_attempt(source):
            return
        position = item.index
        if position < self._next or position in self._early:
            return
        self.received += 1
        self.dropped_bytes += item.dropped_bytes
        self.n_bytes += len(item.content) + sum(map(len, buffers))
        self._early[position] = (item.kind, _content(item, buffers))
        if self._has_lost and position > self._next:
            self.close_gaps()
        self._has_lost = False
        while self._next in self._early:
            self.items.append(self._early.pop(self._next))
            self._next += 1

    def note_loss(self) -> None:
        """Items may be missing before the next that comes: it is not to wait for them."""
        self._has_lost = True

    def _begin_attempt(self, source: tuple[int, int]) -> bool:
        if source in self._over:
            return False
        if self._source is not None:
            self.close_gaps()
            self._over = (*self._over, self._source)
            self._next = self.received = 0
        self._source = source
        return True

    def close_gaps(self) -> None:
        """What is missing will not come: show what came after it."""
        for position in sorted(self._early):
            if position > self._next:
                self.items.append(_GAP)
            self.items.append(self._early.pop(position))
            self._next = position + 1

    def text(self, stream: str) -> str:
        """Return what the task has written to "stdout" or "stderr", carriage returns applied."""
        return collapse_returns("".join(c for kind, c in self.items if kind == stream))

    def visible_text(self, stream: str) -> str:
        """Return what a notebook would show of a stream: the text since it was last cleared."""
        return collapse_returns("".join(c for kind, c in self._visible() if kind == stream))

    def _visible(self) -> list[tuple[str, Any]]:
        """The items since the output was cleared, which may have waited for the next item."""
        start = 0
        for position, (kind, content) in enumerate(self.items):
            if kind == "clear_output":
                waits = isinstance(content, dict) and content.get("wait")
                if not waits or any(k in _REPLACING for k, _ in self.items[position + 1 :]):
                    start = position + 1
        return self.items[start:]

    def of_kind(self, kind: str) -> Any | None:
        """Return the content of the last item of a kind, or None."""
        return next((c for k, c in reversed(self.items) if k == kind), None)

    def displays(self) -> list[dict[str, Any]]:
        """Return what was displayed, in order, as Jupyter contents (``data``, ``metadata``)."""
        shown: list[dict[str, Any]] = []
        for kind, content in self._visible():
            if kind == "display_data":
                shown.append(content)
            elif kind == "update_display_data":
                wanted = content.get("transient", {}).get("display_id")
                for place, earlier in enumerate(shown):
                    if wanted and earlier.get("transient", {}).get("display_id") == wanted:
                        shown[place] = content
        return shown

    def published(self) -> dict[str, Any]:
        """Return what the task has published with `publish_data`, merged.

        What cannot be unpickled here is left out, with a RuntimeWarning.
        """
        merged: dict[str, Any] = {}
        for kind, content in self.items:
            if kind == "data":
                merged.update(content.value())
        return merged


class _Published:
    """What a task has published: unpickled when somebody asks, in the thread of who does."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames: Sequence[Frame] | None = frames
        self._value: dict[str, Any] = {}

    def value(self) -> dict[str, Any]:
        frames = self._frames
        if frames:
            from ipyfleet_protocol.serialize import UnpackError, unpack

            try:
                value = unpack(memoryview(frames[0]), [memoryview(b) for b in frames[1:]])
            except UnpackError as error:
                text = f"what a task has published is left out of its data: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=3)
                return {}
            if isinstance(value, dict):
                self._value = value
            # Another thread that is here, too, finds the value before it finds this.
            self._frames = None
        return self._value


def _content(item: OutputItem, buffers: Sequence[Frame]) -> Any:
    if item.kind in _STREAMS:
        text = item.content.decode("utf-8", "replace")
        if item.dropped_bytes:
            text = f"\n[{item.dropped_bytes} bytes of output were dropped here]\n{text}"
        return text
    if item.kind == "data":
        # No buffers: dropped on the way, only its size has arrived.
        return _Published(buffers)
    content = msgspec.msgpack.decode(item.content) if item.content else {}
    if buffers and isinstance(content, dict):
        content["buffers"] = [memoryview(buffer) for buffer in buffers]
    return content


def collapse_returns(text: str) -> str:
    """Apply carriage returns as a terminal does: what follows one replaces its line."""
    if "\r" not in text:
        return text
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        kept = line.rstrip("\r")
        last = kept.rpartition("\r")[2]
        lines.append(last + "\r" if line != kept and last else last)
    return "\n".join(lines).replace("\r\n", "\n").removesuffix("\r")


class ExecuteReply:
    """The value of an `execute`: its number, and the value of its last expression if there was one.

    In a notebook it displays as that value. Its attributes are those of the task's `Metadata`, too.

    Attributes:
        execution_count: the engine's number of the execution.
        execute_result: the Jupyter content (``data``, ``metadata``) of the value, or None.
        metadata: the task's `Metadata`.
    """

    def __init__(self, execution_count: int, metadata: Any) -> None:
        self.execution_count = execution_count
        self.metadata = metadata
        self.execute_result: dict[str, Any] | None = metadata["execute_result"]

    @property
    def data(self) -> dict[str, Any]:
        """The representations of the value by MIME type."""
        return dict((self.execute_result or {}).get("data", {}))

    def __getitem__(self, key: str) -> Any:
        return self.metadata[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.metadata[name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        text = str(self.data.get("text/plain", ""))
        shortened = text if len(text) <= 32 else text[:29] + "..."
        return f"<ExecuteReply[{self.execution_count}]: {shortened}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        text = self.data.get("text/plain", "")
        if not text:
            printer.text(repr(self))
            return
        head = f"Out[{self.metadata['engine_id']}:{self.execution_count}]: "
        printer.text(_RED + head + _RESET)
        if "\n" in text:
            printer.text("\n")
        printer.text(text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        if not self.execute_result:
            return {}
        bundle = self.data
        if "text/plain" in bundle:
            text = bundle["text/plain"]
            head = f"{_RED}Out[{self.metadata['engine_id']}:{self.execution_count}]: {_RESET}"
            bundle["text/plain"] = head + ("\n" if "\n" in text else "") + text
        return bundle, dict(self.execute_result.get("metadata", {}))


# -- showing ----------------------------------------------------------------------------------


def in_ipython() -> bool:
    """Whether this process runs an IPython shell. Does not import IPython."""
    module = sys.modules.get("IPython")
    return module is not None and module.get_ipython() is not None


def show_stream(text: str, prefix: str = "", file: TextIO | None = None) -> None:
    """Print a task's text behind its prefix."""
    if not text:
        return
    file = sys.stdout if file is None else file
    if prefix:
        text = f"{prefix} {text}"
    file.write(text if text.endswith("\n") else text + "\n")
    file.flush()


def _publish(data: dict[str, Any], metadata: dict[str, Any]) -> None:
    # Through the shell, as IPython's own functions do: no import of it here.
    sys.modules["IPython"].get_ipython().display_pub.publish(data=data, metadata=metadata)


def show_display(content: dict[str, Any]) -> None:
    """Display a Jupyter content: through IPython where that runs, else print its text."""
    if in_ipython():
        _publish(content.get("data", {}), content.get("metadata", {}))
    else:
        print(content.get("data", {}).get("text/plain", ""))


def show_result(reply: ExecuteReply) -> None:
    """Display the value of an `execute` behind its ``Out[engine:number]:``."""
    if not reply.execute_result:
        return
    if in_ipython():
        bundle, metadata = reply._repr_mimebundle_()
        _publish(bundle, metadata)
    else:
        text = reply.data.get("text/plain", "")
        head = f"Out[{reply.metadata['engine_id']}:{reply.execution_count}]:"
        print(f"{head}\n{text}" if "\n" in text else f"{head} {text}")
