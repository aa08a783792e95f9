"""Functions are kept by digest, rebuilt when they must be, and planted under their own name."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from ipyfleet_engine.functions import BODY_MAX_BYTES, FunctionCache, planted
from ipyfleet_protocol.messages import Function
from ipyfleet_protocol.serialize import pack_function


def test_a_body_is_kept_and_found_by_digest() -> None:
    """A function sent once is known by its digest alone."""
    cache = FunctionCache()
    packed = pack_function(lambda x: x + 1)
    sent = cache.learn(packed.function, packed.frames)
    named = cache.learn(Function(packed.function.digest, reusable=True), ())
    assert sent is not None and named is sent
    assert named.get()(1) == 2


def test_an_unknown_digest_is_none() -> None:
    """Without a body the cache cannot help."""
    assert FunctionCache().learn(Function(b"d" * 16), ()) is None


def test_a_reusable_function_is_rebuilt_once() -> None:
    """All tasks call the same object."""
    packed = pack_function(lambda: None)
    assert packed.function.reusable
    known = FunctionCache().learn(packed.function, packed.frames)
    assert known is not None and known.get() is known.get() is known.target


def test_what_a_call_leaves_in_its_defaults_is_not_seen_by_the_next() -> None:
    """A function with state is rebuilt for each task."""

    def remember(x: int, seen: list[int] = []) -> list[int]:  # noqa: B006 - it is the point
        seen.append(x)
        return seen

    packed = pack_function(remember)
    known = FunctionCache().learn(packed.function, packed.frames)
    assert known is not None and known.target is None
    assert known.get()(1) == [1] and known.get()(2) == [2]


def test_large_bodies_are_not_kept() -> None:
    """They come with every message, and serve that one."""
    data = bytes(BODY_MAX_BYTES + 1)
    packed = pack_function(lambda data=data: len(data))
    cache = FunctionCache()
    known = cache.learn(packed.function, packed.frames)
    assert known is not None and known.get()() == len(data)
    assert cache.learn(Function(packed.function.digest), ()) is None


def test_the_least_recently_named_goes_first() -> None:
    """The number of entries is bounded."""
    cache = FunctionCache(entries_max=2)
    bodies = [pack_function(f) for f in (abs, len, repr)]
    cache.learn(bodies[0].function, bodies[0].frames)
    cache.learn(bodies[1].function, bodies[1].frames)
    cache.learn(bodies[0].function, ())
    cache.learn(bodies[2].function, bodies[2].frames)
    known = [cache.learn(body.function, ()) is not None for body in bodies]
    assert known == [True, False, True]


def test_a_planted_name_is_there_while_the_task_runs() -> None:
    """It is gone afterwards, also after an error; a name that is taken stays."""
    namespace: dict[str, Any] = {"taken": 1}
    with planted(namespace, "f", abs):
        assert namespace["f"] is abs
    with pytest.raises(ZeroDivisionError), planted(namespace, "f", abs):
        raise ZeroDivisionError
    with planted(namespace, "taken", abs), planted(namespace, "", abs):
        assert namespace == {"taken": 1}
    with planted(namespace, "f", abs):
        namespace["f"] = "the task's own"
    assert namespace == {"taken": 1, "f": "the task's own"}


def test_of_a_partial_its_function_is_planted() -> None:
    """A name is that of the function, which a partial only calls."""
    namespace: dict[str, object] = {}
    with planted(namespace, "f", functools.partial(functools.partial(max, 1), 2)):
        assert namespace["f"] is max
    assert not namespace
