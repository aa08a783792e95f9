"""Results of tasks that this client did not submit, or whose result it has let go of.

What lives here: `AsyncHubResult`. It asks the hub once; the hub answers with what it has and tells
of the rest as it ends. What must not: questions about records (`hub.py`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.metadata import Metadata, as_datetime
from ipyfleet_client.outputs import TaskOutput
from ipyfleet_client.pending import PENDING, STATUS_NAMES, Segment, Work
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import parse_msg_id

if TYPE_CHECKING:
    from ipyfleet_client.client import Client

_STATUSES = {name: status for status, name in STATUS_NAMES.items()}
_RECORDED = ("label", "engine_uuid", "execute_input", "after", "follow")
"""Fields of a record that metadata have, too."""


class HubWork(Work, eq=False, weakref=True):
    """Tasks known by their records.

    Attributes:
        methods: the method of each task.
    """

    methods: list[str] = msgspec.field(default_factory=list)

    def value(self, index: int) -> Any:
        """Return the value of a task that has ended, or its error as an exception object."""
        place = self.locate(index)
        if place is not None and self.status[index] == m.OK and self.methods[index] == "execute":
            return place[0].execute_info(place[1])
        return super().value(index)

    def values(self) -> list[Any]:
        """Return all values, or errors as exception objects, in the order of the tasks."""
        return [self.value(index) for index in range(self.total)]


class AsyncHubResult(AsyncResult):
    """The result of tasks by their msg_ids, whoever submitted them.

    Like any `AsyncResult`; but a task that was submitted elsewhere cannot be aborted here.

    Attributes:
        unknown: msg_ids that the hub does not know.
    """

    _work: HubWork

    def __init__(self, client: Client, msg_ids: Sequence[str], *, single: bool) -> None:
        """Ask the hub; does not wait.

        Args:
            client: whose.
            msg_ids: the tasks, each once.
            single: the value is that of the only task, not a list.
        """
        import time

        work = HubWork(
            len(msg_ids),
            method="apply",
            name="hub",
            submitted=time.time(),
            foreign_ids=list(msg_ids),
            methods=["apply"] * len(msg_ids),
        )
        super().__init__(client, work, single=single)
        self.unknown: list[str] = []
        self._records: list[dict[str, Any]] = [{} for _ in msg_ids]
        self._indices = {msg_id: index for index, msg_id in enumerate(msg_ids)}
        self._told = False
        self._note_own_seqs(work, msg_ids)
        self._request = self._session.request(m.AwaitResults(list(msg_ids)), take=self._take)
        self._request.add_done_callback(self._over)

    def _note_own_seqs(self, work: Work, msg_ids: Sequence[str]) -> None:
        for index, msg_id in enumerate(msg_ids):
            try:
                peer, seq = parse_msg_id(msg_id)
            except ValueError:
                continue
            if peer == self._session.peer:
                work.sent(index, seq, 1)

    # -- told by the session, in the receiving thread -----------------------------------------

    def _take(self, content: bytes, frames: Sequence[Frame]) -> bool:
        """Take one of the hub's replies; return whether it was the last."""
        work, at = self._work, 0
        for msg_id, record in msgspec.msgpack.decode(content, type=dict[str, Any]).items():
            index = self._indices.get(msg_id)
            if record is None:
                self.unknown.append(msg_id)
                continue
            count = record.get("frames", 0)
            payload, at = frames[at : at + count], at + count
            if index is None:
                continue
            self._records[index] = record
            work.methods[index] = record["method"]
            if record["status"] is not None:
                self._add_outputs(index, record.pop("outputs", ()))
                self._add(index, record, payload)
        known = [record for record in self._records if record]
        if known:
            work.name = known[0]["name"] or known[0]["method"]
            work.submitted = min(record["submitted"] for record in known)
            if len(set(work.methods)) == 1:
                work.method = work.methods[0]
        self._told = True
        return work.done or bool(self.unknown)

    def _add(self, index: int, record: dict[str, Any], frames: Sequence[Frame]) -> None:
        status = _STATUSES[record["status"]]
        if not frames:
            status, frames = m.FAILED, [encode_part(_lost(record))]
        engine = -1 if record["engine_id"] is None else record["engine_id"]
        segment = Segment(_piece(record, status, frames), frames, engine, record["received"])
        with self._session.link.lock:
            work = self._work
            work.add(index, 1, segment, 0)
            done = work.feed_followers(index, 1)
            if work.done and work.owner is not None:
                done.append(work)
        for ended in done:
            self._session._finish(ended)

    def _add_outputs(self, index: int, items: Sequence[Any]) -> None:
        """Take what a task has printed and displayed, as far as it was recorded."""
        if not items:
            return
        output = TaskOutput()
        for seq, number, kind, content, buffers, dropped_bytes in items:
            item = m.OutputItem(seq, number, kind, content, len(buffers), dropped_bytes)
            output.add(item, buffers)
        output.close_gaps()
        with self._session.link.lock:
            if self._work.outputs is None:
                self._work.outputs = {}
            self._work.outputs[index] = output

    def _over(self, request: Future[Any]) -> None:
        """The hub will tell no more: because all is told, or because it refused or is gone."""
        error = request.exception()
        if error is None:
            return
        for index, status in enumerate(self._work.status):
            if status == PENDING:
                record = {**_NOTHING, "error": {"ename": type(error).__name__}}
                record["error"]["evalue"] = str(error)
                self._add(index, record, ())

    # -- about the tasks ----------------------------------------------------------------------

    def wait_until_known(self, timeout_s: float) -> None:
        """Wait for the hub's first answer.

        Raises:
            KeyError: it does not know all of the tasks.
            TimeoutError: it does not answer.
        """
        if not self._session.wait_until(lambda: self._told or self._request.done(), timeout_s):
            raise TimeoutError(f"the controller did not answer within {timeout_s:g} s")
        if self.unknown:
            raise KeyError(
                f"no task {', '.join(self.unknown[:4])} is known here or to the controller; "
                "rc.hub_history() lists those that are. Records are dropped when they are purged "
                "or older than what the database keeps"
            )

    def abort(self, force: bool = False, grace: float = 1.0) -> None:
        """End the tasks that have not ended. See `AsyncResult.abort`.

        Raises:
            RuntimeError: all have ended, or one of them was submitted by another client.
        """
        if not self.ready():
            self._check_abortable()
        super().abort(force, grace)

    def _check_abortable(self) -> None:
        if sum(1 for _ in self._work.seqs()) < self._work.total:
            raise RuntimeError("a task can be aborted by the client that submitted it only")

    def _metadata(self, index: int) -> Metadata:
        metadata = super()._metadata(index)
        record = self._records[index]
        if record:
            metadata["submitted"] = as_datetime(record["submitted"])
            for key in _RECORDED:
                if record.get(key):
                    metadata[key] = record[key]
        return metadata

    def _metadata_item(self, key: str) -> Any:
        if self._single:
            return self._metadata(0)[key]
        return [self._metadata(index)[key] for index in range(self._work.total)]


