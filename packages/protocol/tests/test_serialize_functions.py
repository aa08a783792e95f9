import functools
import gc
import math
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_protocol.namespace import Reference, set_namespace
from ipyfleet_protocol.serialize import (
    PackError,
    UnpackError,
    pack,
    pack_function,
    unpack_function,
    use_cloudpickle,
    use_pickle,
)

MANY = "x" * 2**21


def main_module(source: str, **names: Any) -> dict[str, Any]:
    """Run code as a session does whose namespace is ``__main__``."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace


def main_function(source: str) -> Any:
    """The ``f`` that code in ``__main__`` defines."""
    return main_module(source)["f"]


def test_header_describes_the_frames():
    """The header counts the frames and names the function."""
    f = main_function("def f(x): return x")
    header, frames = pack_function(f)
    assert (header.name, header.frames, len(header.digest)) == ("f", 1, 16)
    assert len(frames) == 1
    large = functools.partial(f, bytes(100_000))
    header, frames = pack_function(large)
    assert (header.name, header.frames, len(frames)) == ("f", 2, 2)
    assert unpack_function(frames)() == bytes(100_000)


def test_frames_are_cached():
    """A function whose pickle depends on its code alone is pickled once."""
    f = main_function("def f(x, y=(1, 'a'), *, z=None) -> int: return x")
    assert pack_function(f) is pack_function(f)


@pytest.mark.parametrize("f", [abs, math.floor, functools.reduce, functools.wraps, complex])
def test_what_travels_by_name_is_cached_by_name(f):
    """A function that its module has under its name is pickled once and means the same there."""
    assert pack_function(f) is pack_function(f)
    assert unpack_function(pack_function(f).frames) is f


def test_a_name_that_means_something_else_now_is_not_taken_from_the_cache(monkeypatch):
    """The cache by name asks each time whether the module still has the function there."""
    before = pack_function(functools.wraps)

    def wraps(x):
        return x

    wraps.__module__, wraps.__qualname__ = "functools", "wraps"
    assert pack_function(wraps).function.digest != before.function.digest
    original = functools.wraps
    monkeypatch.setattr(functools, "wraps", wraps)
    assert pack_function(wraps) is before
    assert unpack_function(pack_function(original).frames) is not wraps


def test_cache_does_not_keep_functions_alive():
    """The cache is weak."""
    f = main_function("def f(x): return x")
    pack_function(f)
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


CHANGES = {
    "code": lambda f: setattr(f, "__code__", (lambda x, k=1, *, z=1: x + 100).__code__),
    "equal code": lambda f: setattr(f, "__code__", f.__code__.replace(co_consts=(None, 1.0))),
    "defaults": lambda f: setattr(f, "__defaults__", (2,)),
    "equal defaults": lambda f: setattr(f, "__defaults__", (1.0,)),
    "true for one": lambda f: setattr(f, "__defaults__", (True,)),
    "kwdefaults": lambda f: f.__kwdefaults__.update(z=5),
    "name": lambda f: setattr(f, "__name__", "other"),
    "qualname": lambda f: setattr(f, "__qualname__", "other"),
    "doc": lambda f: setattr(f, "__doc__", "other"),
    "module": lambda f: setattr(f, "__module__", "other"),
    "annotations": lambda f: f.__annotations__.update(x=int),
    "attribute": lambda f: setattr(f, "tag", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_function_is_packed_again(name):
    """Whatever is changed in a function, the next packing has it."""
    f = main_function("def f(x, k=1, *, z=1): return x + 1")
    before = pack_function(f)
    CHANGES[name](f)
    after = pack_function(f)
    assert after is not before
    again = unpack_function(after.frames)
    for attribute in ("__defaults__", "__kwdefaults__", "__name__", "__qualname__", "__doc__",
                      "__module__", "__annotations__", "__dict__"):  # fmt: skip
        assert repr(getattr(again, attribute)) == repr(getattr(f, attribute))
    assert repr(again(1)) == repr(f(1))


def test_changed_cells_and_mutables_are_packed_again():
    """Closures and mutable defaults are never taken from the cache."""
    ns = main_module(
        "def outer():\n"
        "    n = 1\n"
        "    def f(): return n\n"
        "    def put(m):\n"
        "        nonlocal n\n"
        "        n = m\n"
        "    return f, put\n"
        "f, put = outer()\n"
        "def g(x=[1]): return x"
    )
    assert unpack_function(pack_function(ns["f"]).frames)() == 1
    ns["put"](2)
    assert unpack_function(pack_function(ns["f"]).frames)() == 2
    pack_function(ns["g"])
    ns["g"].__defaults__[0].append(2)
    assert unpack_function(pack_function(ns["g"]).frames)() == [1, 2]


def test_another_pickler_is_another_pickle():
    """The cache is not used across a switch of the pickler."""
    f = main_module("def f(): return N", N=7)["f"]
    first = pack_function(f)
    use_cloudpickle()
    try:
        captured = pack_function(f)
        assert captured.function.digest != first.function.digest
    finally:
        use_pickle()
    assert pack_function(f).function.digest == first.function.digest


def test_digest_is_of_the_content():
    """Equal frames have equal digests, other frames others."""
    f, g = main_function("def f(x=[1]): return x"), main_function("def f(x=[2]): return x")
    assert pack_function(f).function.digest == pack_function(f).function.digest
    assert pack_function(f).function.digest != pack_function(g).function.digest


def test_huge_functions_have_a_random_digest():
    """A function with more than a MiB of data is not hashed and not reused."""
    f = functools.partial(len, MANY)
    first, second = pack_function(f).function, pack_function(f).function
    assert first.digest != second.digest
    assert not first.reusable


def read_cases(name: str) -> dict[str, str]:
    """The source of each case in a file, by the case's name."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    parts = [part.split("\n", 1) for part in text.split("\n=== ")[1:]]
    return dict(parts)


