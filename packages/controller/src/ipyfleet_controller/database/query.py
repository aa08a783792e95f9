"""The query language of task records.

What lives here: `check_query`, `matches`. A query is a dictionary of field to value, or of field
to a dictionary of operators; all must hold. A value that is None means "not yet": only `$eq`,
`$ne`, `$in`, `$nin` and `$exists` see it, the others do not match it.

All backends match records with this one function, so that they give equal answers; a database
server may at most narrow down what is looked at.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Mapping, Sequence
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
    return value is not None and all(item in value for item in argument)


def _mod(value: Any, argument: Any) -> bool:
    divisor, remainder = argument
    return value is not None and bool(value % divisor == remainder)


def _glob(value: Any, argument: Any) -> bool:
    return value is not None and fnmatch.fnmatchcase(value, argument)


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

    What is wrong with a query does not depend on what is in the database.

    Raises:
        QueryError: if it is not one; the text says what is wrong and what there is.
    """
    if not isinstance(query, Mapping):
        raise QueryError(f"a query is a dictionary, not {query!r}")
    checked: dict[str, Any] = _times_as_seconds(query)
    for field, condition in checked.items():
        if field not in FIELDS:
            raise QueryError(f"there is no field {field!r}; there are {', '.join(FIELDS)}")
        if isinstance(condition, Mapping):
            for name, argument in condition.items():
                _check_argument(field, name, argument)
    return checked


def check_keys(keys: Sequence[str]) -> list[str]:
    """Return the fields to return, `msg_id` first.

    Raises:
        QueryError: if there is no such field.
    """
    for key in keys:
        if key not in FIELDS:
            raise QueryError(f"there is no field {key!r}; there are {', '.join(FIELDS)}")
    return ["msg_id", *(key for key in dict.fromkeys(keys) if key != "msg_id")]


def matches(record: Record, query: Mapping[str, Any]) -> bool:
    """Whether a record has what a checked query asks for."""
    for field, condition in query.items():
        value = record[field]
        if isinstance(condition, Mapping):
            for name, argument in condition.items():
                if not OPERATORS[name](value, argument):
                    return False
        elif value != condition:
            return False
    return True


def _check_argument(field: str, name: str, argument: Any) -> None:
    if name not in OPERATORS:
        raise QueryError(f"there is no operator {name!r}; there are {', '.join(OPERATORS)}")
    kind = FIELDS[field][0]
    if name in ("$lt", "$gt", "$lte", "$gte"):
        is_right = argument is None or (kind not in (dict, list) and _is_of(kind, argument))
        wanted = "a value that can be compared with it"
    elif name in ("$in", "$nin"):
        is_right, wanted = isinstance(argument, list), "a list"
    elif name == "$all":
        is_right = kind in (str, list) and isinstance(argument, list) and _are_str(argument)
        wanted = "a list of texts, and a text or list to look for them"
    elif name == "$mod":
        is_right = kind in (int, float) and _is_divisor(argument)
        wanted = "a list of divisor and remainder, and a number to divide"
    elif name == "$glob":
        is_right, wanted = kind is str and isinstance(argument, str), "a pattern, and a text"
    else:
        return
    if not is_right:
        raise QueryError(f"{field}: {name} takes {wanted}, not {argument!r}")


def _is_of(kind: type, argument: Any) -> bool:
    return isinstance(argument, str) if kind is str else isinstance(argument, int | float)


def _are_str(argument: list[Any]) -> bool:
    return all(isinstance(item, str) for item in argument)


def _is_divisor(argument: Any) -> bool:
    return (
        isinstance(argument, list)
        and len(argument) == 2
        and all(isinstance(item, int | float) and abs(item) < 1 << 64 for item in argument)
        and argument[0] != 0
    )


def _times_as_seconds(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, Mapping):
        return {key: _times_as_seconds(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_times_as_seconds(item) for item in value]
    return value


__all__ = ["OPERATORS", "QueryError", "check_keys", "check_query", "matches"]