_NOTHING: dict[str, Any] = {
    "status": "error",
    "started": None,
    "completed": None,
    "received": 0.0,
    "engine_id": None,
    "engine_uuid": None,
}


def _piece(record: dict[str, Any], status: int, frames: Sequence[Frame]) -> m.ResultSlice:
    def stamp(key: str) -> bytes:
        return struct.pack("<d", math.nan if record[key] is None else record[key])

    n_buffers = len(frames) - 1
    counts = struct.pack("<I", n_buffers) if n_buffers else b""
    columns = m.Columns(struct.pack("<I", len(frames[0])), counts)
    return m.ResultSlice(
        0, 1, 0, -1, bytes((status,)), stamp("started"), stamp("completed"), b"", columns
    )


def _lost(record: dict[str, Any]) -> m.ErrorInfo:
    """Return the error that stands for a payload that the hub does not have."""
    engine = -1 if record["engine_id"] is None else record["engine_id"]
    uuid, error = record["engine_uuid"] or "", record.get("error")
    if error:
        trace = error.get("traceback") or []
        return m.ErrorInfo(error["ename"], error["evalue"], trace, engine, uuid)
    why = record.get("result") or "purged"
    text = (
        f"the task has ended, and its value was not kept by the controller ({why}); the client "
        "that submitted it has it, or rc.resubmit(msg_id) runs it again"
    )
    return m.ErrorInfo("KernelError", text, [], engine, uuid, own=True)
