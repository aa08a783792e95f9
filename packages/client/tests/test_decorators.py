import os

import pytest

from ipyfleet_client import AsyncMapResult, interactive, parallel, remote, require
from ipyfleet_protocol.errors import RemoteError


def test_remote(rc):
    """A remote function runs through its view and looks like the function."""

    @rc[:].remote(block=True)
    def pid(x=1):
        """The process."""
        return os.getpid() + x - x

    assert pid() == [os.getpid()] * 2
    assert pid(5) == pid(x=5)
    assert pid.__name__ == "pid"
    assert pid.__doc__ == "RemoteFunction wrapping:\nThe process."
    assert str(pid.__signature__) == "(x=1)"
    assert remote(rc[0])(abs)(-1).get(5) == 1


def test_parallel_map_through_a_balanced_view(rc):
    """``f.map`` calls the function for each item; without blocking it can be iterated."""
    view = rc.load_balanced_view()

    @view.parallel()
    def square(n):
        return n * n

    result = square.map(range(10))
    assert isinstance(result, AsyncMapResult)
    assert list(result) == [n * n for n in range(10)]


def test_parallel_with_block_and_two_sequences(rc):
    """``block=True`` returns the list."""

    @rc.load_balanced_view().parallel(block=True)
    def add(a, b):
        return a + b

    assert add.map([1] * 4, range(4)) == [1, 2, 3, 4]


def test_parallel_unordered(rc, controller):
    """``ordered=False`` yields what is there first."""
    controller.reverse = True

    @rc.load_balanced_view().parallel(ordered=False)
    def square(n):
        return n * n

    values = list(square.map(range(30)))
    assert sorted(values) == [n * n for n in range(30)]
    assert values != sorted(values)


@pytest.mark.parametrize("dist", ["b", "r"])
def test_parallel_call_gets_parts(rc, dist):
    """Called, the function gets parts of the sequences, and what it returns is joined."""

    @parallel(rc[:], dist=dist, block=True)
    def double(part):
        return [2 * x for x in part]

    assert double(range(7)) == [2 * x for x in range(7)]
    assert double([]) == []

    @rc.load_balanced_view().parallel(block=True, dist=dist)
    def total(a, b):
        return [sum(a) + sum(b)]

    assert sum(total(range(7), range(7))) == 42


def test_parallel_checks_its_sequences(rc):
    """Sequences must be of one length, and there must be one."""
    f = rc[:].parallel()(max)
    with pytest.raises(ValueError, match="lengths"):
        f([1], [1, 2])
    with pytest.raises(TypeError, match="sequence"):
        f()


def test_chunksize_is_for_balanced_views(rc):
    """A chunk size for a direct view is a warning; a balanced one uses it."""
    with pytest.warns(UserWarning, match="chunksize"):
        parallel(rc[:], chunksize=2)(abs)
    f = rc.load_balanced_view().parallel(chunksize=5)(abs)
    assert len(f.map(range(10)).msg_ids) == 2


def test_flags_of_decorators(rc):
    """Flags of the view hold for calls of the function only; unknown ones are KeyErrors."""
    f = rc.load_balanced_view().remote(retries=4)(abs)
    assert f(-1).get(5) == 1
    assert f.view.retries == 0
    with pytest.raises(KeyError):
        rc[:].remote(nonsense=1)(abs)


def test_require_imports_and_assigns(rc):
    """What a function requires is in its engine's namespace when it runs."""

    def helper():
        return 3

    code = "def f():\n    return colorsys.__name__, helper(), extra\n"
    space: dict = {"__name__": "__main__"}
    exec(code, space)
    f = require("colorsys", helper, extra=5)(space["f"])
    assert rc[0].apply_sync(f) == ("colorsys", 3, 5)
    assert f.__name__ == "f"


def test_require_of_what_is_not_there(rc):
    """A module that the engine lacks is an UnmetDependency that names it."""
    with pytest.raises(RemoteError, match="UnmetDependency: min requires no_such_module"):
        rc[0].apply_sync(require("no_such_module")(min), 1)


def test_require_checks_its_arguments():
    """Only names, modules, functions and classes can be required without a name."""
    with pytest.raises(TypeError, match="require"):
        require(5)


def test_interactive_functions_use_the_engines_namespace(rc):
    """An interactive function's globals are the engine's, and its closure comes along."""
    offset = 100

    @interactive
    def f(*, more=1):
        return CONSTANT + offset + more  # noqa: F821

    rc[:].push({"CONSTANT": 5}, block=True)
    assert rc[:].apply_sync(f) == [106, 106]
    assert f.__module__ == "__main__"
