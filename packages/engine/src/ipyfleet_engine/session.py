"""The seam that replaces IPython's iopub socket: kernel messages become output of tasks.

What lives here: `FleetSession`. Display hook, display publisher and comms of ipykernel all
publish through ``Session.send``; this one hands what they send to the `OutputCollector`. What
must not: sockets.
"""

from __future__ import annotations

import logging
import re
from typing import Any, get_args

from jupyter_client.session import Session

from ipyfleet_protocol.messages import OutputKind

from .comms import CommOwners
from .output import COMM_KINDS, OutputCollector
from .outputwidget import OutputWidgets

log = logging.getLogger("ipyfleet.engine")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_KINDS = frozenset(get_args(OutputKind))


class FleetSession(Session):
    """A Jupyter session without sockets.

    What is not output of a task (``status``, replies, debug events) is left out: nobody asked for
    it.
    """

    collector: OutputCollector | None = None
    """Where messages go; None: nowhere."""

    owners: CommOwners | None = None
    """Which tasks' output messages over comms are; None: the running one's."""

    output_widgets: OutputWidgets | None = None
    """Widgets that show what is printed; None: not looked at."""

    def send(
        self,
        stream: Any,
        msg_or_type: dict[str, Any] | str,
        content: dict[str, Any] | None = None,
        parent: Any = None,
        ident: Any = None,
        buffers: Any = None,
        track: bool = False,
        header: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Publish a message as output of the running task.

        Args:
            msg_or_type: the message, or its type.
            content, buffers, metadata: of the message.
            stream, parent, ident, track, header: for sockets; not looked at.

        Returns:
            The message.
        """
        if isinstance(msg_or_type, str):
            message = self.msg(msg_or_type, content=content, metadata=metadata)
        else:
            message = msg_or_type
            buffers = buffers or message.get("buffers")
        kind = message["header"]["msg_type"]
        collector = self.collector
        if collector is None:
            return message
        content = message["content"]
        task = collector.current
        if kind in COMM_KINDS and self.owners is not None:
            content = content or {}
            widgets = self.output_widgets
            if widgets is not None and not widgets.note(kind, content, collector):
                return message
            task = None if task is None else task.behind or task
            task = self.owners.find(kind, str(content.get("comm_id")), task)
        if task is not None and task.sink is not None:
            task.sink.publish(kind, content, message.get("metadata"), buffers or ())
        elif kind in _KINDS:
            if kind in COMM_KINDS and message.get("metadata"):
                # A comm_open's metadata names the version of the widget protocol.
                content = {**(content or {}), "metadata": message["metadata"]}
            if not collector.publish(kind, content, buffers or (), task) and kind == "error":
                _log_error(content or {})
        return message

    def say_state(self, comm_id: str, state: dict[str, Any]) -> None:
        """Tell a widget's page its new state."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        self.send(None, "comm_msg", {"comm_id": comm_id, "data": data})


def _log_error(content: dict[str, Any]) -> None:
    """Log an error that no task gets: that of start-up code."""
    lines = content.get("traceback") or [f"{content.get('ename')}: {content.get('evalue')}"]
    log.error("code outside of tasks failed:\n%s", _COLOURS.sub("", "\n".join(lines)))
