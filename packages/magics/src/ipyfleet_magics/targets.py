"""Targets as written after ``--targets``, and as shown to people."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from IPython.core.error import UsageError

Targets: TypeAlias = "int | slice | list[int] | str"
"""What `parse_targets` returns: an index, a slice, a list of indices, or "all"."""

_SHOWN_MAX = 10
_SLICE = re.compile(r"(-?\d*)(?::(-?\d*))(?::(-?\d*))?")


def parse_targets(text: str) -> Targets:
    """Parse ``3``, ``-1``, ``::2``, ``1:3``, ``0,2``, ``[0,2]`` or ``all``.

    Raises:
        UsageError: it is none of these.
    """
    text = text.strip().strip("\"'").strip()
    if text == "all":
        return text
    matched = _SLICE.fullmatch(text)
    if matched:
        return slice(*(int(part) if part else None for part in matched.groups()))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return list(value)
    raise UsageError(
        f"--targets: {text!r} is none of: an engine id, a slice (::2), a list (0,2), all"
    )


def select_view(view: Any, targets: Targets | None) -> Any:
    """Return the view to run on: the view itself, or one of its client with other targets.

    Ids and slices are indices into the client's ids at this moment, as in ``rc[::2]``; a view with
    "all" evaluates it whenever it is used.

    Raises:
        UsageError: there is no such engine.
    """
    if targets is None:
        return view
    if isinstance(targets, str):
        return view.client.direct_view(targets)
    try:
        chosen = view.client[targets]
    except IndexError as error:
        raise UsageError(f"--targets: {error}") from None
    if chosen.targets == []:
        raise UsageError(
            f"--targets: that is none of the engines {describe_targets(view.client.ids)}"
        )
    return chosen


def describe_targets(targets: int | str | Sequence[int]) -> str:
    """Return targets as people read them; long lists are abbreviated."""
    if isinstance(targets, int | str) or len(targets) <= _SHOWN_MAX:
        return str(targets if isinstance(targets, int | str) else list(targets))
    first = ", ".join(str(target) for target in targets[:4])
    last = ", ".join(str(target) for target in targets[-3:])
    return f"[{first}, ..., {last}] ({len(targets)} engines)"
