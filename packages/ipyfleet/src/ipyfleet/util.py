"""What scripts import from ``ipyparallel.util``.

What lives here: those names and nothing else: the module is named by those who import it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ipyfleet_client import interactive

__all__ = ["extract_dates", "interactive", "utc", "utcnow"]

utc = UTC


def utcnow() -> datetime:
    """Return the time, with UTC as its time zone."""
    return datetime.now(UTC)


def extract_dates(value: Any) -> Any:
    """Return a value with the ISO 8601 strings in its dicts and lists as `datetime` objects."""
    if isinstance(value, dict):
        return {key: extract_dates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(extract_dates(item) for item in value)
    if isinstance(value, str) and value[:4].isdigit() and value[4:5] == "-" and "T" in value:
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return value
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return value
