"""What a balanced view asks of the scheduler, checked: retries, timeout, priority, resources.

What lives here: one function per flag, from what users give to what is kept. What must not: what
tasks wait for (`dependencies.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MAX_NUMBER = 1 << 31
"""Numbers on the wire stay below."""

NO_RESOURCES: Mapping[str, float] = MappingProxyType({})


def check_retries(value: Any) -> int:
    """Return how many more attempts a failed task gets.

    Raises:
        TypeError: it is no int.
        ValueError: it is negative or huge.
    """
    number = _int("retries", value)
    if number < 0:
        raise ValueError(f"retries must not be negative: {value}")
    return number


def check_timeout(value: Any) -> float | None:
    """Return how many seconds a task may wait for a place; None and 0 for any time.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative or not a number.
    """
    if value is None:
        return None
    seconds = _number("timeout", value, "seconds")
    if not seconds >= 0:
        raise ValueError(
            f"timeout must not be negative: {value}; None or 0 is for waiting without a limit"
        )
    return seconds


def timeout_on_wire(value: float | None) -> float:
    """Return a timeout as `messages.Options` has it: 0 for any time."""
    return 0.0 if value is None or value >= MAX_NUMBER else value


def check_priority(value: Any) -> int:
    """Return a priority.

    Raises:
        TypeError: it is no int.
        ValueError: it is huge.
    """
    return _int("priority", value)


def check_resources(value: Any) -> Mapping[str, float]:
    """Return what an engine must have; not to be changed.

    Raises:
        TypeError: it is no dictionary from names to numbers.
        ValueError: an amount is negative, infinite or huge, or a name is empty.
    """
    if value is None:
        return NO_RESOURCES
    if not isinstance(value, Mapping):
        raise TypeError(
            f"resources must be a dictionary such as {{'gpu': 1}}, not {type(value).__name__}"
        )
    needed: dict[str, float] = {}
    for name, amount in value.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a resource is a str, not {type(name).__name__}: {name!r}")
        if not name:
            raise ValueError("the name of a resource must not be empty")
        number = _number(f"resources[{name!r}]", amount, "an amount")
        if not 0 <= number < MAX_NUMBER:
            raise ValueError(f"resources[{name!r}] must be 0 or more, and finite: {amount}")
        needed[name] = number
    return MappingProxyType(needed)


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if abs(value) >= MAX_NUMBER:
        raise ValueError(f"{name} must be less than {MAX_NUMBER}: {value}")
    return value


def _number(name: str, value: Any, what: str) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number ({what}), not {type(value).__name__}")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number ({what}), not NaN")
    return number
