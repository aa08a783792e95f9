"""What the workers of every peer execute.

All peers get the same functions, by reference: the module is on ``PYTHONPATH`` of each worker. It
imports nothing heavy, because its import is part of some peers' first task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_held: dict[int, Any] = {}


def noop(item: int = 0) -> int:
    """Return the argument, so that the caller can check that every item was really run."""
    return item


def noop_chunk(items: Sequence[int]) -> list[int]:
    """Run :func:`noop` over a chunk, for peers whose users cut the chunks themselves."""
    return [noop(item) for item in items]


def nap(seconds: float) -> None:
    """Sleep: a task that takes time and no CPU."""
    import time

    time.sleep(seconds)


def fail(item: int) -> None:
    """Fail."""
    raise ValueError(f"item {item} fails")


def size_bytes(array: Any) -> int:
    """Take an array as an argument and return only its size: a push, for peers without names."""
    return int(array.nbytes)


def held_array(size: int) -> Any:
    """Return an array of ``size`` bytes, made at the first call in this process."""
    if size not in _held:
        _held[size] = make_array(size)
    return _held[size]


def hold_array(size: int, pause_s: float) -> None:
    """Make what :func:`held_array` returns, and stay busy: another worker takes the next call."""
    import time

    held_array(size)
    time.sleep(pause_s)


def make_array(size: int) -> Any:
    """Return a float64 array of ``size`` bytes whose every page has been written."""
    import numpy as np

    return np.arange(size // 8, dtype="float64")
