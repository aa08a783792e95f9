"""The query language of task records.

What lives here: `matches`. A query is a dictionary of field to value, or of field to a dictionary
of operators; all must hold. A value that is None means "not yet": only `$eq`, `$ne`, `$in`,
`$nin` and `$exists` see it, the others do not match it.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .base import FIELDS, Record


class QueryError(ValueError):
    """A query names a field or an operator that does not exist, or gives one a wrong argument."""


def _ordered(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    def test(value: Any, argument: Any) -> bool:
        return value is not None and argument is not None and bool(compare(value, argument))

    return test


def _all(value: Any, argument: Any) -> bool:
    return isinstance(value, list | tuple | str) and all(item in value for item in argument)


def _mod(value: Any, argument: Any) -> bool:
    divisor, remainder = argument
    return value is not None and bool(value % divisor == remainder)


def _glob(value: Any, argument: Any) -> bool:
    return isinstance(value, str) and fnmatch.fnmatchcase(value, argument)


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$lt": _ordered(operator.lt),
    "$gt": _ordered(operator.gt),
    "$lte": _ordered(operator.le),
    "$gte": _ordered(operator.ge),
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$in": lambda value, argument: value in argument,
    "$nin": lambda value, argument: value not in argument,
    "$all": _all,
    "$mod": _mod,
    "$exists": lambda value, argument: (value is not None) == bool(argument),
    "$glob": _glob,
}
"""The operators: called with a record's value and the query's argument."""


def check_query(query: Any) -> dict[str, Any]:
    """Return a query that is known to be well formed, times as seconds since the epoch.

    Raises:
        QueryError: if it is not one; the text says what is wrong and what there is.
    """
    if not isinstance(query, Mapping):
        raise QueryError(f"a query is a dictionary, not {query!r}")
    for field, condition in query.items():
        if field not in FIELDS:
            raise QueryError(f"there is no field {field!r}; there are {', '.join(FIELDS)}")
        if isinstance(condition, Mapping):
            for name in condition:
                if name not in OPERATORS:
                    raise QueryError(
                        f"there is no operator {name!r}; there are {', '.join(OPERATORS)}"
                    )
    checked: dict[str, Any] = _times_as_seconds(query)
    return checked


def matches(record: Record, query: Mapping[str, Any]) -> bool:
    """Whether a record has what a checked query asks for.

    Raises:
        QueryError: if an operator cannot be applied to a value of that type.
    """
    for field, condition in query.items():
        value = record.get(field)
        try:
            if isinstance(condition, Mapping):
                if not all(OPERATORS[name](value, arg) for name, arg in condition.items()):
                    return False
            elif value != condition:
                return False
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise QueryError(f"{field}: {condition!r} cannot be asked: {error}") from None
    return True


def _times_as_seconds(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, Mapping):
        return {key: _times_as_seconds(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_times_as_seconds(item) for item in value]
    return value


__all__ = ["OPERATORS", "QueryError", "check_query", "matches"]
