"""Comms: widgets that live on engines, shown in the notebook that this client runs in.

What lives here: `OpenComms`, the list of comms that engines have opened, with no I/O, and
`CommRelay`, which mirrors each in the Jupyter kernel that this process is. What must not: widgets.

Theory of operation
-------------------
A widget is a comm between a kernel and its front end, the notebook. An engine's widget has a comm
there; the relay opens one of the same id, target and data here, so that the notebook makes the
widget's view, and hands on what either side says. Widgets refer to each other by these ids, so they
must be the same.

What an engine says over a comm is output of the task that opened it, and comes in the order of that
task's output. It goes on when the task has ended and nobody holds its result, so the result is kept
for as long as the task has a comm open; what was handed on is not.

A comm here ends when either side closes it, when its engine is lost and when the client is closed.
What the engine has of it ends with the first and the last of these: its widget is closed, too,
unless it is the client that has gone without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from ipyfleet_client.outputs import TaskOutput
from ipyfleet_client.pending import Work
from ipyfleet_client.screens import in_kernel
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.columns import Frame

logger = logging.getLogger("ipyfleet.client")

COMM_KINDS: tuple[m.CommKind, ...] = ("comm_open", "comm_msg", "comm_close")

_RELAYED: tuple[str, dict[str, Any]] = ("comm_msg", {})
"""Takes the place of what was handed on in `TaskOutput.items`."""

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode


class RelayComm(NamedTuple):
    """An engine has said something over a comm; `content` as of the Jupyter message, and
    ``metadata`` and ``buffers`` where there are some.
    """

    engine: int
    kind: str
    content: dict[str, Any]


class OpenComms:
    """Which comms are open, and the tasks that opened them."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[int, int]] = {}
        self._tasks: dict[int, tuple[Work, int, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, seq: int) -> tuple[Work, int] | None:
        """Return the work and index of a task that has a comm open; None of any other."""
        entry = self._tasks.get(seq)
        return entry[:2] if entry is not None else None

    def tasks(self) -> Iterable[tuple[Work, int]]:
        """Return the work and index of each task that has a comm open."""
        return [entry[:2] for entry in self._tasks.values()]

    def take(
        self, engine: int, seq: int, work: Work, index: int, output: TaskOutput, start: int
    ) -> list[RelayComm]:
        """Take out what is to be handed on of a task's output.

        Args:
            engine: where the task runs.
            seq: the task.
            work, index: the same.
            output: its output.
            start: number of the items that have been looked at before.
        """
        items = output.items
        news = []
        for position in range(start, len(items)):
            kind, content = items[position]
            if kind in COMM_KINDS:
                items[position] = _RELAYED
                if isinstance(content, dict) and isinstance(content.get("comm_id"), str):
                    comm_id = content["comm_id"]
                    if kind == "comm_open":
                        self._owners[comm_id] = (engine, seq)
                        self._tasks.setdefault(seq, (work, index, set()))[2].add(comm_id)
                    elif kind == "comm_close":
                        self.close(comm_id)
                    news.append(RelayComm(engine, kind, content))
        return news

    def lose(self, engines: Iterable[int]) -> None:
        """Forget the comms of engines that are gone."""
        gone = set(engines)
        for comm_id, (engine, _) in list(self._owners.items()):
            if engine in gone:
                self.close(comm_id)

    def close(self, comm_id: str) -> None:
        """Forget a comm."""
        _, seq = self._owners.pop(comm_id, (-1, -1))
        entry = self._tasks.get(seq)
        if entry is not None:
            entry[2].discard(comm_id)
            if not entry[2]:
                del self._tasks[seq]


class CommRelay:
    """Mirrors the comms of engines in this process's kernel; does nothing where there is none."""

    def __init__(
        self,
        send: Callable[[m.CommMessage, Sequence[Frame]], None],
        forget: Callable[[str], None],
    ) -> None:
        """Make one without comms.

        Args:
            send: sends a message to the controller; from any thread.
            forget: called with the id of a comm that the front end has closed.
        """
        self._send = send
        self._forget = forget
        self._mirrors: dict[str, tuple[int, Any]] = {}

    def __len__(self) -> int:
        return len(self._mirrors)

    def handle(self, news: RelayComm) -> None:
        """Hand on what an engine has said; in the receiving thread."""
        content = news.content
        try:
            if news.kind == "comm_open":
                self._open(news.engine, content)
            elif news.kind == "comm_msg":
                _, mirror = self._mirrors.get(content["comm_id"], (-1, None))
                if mirror is not None:
                    mirror.send(**_parts(content))
            else:
                _, mirror = self._mirrors.pop(content["comm_id"], (-1, None))
                if mirror is not None:
                    mirror.close(**_parts(content))
        except Exception:
            # Kernels of other makes may lack what we use; results go on.
            logger.warning("a widget of engine %d cannot be shown", news.engine, exc_info=True)

    def lose(self, engines: Iterable[int]) -> None:
        """Close the comms of engines that are gone."""
        gone = set(engines)
        for comm_id, (engine, _) in list(self._mirrors.items()):
            if engine in gone:
                self.handle(RelayComm(engine, "comm_close", {"comm_id": comm_id}))

    def close(self) -> None:
        """Close all comms, here and on the engines, which are told while that is still possible."""
        for comm_id, (engine, _) in list(self._mirrors.items()):
            self._tell(engine, "comm_close", {"comm_id": comm_id, "data": {}}, ())
            self.handle(RelayComm(engine, "comm_close", {"comm_id": comm_id}))

    def _open(self, engine: int, content: dict[str, Any]) -> None:
        if not in_kernel():
            return
        from comm import create_comm

        comm_id = content["comm_id"]
        mirror: Any = create_comm(
            target_name=content["target_name"],
            target_module=content.get("target_module"),
            comm_id=comm_id,
            **_parts(content),
        )
        self._mirrors[comm_id] = (engine, mirror)

        def tell(kind: m.CommKind, message: dict[str, Any]) -> None:
            said = {"comm_id": comm_id, "data": message["content"].get("data", {})}
            if message.get("metadata"):
                said["metadata"] = message["metadata"]
            self._tell(engine, kind, said, message.get("buffers") or ())

        def close(message: dict[str, Any]) -> None:
            self._mirrors.pop(comm_id, None)
            self._forget(comm_id)
            tell("comm_close", message)

        mirror.on_msg(lambda message: tell("comm_msg", message))
        mirror.on_close(close)

    def _tell(
        self, engine: int, kind: m.CommKind, said: dict[str, Any], buffers: Sequence[Any]
    ) -> None:
        message = m.CommMessage(engine, b"", kind, _encode(said))
        self._send(message, [bytes(memoryview(buffer)) for buffer in buffers])


def _parts(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": content.get("data"),
        "metadata": content.get("metadata"),
        "buffers": content.get("buffers"),
    }
