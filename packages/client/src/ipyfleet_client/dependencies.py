"""What a view's tasks wait for: from what users give to what the wire says.

What lives here: `DependencyFlag`, which `LoadBalancedView.after` and `follow` are. What must not:
the rules (`docs/scheduling.md`), which the controller has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.views.base import Flag
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.dependencies import Dependency, merge_ranges, ranges_of
from ipyfleet_protocol.messages import TaskRange

if TYPE_CHECKING:
    from ipyfleet_client.session import Session
    from ipyfleet_client.views.base import View

KNOWN_TIMEOUT_S = 10.0
"""How long another client of this process may take to get its tasks to the controller."""


class Awaited(NamedTuple):
    """A dependency as it was given, and as it was on the wire at that time."""

    given: Any
    wire: m.Dependency | None


class DependencyFlag(Flag[Any]):
    """A flag of a view whose value is tasks; kept as `Awaited`, shown as it was given."""

    def __init__(self) -> None:
        super().__init__(None)

    def __get__(self, view: View | None, owner: type | None = None) -> Any:
        kept = super().__get__(view, owner)
        return kept.given if isinstance(kept, Awaited) else kept

    def wire(self, view: View) -> m.Dependency | None:
        """Return what the view's tasks wait for."""
        kept = super().__get__(view)
        return kept.wire if isinstance(kept, Awaited) else None


def read_dependency(flag: str, value: Any, session: Session) -> Awaited | None:
    """Return what the tasks of a view shall wait for.

    Args:
        flag: the flag's name, for messages.
        value: None; a msg_id; a result; a collection of those; a `Dependency`, or one as a
            dictionary.
        session: of the view's client. Tasks of another one are on their way to the controller when
            this returns.

    Raises:
        TypeError: it is none of these.
        ValueError: a string is no msg_id; a result's tasks are not all submitted; a collection has
            a `Dependency` whose rule would be lost.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = Dependency.from_dict(value)
    rule = value if isinstance(value, Dependency) else Dependency()
    # A Dependency may change after this; what counts is how it is now.
    ranges = merge_ranges(_ranges_in(flag, value, session))
    wire = m.Dependency(ranges, rule.all, rule.success, rule.failure) if ranges else None
    return Awaited(value, wire)


def _ranges_in(flag: str, value: Any, session: Session) -> Iterator[TaskRange]:
    if isinstance(value, str):
        yield from _parse(flag, [value])
    elif isinstance(value, Dependency):
        yield from _parse(flag, value)
    elif isinstance(value, AsyncResult):
        yield from _ranges_of_result(flag, value, session)
    elif isinstance(value, Iterable) and not isinstance(value, bytes | Mapping | Iterator):
        for item in value:
            if isinstance(item, Dependency) and _rule(item) != _rule(Dependency()):
                raise ValueError(
                    f"{flag}= takes one Dependency; inside a collection the rule of {item!r} would "
                    "be lost: make one Dependency of all of the tasks"
                )
            yield from _ranges_in(flag, item, session)
    else:
        raise TypeError(
            f"{flag}= takes results, msg_ids (str), a Dependency, or a list or set of results and "
            f"msg_ids, not {type(value).__name__}"
        )


def _rule(dependency: Dependency) -> tuple[bool, bool, bool]:
    return dependency.all, dependency.success, dependency.failure


def _parse(flag: str, msg_ids: Iterable[str]) -> list[TaskRange]:
    try:
        return ranges_of(msg_ids)
    except ValueError as error:
        raise ValueError(f"{flag}= {error}; ar.msg_ids are those of a result") from None


def _ranges_of_result(flag: str, result: AsyncResult, session: Session) -> list[TaskRange]:
    work = result._work
    if work.foreign_ids is not None:
        return _parse(flag, work.foreign_ids)
    theirs = result._session
    if not theirs.closed:
        theirs.submit.flush()
    ranges = [TaskRange(theirs.peer, first, count) for _, first, count in work.ranges]
    if sum(piece.count for piece in ranges) < work.total:
        raise ValueError(
            f"{flag}= {result!r} has calls that are not submitted yet, as an executor holds them "
            "back to be able to cancel them; use view.apply_async for what others depend on"
        )
    if theirs is not session and not theirs.closed and not result.ready():
        # Messages of two clients may overtake one another; a task nobody knows is an error.
        question = m.FetchResults([theirs.submit.msg_id(ranges[-1].first)], status_only=True)
        theirs.answer(theirs.request(question), KNOWN_TIMEOUT_S)
    return ranges
