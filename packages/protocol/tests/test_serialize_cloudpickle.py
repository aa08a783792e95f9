"""What by_value.py relies on in cloudpickle beyond its documented API, one test for each.

A release of cloudpickle that breaks us breaks a test here, which says what has to be adapted.
"""

import functools
import io
import types
from pathlib import Path
from typing import Any

import cloudpickle

from ipyfleet_protocol.serialize.by_value import ByValuePickler


def cloudpickle_reduces(obj: Any) -> Any:
    """What cloudpickle's own part of our pickler makes of an object."""
    return cloudpickle.CloudPickler.reducer_override(ByValuePickler(io.BytesIO()), obj)


def test_cloudpickle_leaves_what_is_importable():
    """Reliance: reducer_override is NotImplemented for functions and classes by reference."""
    assert cloudpickle_reduces(functools.wraps) is NotImplemented
    assert cloudpickle_reduces(Path) is NotImplemented


def test_cloudpickle_reduces_functions_to_six():
    """Reliance: the state of a function is a pair; the second has ``__globals__``, captured."""
    namespace: dict[str, Any] = {"__name__": "__main__", "N": 4}
    reduced = cloudpickle_reduces(eval("lambda: N", namespace))
    assert len(reduced) == 6
    assert reduced[2][1]["__globals__"] == {"N": 4}


def test_cloudpickle_reduces_classes_to_six():
    """Reliance: a class is made first, its state set later by the sixth part, as (cls, state)."""
    cls = type("A", (), {"x": 1, "__module__": "__main__"})
    make, args, state, items, pairs, set_state = cloudpickle_reduces(cls)
    assert callable(make)
    assert items is pairs is None
    made = type("A", (), {})
    set_state(made, state)
    assert made.x == 1
    assert make(*args) is cls  # tracked: the class that is here already


def test_cloudpickle_has_a_dispatch_table():
    """Reliance: the class attribute dispatch_table has the reducers for code and modules."""
    table = cloudpickle.CloudPickler.dispatch_table
    assert types.CodeType in table
    assert types.ModuleType in table