REUSABLE = read_cases("cases_reusable.txt")
SELF_NAMES = read_cases("cases_self_name.txt")


@pytest.mark.parametrize("name", REUSABLE)
def test_reusable(name):
    """An engine may keep a function only where no call can leave anything behind in it."""
    case = main_module(REUSABLE[name])
    assert pack_function(case["f"]).function.reusable is case["reusable"]


def test_reference_as_function():
    """A Reference stands for a function of the receiver, looked up for each task."""
    header, frames = pack_function(Reference("tools['add']"))
    assert (header.name, header.reusable, header.self_name) == ("tools['add']", False, "")
    namespace = {"tools": {"add": math.fsum}}
    set_namespace(namespace)
    try:
        assert unpack_function(frames) is math.fsum
        namespace["tools"]["add"] = len
        assert unpack_function(frames) is len
    finally:
        set_namespace(None)


@pytest.mark.parametrize("name", SELF_NAMES)
def test_self_name(name):
    """The self name is the global by which a function of __main__ calls itself."""
    case = main_module(SELF_NAMES[name])
    assert pack_function(case["f"]).function.self_name == case["self_name"]


def test_self_name_follows_the_globals():
    """A function that is renamed after its packing calls itself by the name of now."""
    ns = main_module("def f(n): return f(n - 1)")
    assert pack_function(ns["f"]).function.self_name == "f"
    f = ns.pop("f")
    assert pack_function(f).function.self_name == ""
    ns["f"] = f
    assert pack_function(f).function.self_name == "f"


@pytest.mark.parametrize("other", [1, "f", None, [len]])
def test_only_callables(other):
    """What cannot be called is refused at once."""
    with pytest.raises(TypeError, match="not a function"):
        pack_function(other)
    with pytest.raises(UnpackError, match="not a function"):
        unpack_function([pack(other).pickle])


def test_unpicklable_function_is_named():
    """The error for a function that cannot be sent names the function and the variable."""
    f = main_module("f = (lambda lock: lambda: lock)(lock)", lock=threading.Lock())["f"]
    f.__name__ = "work"
    place = r"^work closure variable 'lock': cannot pickle '_thread.lock'"
    with pytest.raises(PackError, match=place):
        pack_function(f)
