"""Tasks on whose end other tasks wait: as users say it, and as the wire says it.

What lives here: `Dependency`, a set of msg_ids with a rule, and the way from msg_ids to ranges of
tasks and back. What must not: who waits, and what happens then; that is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self

from . import messages
from .ids import PeerId, format_msg_id, parse_msg_id
from .messages import TaskRange

__all__ = ["Dependency", "merge_ranges", "msg_ids_of", "ranges_of"]


class Dependency(set[str]):
    """The tasks on whose end others wait, and which ends count: a set of msg_ids.

    Attributes:
        all: it is met when all of the tasks have ended as wanted; else when one of them has.
        success: a value is a wanted end.
        failure: an error, or being cancelled, is one.

    Example:
        >>> dependency = Dependency(["a", "b"], all=False)
        >>> dependency.check({"b"})
        True
    """

    # Also those of what set operators return.
    all: bool = True
    success: bool = True
    failure: bool = False

    def __init__(
        self,
        dependencies: Any = (),
        all: bool = True,
        success: bool = True,
        failure: bool = False,
    ) -> None:
        """Make one.

        Args:
            dependencies: a msg_id, a result (whatever has ``msg_ids``), or a collection of those.
            all, success, failure: see the class.

        Raises:
            TypeError: there is something else among them.
            ValueError: no end is wanted, so nothing could ever meet it.
        """
        if not (success or failure):
            raise ValueError(
                "a dependency that counts neither success nor failure can never be met: set "
                "success=True, failure=True, or both"
            )
        super().__init__(_msg_ids_in(dependencies))
        self.all = bool(all)
        self.success = bool(success)
        self.failure = bool(failure)

    def check(self, completed: Collection[str], failed: Collection[str] = ()) -> bool:
        """Return whether it is met.

        Args:
            completed: the tasks that have ended with a value; others than its own do not matter.
            failed: those that have ended otherwise.
        """
        return self._met(completed if self.success else (), failed if self.failure else ())

    def unreachable(self, completed: Collection[str], failed: Collection[str] = ()) -> bool:
        """Return whether it can never be met, because tasks have ended otherwise than wanted.

        Args:
            completed, failed: as for `check`.
        """
        unwanted = set(() if self.success else completed).union(() if self.failure else failed)
        lost = len(unwanted.intersection(self))
        return lost > 0 if self.all else 0 < len(self) == lost

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dictionary; views take that for it, too."""
        return {
            "all": self.all,
            "success": self.success,
            "failure": self.failure,
            "dependencies": sorted(self),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the dependency that a dictionary of `as_dict` says.

        Raises:
            ValueError: the dictionary has other keys, or lacks ``dependencies``.
        """
        known = {"all", "success", "failure", "dependencies"}
        if "dependencies" not in fields or fields.keys() - known:
            raise ValueError(
                f"a dependency as a dictionary has the keys {sorted(known)}, of which dependencies "
                f"must be there, not {sorted(map(str, fields))}"
            )
        return cls(**fields)

    def copy(self) -> Self:
        """Return another one with the same tasks and the same rule."""
        return type(self)(self, self.all, self.success, self.failure)

    __copy__ = copy

    def __repr__(self) -> str:
        tasks = set(self) if self else "()"
        rule = f"all={self.all}, success={self.success}, failure={self.failure}"
        return f"{type(self).__name__}({tasks}, {rule})"

    def _met(self, completed: Collection[str], failed: Collection[str]) -> bool:
        if not self:
            return True
        ended = set(completed).union(failed).intersection(self)
        return len(ended) == len(self) if self.all else bool(ended)


def _msg_ids_in(dependencies: Any) -> list[str]:
    if isinstance(dependencies, str):
        return [dependencies]
    msg_ids = getattr(dependencies, "msg_ids", None)
    if msg_ids is not None:
        return list(msg_ids)
    if isinstance(dependencies, Iterable) and not isinstance(dependencies, bytes | Mapping):
        return [msg_id for item in dependencies for msg_id in _msg_ids_in(item)]
    raise TypeError(
        "a dependency is made of msg_ids (str), results, or collections of those, not of "
        f"{type(dependencies).__name__}"
    )


def ranges_of(msg_ids: Iterable[str]) -> list[TaskRange]:
    """Return tasks by their msg_ids as ranges, none of which touch.

    Raises:
        ValueError: one of them is no msg_id.
    """
    return merge_ranges(TaskRange(*parse_msg_id(msg_id), 1) for msg_id in msg_ids)


def merge_ranges(ranges: Iterable[TaskRange]) -> list[TaskRange]:
    """Return the same tasks as ranges that do not touch, each task once."""
    merged: list[TaskRange] = []
    for piece in sorted(ranges, key=lambda piece: (piece.client, piece.first)):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.client == piece.client
            and piece.first <= last.first + last.count
        ):
            stop = max(last.first + last.count, piece.first + piece.count)
            merged[-1] = TaskRange(last.client, last.first, stop - last.first)
        else:
            merged.append(piece)
    return merged


def msg_ids_of(dependency: messages.Dependency | None) -> list[str]:
    """Return the msg_ids of the tasks of a dependency; none for "no dependency"."""
    ranges: Sequence[TaskRange] = () if dependency is None else dependency.tasks
    return [
        format_msg_id(PeerId(piece.client), seq)
        for piece in ranges
        for seq in range(piece.first, piece.first + piece.count)
    ]
