"""The Output widget of ipywidgets: what is printed in its ``with`` block shows inside the widget.

What lives here: `OutputCapture`, which takes a block's output, and `OutputWidgets`, which notices
blocks. What must not: how comms travel (`session`).

Theory of operation
-------------------
In a notebook the page does this: the widget names the request in whose output it is interested
(its state `msg_id`), and the page puts messages with that parent into the widget. The page of a
client never sees our requests. So an engine does it by itself: as long as a widget names a request,
what its code prints and displays becomes the widget's state `outputs`, which the page shows.
Without a block of that kind, and so without `interact`, nothing here runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .output import TaskOutput

if TYPE_CHECKING:
    from .output import OutputCollector

MODEL = "OutputModel"
UPDATE_S = 0.1
"""The least time between two updates inside a block; its end is one in any case."""

OUTPUTS_MAX_CHARS = 256 * 1024
"""Text that a widget shows; of more the beginning is dropped, since an update has all of it."""


class _Shown:
    """What a widget shows, as a notebook keeps outputs; `is_stale` until something replaces it."""

    __slots__ = ("is_stale", "outputs")

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.is_stale = False


Say = Callable[[str, dict[str, Any]], None]
"""Says something over a comm: its id, and the state that is new."""


class OutputCapture(TaskOutput):
    """Stands in the place of the running task while a block runs; its output becomes a state.

    Attributes:
        behind: the task whose code it is.
        outer: what stood in its place before: that task, or the capture of an outer block.
        comm_id: of the widget.
        is_over: the block has ended; threads that it has started may go on.
        sink: itself.
    """

    __slots__ = ("_say", "_shown", "_shown_at", "behind", "comm_id", "is_over", "outer", "sink")

    def __init__(self, outer: TaskOutput, comm_id: str, shown: _Shown, say: Say) -> None:
        super().__init__(outer.client, outer.seq)
        self.outer = outer
        self.behind = outer.behind or outer
        self.comm_id = comm_id
        self.is_over = False
        self.sink = self
        self._say = say
        self._shown = shown
        self._shown_at = time.monotonic()

    def write(self, name: str, text: str) -> None:
        """Take text of "stdout" or "stderr"."""
        self._clear_if_due()
        outputs = self._shown.outputs
        last = outputs[-1] if outputs else {}
        if last.get("output_type") == "stream" and last["name"] == name:
            last["text"] = (last["text"] + text)[-OUTPUTS_MAX_CHARS:]
        else:
            stream = {"output_type": "stream", "name": name, "text": text[-OUTPUTS_MAX_CHARS:]}
            outputs.append(stream)
        self._changed()

    def publish(
        self,
        kind: str,
        content: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[Any] = (),
    ) -> None:
        """Take a Jupyter message."""
        if kind == "clear_output":
            self._shown.is_stale = True
            if content.get("wait"):
                return
            self._clear_if_due()
        elif kind == "update_display_data":
            display_id = content.get("transient", {}).get("display_id")
            for output in self._shown.outputs:
                if output.get("metadata", {}).get("display_id") == display_id:
                    output["data"] = content["data"]
        elif kind in ("display_data", "execute_result", "error"):
            self._clear_if_due()
            shown = {key: value for key, value in content.items() if key != "transient"}
            display_id = content.get("transient", {}).get("display_id")
            if display_id:
                shown["metadata"] = {**shown.get("metadata", {}), "display_id": display_id}
            self._shown.outputs.append({"output_type": kind, **shown})
        self._changed()

    def show(self) -> None:
        """Tell the page what the widget shows now."""
        self._shown_at = time.monotonic()
        self._say(self.comm_id, {"outputs": self._shown.outputs})

    def _changed(self) -> None:
        if self.is_over or time.monotonic() - self._shown_at > UPDATE_S:
            self.show()

    def _clear_if_due(self) -> None:
        if self._shown.is_stale:
            self._shown.is_stale = False
            self._shown.outputs.clear()


class OutputWidgets:
    """The Output widgets of an engine."""

    def __init__(self, say: Say) -> None:
        """Make one that knows of none.

        Args:
            say: says a widget's new state over its comm.
        """
        self._say = say
        self._shown: dict[str, _Shown] = {}

    def note(self, kind: str, content: dict[str, Any], collector: OutputCollector) -> bool:
        """Look at what a widget says to the page; return whether it is to be told.

        Args:
            kind: of the message over the comm.
            content: of the message.
            collector: whose running task is replaced while a block runs.
        """
        comm_id, data = str(content.get("comm_id")), content.get("data") or {}
        state = data.get("state") if isinstance(data, dict) else None
        if kind == "comm_close":
            self._shown.pop(comm_id, None)
        elif kind == "comm_open" and isinstance(state, dict):
            if state.get("_model_name") == MODEL:
                self._shown[comm_id] = _Shown()
        elif comm_id in self._shown and isinstance(state, dict):
            if "msg_id" in state:
                return self._begin_or_end(comm_id, bool(state["msg_id"]), collector)
            if "outputs" in state:
                # Set by code: append_stdout() and the like.
                self._shown[comm_id].outputs[:] = state["outputs"]
        return True

    def _begin_or_end(self, comm_id: str, begins: bool, collector: OutputCollector) -> bool:
        task = collector.current
        if task is None or (task.behind or task).sink is not None:
            # A frontend of the bound kernel, which knows what to do.
            return True
        collector.settle()
        if begins:
            collector.task = OutputCapture(task, comm_id, self._shown[comm_id], self._say)
        elif isinstance(task, OutputCapture) and task.comm_id == comm_id:
            collector.task = task.outer
            task.is_over = True
            task.show()
        return False
