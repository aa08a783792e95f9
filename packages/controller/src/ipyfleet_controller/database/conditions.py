"""What a group's tasks waited for, asked of engines and ran, as its records tell it.

What lives here: `pack_conditions`, from a group's options to bytes that a database keeps without
looking into them, and `condition_fields`, from those to fields of a record. What must not: whether
the conditions are met.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipyfleet_protocol.dependencies import msg_ids_of
from ipyfleet_protocol.ids import PeerId, format_msg_id
from ipyfleet_protocol.messages import Dependency, Options

MAX_CODE_BYTES = 1 << 16
"""Of the code of an `execute` so much is recorded."""

MAX_NAMED = 1024
"""Tasks of a dependency that a record names one by one; of more it names ranges."""


class _Conditions(msgspec.Struct, array_like=True):
    after: Dependency | None
    follow: Dependency | None
    timeout_s: float
    retries: int
    priority: int
    resources: dict[str, float]
    code: bytes | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Conditions)


def pack_conditions(options: Options, code: bytes | None = None) -> bytes:
    """Return what is to be kept of a group's options, and of the code of an `execute`; empty where
    nothing was asked for.
    """
    is_usual = options.after is None and options.follow is None and not options.resources
    if is_usual and not (options.timeout_s or options.retries or options.priority) and code is None:
        return b""
    asked = _Conditions(
        options.after,
        options.follow,
        options.timeout_s,
        options.retries,
        options.priority,
        options.resources,
        None if code is None else code[:MAX_CODE_BYTES],
    )
    return _encoder.encode(asked)


def condition_fields(conditions: bytes) -> dict[str, Any]:
    """Return the fields of a record; for their meaning see `base.FIELDS`."""
    asked = _decoder.decode(conditions) if conditions else _NOTHING
    return {
        "after": _tasks(asked.after),
        "follow": _tasks(asked.follow),
        "timeout": asked.timeout_s or None,
        "retries": asked.retries,
        "priority": asked.priority,
        "resources": asked.resources or None,
        "execute_input": None if asked.code is None else asked.code.decode(errors="ignore"),
    }


def _tasks(dependency: Dependency | None) -> list[str] | None:
    if dependency is None:
        return None
    if sum(piece.count for piece in dependency.tasks) <= MAX_NAMED:
        return msg_ids_of(dependency)
    return [
        f"{format_msg_id(PeerId(piece.client), piece.first)}..{piece.first + piece.count - 1}"
        for piece in dependency.tasks
    ]


_NOTHING = _Conditions(None, None, 0.0, 0, 0, {})

__all__ = ["condition_fields", "pack_conditions"]
