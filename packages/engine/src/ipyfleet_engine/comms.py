"""Comms: what widgets of this engine and their front end, in a client's notebook, tell each other.

What lives here: `CommDesk`, which hands what a front end says to the kernel's comms, and remembers
which task opened which. What must not: sockets, how a comm's own messages leave (`session`).

Theory of operation
-------------------
A comm belongs to the task that opened it, for as long as it is open: whatever is said over it, and
whatever its handlers print and display, is output of that task, though the task has ended long
since. So it finds the client whose notebook shows the widget, whoever changes its value.

What a front end says waits until the main thread is between two tasks: to the runner it is a visit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import CommMessage

from .interrupts import interruptible
from .output import TaskOutput

if TYPE_CHECKING:
    from .kernel import FleetKernel

log = logging.getLogger("ipyfleet.engine")

WAITING_MAX_BYTES = 64 * 1024 * 1024
"""What may wait for the running task to end; what comes beyond it is dropped, and the log says so.
"""

_MESSAGE_OVERHEAD_BYTES = 512


class CommOwners:
    """Which task opened which comm."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskOutput] = {}

    def find(self, kind: str, comm_id: str, current: TaskOutput | None) -> TaskOutput | None:
        """Return the task that a message over a comm is output of, and keep the list of comms.

        Args:
            kind: of the message: `comm_open`, `comm_msg` or `comm_close`.
            comm_id: the comm.
            current: the task that the calling code belongs to; it owns what it opens.
        """
        if kind == "comm_open":
            if current is not None:
                self._tasks[comm_id] = current
            return current
        if kind == "comm_close":
            return self._tasks.pop(comm_id, current)
        owner = self._tasks.get(comm_id, current)
        if owner and owner.sink and current and current.sink:
            # Both are requests of a bound kernel's frontends, which all see everything.
            return current
        return owner

    def __len__(self) -> int:
        return len(self._tasks)


class CommDesk:
    """See the module docstring."""

    def __init__(
        self,
        kernel: FleetKernel,
        visit: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        """Make one.

        Args:
            kernel: whose comms they are.
            visit: `TaskRunner.visit`.
        """
        self._kernel = kernel
        self._visit = visit
        self._waiting: deque[tuple[CommMessage, list[bytes], int]] = deque()
        self._n_bytes = 0

    def receive(self, message: CommMessage, frames: Sequence[Frame]) -> None:
        """Have the main thread handle a message when no task runs; in the second thread."""
        buffers = [bytes(frame) for frame in frames]
        size = _MESSAGE_OVERHEAD_BYTES + len(message.content) + sum(map(len, buffers))
        if self._n_bytes + size > WAITING_MAX_BYTES:
            log.warning("a widget's message was dropped: too many wait for the running task")
            return
        self._n_bytes += size
        self._waiting.append((message, buffers, size))
        self._visit(self._answer_next)

    async def _answer_next(self) -> None:
        message, buffers, size = self._waiting.popleft()
        self._n_bytes -= size
        try:
            content = msgspec.msgpack.decode(message.content, type=dict[str, Any])
            comm_id = str(content["comm_id"])
            metadata = content.pop("metadata", {})
        except (msgspec.MsgspecError, KeyError) as error:
            log.warning("a widget's message was dropped: %s", error)
            return
        kernel = self._kernel
        collector = kernel.collector
        # What a front end opens is no task's: its output goes to the log.
        collector.task = kernel.comm_owners.find(message.kind, comm_id, None)
        parent = kernel.get_parent()
        kernel.set_parent([], parent)  # type: ignore[no-untyped-call]
        jupyter_message = {
            "header": {"msg_type": message.kind, "session": message.client.hex()},
            "parent_header": {},
            "metadata": metadata,
            "content": content,
            "buffers": buffers,
        }
        try:
            _handle(kernel, message.kind, jupyter_message)
        except BaseException:
            # The kernel logs Exceptions itself; SIGINT and sys.exit() come here.
            log.warning("a widget's handler was stopped", exc_info=True)
        collector.settle()


@interruptible
def _handle(kernel: FleetKernel, kind: str, message: dict[str, Any]) -> None:
    handler: Any = getattr(kernel.comm_manager, kind)
    handler(None, [], message)
