import colorsys
import copy
import inspect
import math
import os
import types
from fractions import Fraction

import pytest

from ipyfleet_client import (
    AsyncMapResult,
    depend,
    dependent,
    interactive,
    parallel,
    remote,
    require,
)
from ipyfleet_protocol.errors import CompositeError, RemoteError, UnmetDependency
from ipyfleet_protocol.serialize import pack_function


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


def in_main(code):
    """Define functions as a user's script does."""
    space: dict = {"__name__": "__main__"}
    exec(code, space)
    return space


@pytest.mark.parametrize(
    "needed",
    [
        (colorsys,),
        ("xml.dom.minidom",),
        ("colorsys", "xml.dom.minidom"),
        ("colorsys as cs", "xml.dom.minidom as dom"),
        (math.sqrt,),
        (Fraction, len),
    ],
)
def test_forms_of_require(rc, needed):
    """Modules, their names, dotted or under another name, functions and classes: all arrive."""
    f = in_main("def f(names): return [callable(eval(n)) for n in names]")["f"]
    wanted = []
    for item in needed:
        if isinstance(item, str):
            module, _, alias = item.partition(" as ")
            wanted.append(alias or module)
        else:
            wanted.append(item.__name__)
    expected = [not isinstance(n, str | types.ModuleType) for n in needed]
    assert rc[0].apply_sync(require(*needed)(f), wanted) == expected


def test_require_of_a_module_under_another_name(rc):
    """A module given by keyword is imported there under the keyword's name."""
    f = in_main("def f(): return cs.__name__")["f"]
    assert rc[0].apply_sync(require(cs=colorsys)(f)) == "colorsys"


def test_require_of_what_is_not_there(rc):
    """A module that the engine lacks is an UnmetDependency that names it, traceback and all."""
    with pytest.raises(UnmetDependency, match=r"^min requires no_such_module: No module") as caught:
        rc[0].apply_sync(require("no_such_module")(min), 1)
    assert "load_balanced_view" in caught.value.__notes__[0]
    assert caught.value.engine_info["engine_id"] == 0
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteError)
    assert any("no_such_module" in line for line in cause.traceback)
    with pytest.raises(CompositeError) as caught_both:
        rc[:].apply_sync(require("no_such_module as nothing")(min), 1)
    assert "[0-1:apply] UnmetDependency: min requires" in str(caught_both.value)


@pytest.mark.parametrize(
    ("item", "kind"),
    [(5, TypeError), (lambda: 1, TypeError), ("no module", ValueError), ("a as 1b", ValueError)],
)
def test_require_checks_its_arguments(item, kind):
    """What has no name that can be assigned is refused where the decorator stands."""
    with pytest.raises(kind, match="require"):
        require(item)


def test_depend_checks_on_the_engine(rc):
    """The condition is called on the engine, with its arguments, before the function."""
    space = in_main(
        "def is_engine(number, *, like): return MY_NUMBER == number and like == 'this'\n"
        "def f(x): return MY_NUMBER, x\n"
    )
    for engine in rc:
        engine["MY_NUMBER"] = engine.targets
    on_one = depend(space["is_engine"], 1, like="this")(space["f"])
    assert rc[1].apply_sync(on_one, "x") == (1, "x")
    with pytest.raises(UnmetDependency, match="f cannot run here: is_engine returned False"):
        rc[0].apply_sync(on_one, "x")
    result = rc[:].apply(on_one, 5)
    result.wait(5)
    assert isinstance(result.exception(), CompositeError)
    assert result.get(return_exceptions=True)[1] == (1, 5)


@pytest.mark.parametrize(
    ("answer", "runs"),
    [("False", False), ("True", True), ("None", True), ("0", True), ("[]", True)],
)
def test_only_false_means_no(rc, answer, runs):
    """A condition that forgets to return something is met."""
    f = depend(in_main(f"def check(): return {answer}")["check"])(abs)
    if runs:
        assert rc[0].apply_sync(f, -1) == 1
    else:
        with pytest.raises(UnmetDependency):
            rc[0].apply_sync(f, -1)


def test_false_of_numpy_means_no():
    """What comparing arrays gives counts as a bool."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(UnmetDependency):
        dependent(abs, lambda: numpy.bool_(False)).check_dependency()
    dependent(abs, lambda: numpy.bool_(True)).check_dependency()


def test_conditions_that_raise(rc):
    """What a condition raises is the task's error; UnmetDependency says that it is not met."""
    code = "def check():\n    raise {}\n"
    with pytest.raises(RemoteError, match="ZeroDivisionError: oops"):
        rc[0].apply_sync(depend(in_main(code.format("ZeroDivisionError('oops')"))["check"])(abs), 1)
    space = in_main(code.format("UnmetDependency('too hot')"))
    space["UnmetDependency"] = UnmetDependency
    rc[0]["UnmetDependency"] = UnmetDependency
    with pytest.raises(UnmetDependency, match="too hot"):
        rc[0].apply_sync(depend(space["check"])(abs), 1)


def test_where_it_was_made_a_dependent_function_is_the_function(rc):
    """Called at home it does not check; names, text and signature are the function's."""

    @depend(lambda: False)
    def add(a, b=1):
        """Add."""
        return a + b

    assert add(1) == 2
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert str(inspect.signature(add)) == "(a, b=1)"
    assert copy.deepcopy(add) is add
    assert isinstance(add, dependent)
    assert repr(add) == "<Dependent add on <lambda>>"
    assert dependent(pow, abs, 1).df is abs


def test_decorators_of_dependent_functions(rc):
    """`@depend`, `@require` and the views' decorators can stand above one another."""
    space = in_main("def f(x): return colorsys.__name__, EXTRA, x\ndef yes(): return True\n")
    inner = require("colorsys")(depend(space["yes"])(require(EXTRA=7)(space["f"])))
    view = rc.load_balanced_view()
    assert view.remote(block=True)(inner)(3) == ("colorsys", 7, 3)
    assert rc[:].parallel(block=True)(inner).map([1, 2]) == [("colorsys", 7, x) for x in (1, 2)]


def test_dependent_functions_call_themselves(rc):
    """A function of a script that is decorated calls itself by its name, as it does at home."""
    space = in_main("def down(n): return n and down(n - 1)\n")
    for decorate in (require("math"), depend(abs, 1)):
        function = decorate(in_main("def down(n): return n and down(n - 1)\n")["down"])
        function.__wrapped__.__globals__["down"] = function
        assert function(3) == 0
        # The fake engine plants no names; what the real one plants is told in the header.
        assert pack_function(function).function.self_name == "down"
    assert pack_function(space["down"]).function.self_name == "down"


@pytest.mark.parametrize("condition", [5, None, "shutil"])
def test_depend_needs_a_function(condition):
    """A condition that cannot be called is refused where the decorator stands."""
    with pytest.raises(TypeError, match="takes a function"):
        depend(condition)


def test_misuse_of_depend():
    """An async condition, and a function that is none, are refused."""

    async def later():
        return True

    with pytest.raises(TypeError, match="must not be async"):
        depend(later)(abs)
    with pytest.raises(TypeError, match="must be callable, not int"):
        depend(abs)(5)


def test_interactive_functions_use_the_engines_namespace(rc):
    """An interactive function's globals are the engine's, and its closure comes along."""
    offset = 100

    @interactive
    def f(*, more=1):
        return CONSTANT + offset + more  # noqa: F821

    rc[:].push({"CONSTANT": 5}, block=True)
    assert rc[:].apply_sync(f) == [106, 106]
    assert f.__module__ == "__main__"
