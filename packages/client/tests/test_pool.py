import functools
import multiprocessing
import sys
import types

import pytest

from ipyfleet_client.pool import Pool, PoolTimeoutError, _main_globals


@pytest.fixture
def main(monkeypatch):
    """A `__main__` module of a script."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    code = """
import math
factor, unused, inner = 3, 4, 5
def helper(x): return math.floor(x) + inner
def work(x): return [helper(k * factor) for k in range(x)]
class Model:
    def __call__(self): return unused
    @staticmethod
    def make(): return factor
def fill(n):
    global table
    table = n
"""
    exec(compile(code, "script.py", "exec"), module.__dict__)
    return module


def test_globals_are_found_through_others(main):
    """The globals of a function are those it names, and those of what it calls."""
    assert set(_main_globals(main.work)) == {"helper", "factor", "math", "inner"}
    assert set(_main_globals(functools.partial(main.work, 1))) == {
        "helper",
        "factor",
        "math",
        "inner",
    }
    assert set(_main_globals(main.Model)) == {"unused", "factor"}
    assert set(_main_globals(main.Model())) == {"unused", "factor"}


def test_functions_of_modules_need_none():
    """Functions of modules and builtins find their globals where they are."""
    assert _main_globals(abs) == {} and _main_globals(functools.wraps) == {}


def test_globals_are_pushed_once(rc, controller, main):
    """The engines get the globals of a function before its first call, and not again."""
    pool = Pool(view=rc)
    assert pool.map(main.work, [2]) == [[5, 8]]
    main.factor = 100
    assert pool.map(main.work, [2]) == [[5, 8]]
    assert Pool(view=rc).map(main.work, [2]) == [[5, 105]]


def test_a_global_that_cannot_be_sent_is_left_out(rc, controller, main):
    """A function that refers to something that cannot be pickled may get by without it."""
    main.factor = (k for k in ())
    assert Pool(view=rc).map(main.work, [0]) == [[]]


def test_an_initializer_owns_what_it_assigns(rc, controller, main):
    """What the initializer assigns on the engines is not overwritten with what is here."""
    main.table = "here"
    exec("def look(x): return table", main.__dict__)
    assert Pool(initializer=main.fill, initargs=(7,), view=rc).map(main.look, [1]) == [7]


def test_timeouts_are_of_both_kinds():
    """The pool's timeout is caught as multiprocessing's and as Python's own."""
    assert issubclass(PoolTimeoutError, multiprocessing.TimeoutError)
    assert issubclass(PoolTimeoutError, TimeoutError)
