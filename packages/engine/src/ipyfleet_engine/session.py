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

from .output import OutputCollector

log = logging.getLogger("ipyfleet.engine")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_KINDS = frozenset(get_args(OutputKind))
_COMM_KINDS = frozenset({"comm_open", "comm_msg", "comm_close"})


class FleetSession(Session):
    """A Jupyter session without sockets.

    What is not output of a task (``status``, replies, debug events) is left out: nobody asked for
    it.
    """

    collector: OutputCollector | None = None
    """Where messages go; None: nowhere."""

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
        sink = None if self.collector is None else self.collector.sink
        if sink is not None:
            sink.publish(kind, message["content"], message.get("metadata"), buffers or ())
        elif self.collector is not None and kind in _KINDS:
            content = message["content"]
            if kind in _COMM_KINDS and message.get("metadata"):
                # A comm_open's metadata names the version of the widget protocol.
                content = {**(content or {}), "metadata": message["metadata"]}
            if not self.collector.publish(kind, content, buffers or ()) and kind == "error":
                _log_error(content or {})
        return message


def _log_error(content: dict[str, Any]) -> None:
    """Log an error that no task gets: that of start-up code."""
    lines = content.get("traceback") or [f"{content.get('ename')}: {content.get('evalue')}"]
    log.error("code outside of tasks failed:\n%s", _COLOURS.sub("", "\n".join(lines)))
