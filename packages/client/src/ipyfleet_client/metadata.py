"""What is known of one task besides its value.

What lives here: `Metadata` and the function that makes one from the columns, on demand. What must
    not:
anything kept per task.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ipyfleet_client.pending import PENDING, STATUS_NAMES, Work
from ipyfleet_protocol.dependencies import msg_ids_of
from ipyfleet_protocol.errors import error_from_info
from ipyfleet_protocol.messages import FAILED, OK

if TYPE_CHECKING:
    from ipyfleet_client.session import Session

_DEFAULTS: dict[str, Any] = {
    "msg_id": None,
    "submitted": None,
    "started": None,
    "completed": None,
    "received": None,
    "engine_uuid": None,
    "engine_id": None,
    "follow": [],
    "after": [],
    "status": None,
    "execute_input": None,
    "execute_result": None,
    "error": None,
    "stdout": "",
    "stderr": "",
    "outputs": [],
    "data": {},
    "label": None,
}

METADATA_KEYS = frozenset(_DEFAULTS)


class Metadata(dict[str, Any]):
    """What is known of one task: a dictionary whose items are attributes, too.

    Its keys are fixed: msg_id, label, status (None, "ok", "error", "aborted"), engine_id,
        engine_uuid;
    submitted, started, completed, received (datetimes, UTC); stdout, stderr (text), outputs
    (displayed things as Jupyter contents), execute_input, execute_result, error, data (what the
    task published); after, follow.
    """

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__(
            {k: type(v)() if isinstance(v, list | dict) else v for k, v in _DEFAULTS.items()}
        )
        for key, value in (values or {}).items():
            self[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key not in self:
            raise AttributeError(key)
        self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in METADATA_KEYS:
            raise KeyError(key)
        super().__setitem__(key, value)


def as_datetime(stamp: float | None) -> datetime | None:
    """Return seconds since the epoch as a datetime in UTC."""
    return None if stamp is None else datetime.fromtimestamp(stamp, UTC)


def metadata_of(session: Session, work: Work, index: int) -> Metadata:
    """Make the metadata of one task from what is there now."""
    values: dict[str, Any] = {
        "submitted": as_datetime(work.submitted),
        "label": work.label or None,
        "after": msg_ids_of(work.after),
        "follow": msg_ids_of(work.follow),
    }
    seq = work.seq(index)
    if work.foreign_ids is not None:
        values["msg_id"] = work.foreign_ids[index]
    elif seq is not None:
        values["msg_id"] = session.submit.msg_id(seq)
    engine = work.engine(index)
    values["engine_id"] = engine
    values["engine_uuid"] = session.link.engines.uuid(engine)
    place = work.locate(index)
    if place is not None:
        segment, position = place
        started, completed = segment.times(position)
        values["started"] = as_datetime(started)
        values["completed"] = as_datetime(completed)
        values["received"] = as_datetime(segment.received)
        status = work.status[index]
        values["status"] = STATUS_NAMES.get(status)
        if status not in (OK, PENDING):
            values["error"] = error_from_info(segment.error(position))
            if status == FAILED and engine is None and values["error"].engine_info:
                values["engine_id"] = values["error"].engine_info["engine_id"]
    output = (work.outputs or {}).get(index)
    values["execute_input"] = work.code
    if output is not None:
        values["stdout"] = output.text("stdout")
        values["stderr"] = output.text("stderr")
        values["outputs"] = output.displays()
        values["execute_result"] = output.of_kind("execute_result")
        values["data"] = output.published()
    return Metadata(values)
