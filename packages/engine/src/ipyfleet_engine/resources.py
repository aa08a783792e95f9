"""What an engine says it has: ``gpu=1,mem=16`` on the command line, a dictionary in a config file.

What lives here: the trait and its text form. What must not: what resources are good for; names and
amounts mean what users and their tasks (``view.resources``) agree on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from traitlets import HasTraits, TraitError, TraitType

MAX_AMOUNT = 1 << 31
"""Amounts on the wire stay below."""


def parse_resources(text: str) -> dict[str, float]:
    """Return the resources of a text such as ``gpu=1,mem=16``; a name alone has amount 1.

    Raises:
        ValueError: it is no such text.
    """
    resources: dict[str, float] = {}
    for part in text.split(","):
        name, equals, amount = (piece.strip() for piece in part.partition("="))
        if not name and not equals:
            continue
        try:
            resources[name] = float(amount) if equals else 1.0
        except ValueError:
            raise ValueError(
                f"resources are names and numbers such as gpu=1,mem=16, not {part.strip()!r}"
            ) from None
    return check_resources(resources)


def check_resources(resources: Mapping[Any, Any]) -> dict[str, float]:
    """Return resources as they are told to the controller.

    Raises:
        ValueError: a name is no text, or an amount is no number from 0 on.
    """
    checked: dict[str, float] = {}
    for name, amount in resources.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a resource is a text that is not empty, not {name!r}")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise ValueError(f"the amount of {name} is a number, not {amount!r}")
        if math.isnan(amount) or not 0 <= amount < MAX_AMOUNT:
            raise ValueError(f"the amount of {name} is a finite number from 0 on, not {amount}")
        checked[name] = float(amount)
    return checked


def format_resources(resources: Mapping[str, float]) -> str:
    """Return the text that `parse_resources` reads."""
    return ",".join(f"{name}={amount!r}" for name, amount in resources.items())


class Resources(TraitType[dict[str, float], Any]):
    """A trait: a dictionary from names to amounts, or the text of one."""

    default_value: Any = MappingProxyType({})
    info_text = "names and amounts such as gpu=1,mem=16"

    def validate(self, obj: HasTraits | None, value: Any) -> dict[str, float]:
        """Check a value that was assigned or configured."""
        try:
            if isinstance(value, str):
                return parse_resources(value)
            if not isinstance(value, Mapping):
                raise ValueError(f"resources are a dictionary such as {{'gpu': 1}}, not {value!r}")
            return check_resources(value)
        except ValueError as error:
            raise TraitError(str(error)) from None

    def from_string(self, s: str) -> dict[str, float]:
        """Read a value of the command line."""
        return self.validate(None, s)

    def from_string_list(self, s_list: Sequence[str]) -> dict[str, float]:
        """Read the values of an option that was given several times."""
        return self.validate(None, ",".join(s_list))


__all__ = ["Resources", "check_resources", "format_resources", "parse_resources"]
