"""The classes of errors and the forms in which users see them."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import sys
import traceback

import pytest

from ipyfleet_protocol import errors
from ipyfleet_protocol.errors import (
    AlreadyDisplayedError,
    CompositeError,
    EngineError,
    KernelError,
    NoEnginesRegistered,
    RemoteError,
    collect_exceptions,
)

INFO = {"engine_id": 0, "engine_uuid": "1f2e", "method": "apply"}
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.IPythonError)
]


def division(engine: int = 0) -> RemoteError:
    """Return what a division by zero on an engine looks like."""
    return RemoteError(
        "ZeroDivisionError",
        "division by zero",
        ["Traceback of the engine", "ZeroDivisionError: division by zero"],
        {**INFO, "engine_id": engine},
    )


def composite(count: int) -> CompositeError:
    """Return the errors of several engines."""
    return CompositeError(
        "one or more exceptions raised in: f", [division(engine) for engine in range(count)]
    )


def example(kind: type[errors.IPythonError]) -> errors.IPythonError:
    """Return an error of any of our classes."""
    if kind is CompositeError:
        return composite(6)
    if kind is AlreadyDisplayedError:
        return AlreadyDisplayedError(composite(3))
    if kind is RemoteError:
        return division()
    return kind("what happened")


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.KernelError, errors.IPythonError),
        (errors.EngineError, errors.KernelError),
        (errors.NoEnginesRegistered, errors.KernelError),
        (errors.TaskAborted, errors.KernelError),
        (errors.TaskTimeout, errors.KernelError),
        (errors.UnmetDependency, errors.KernelError),
        (errors.ImpossibleDependency, errors.UnmetDependency),
        (errors.DependencyTimeout, errors.ImpossibleDependency),
        (errors.DependencyTimeout, errors.TaskTimeout),
        (errors.InvalidDependency, errors.ImpossibleDependency),
        (errors.RemoteError, errors.KernelError),
        (errors.CompositeError, errors.RemoteError),
        (errors.CompositeError, ExceptionGroup),
        (errors.AlreadyDisplayedError, errors.RemoteError),
        (errors.TaskRejectError, errors.KernelError),
        (errors.ConnectionFileError, OSError),
        (errors.ConnectionFileMissing, FileNotFoundError),
        (errors.ConnectionFilePermission, errors.ConnectionFileUnreadable),
        (errors.ConnectionFileInvalid, errors.ConnectionFileUnreadable),
    ],
)
def test_hierarchy(kind: type, base: type) -> None:
    """Whoever catches a base as users know it catches the class."""
    assert issubclass(kind, base)


def test_timeout_error_is_the_builtin() -> None:
    """`except TimeoutError` catches ours, because there is no other."""
    assert errors.TimeoutError is builtins.TimeoutError


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "clone",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_every_class_survives_pickling_and_copying(kind, clone) -> None:
    """A copy of an error of any class has the same type, texts, arguments and attributes."""
    error = example(kind)
    error.add_note("seen on Monday")
    again = clone(error)
    assert type(again) is kind
    assert (str(again), repr(again)) == (str(error), repr(error))
    assert again.__notes__ == ["seen on Monday"]
    if isinstance(error, RemoteError):
        assert again.render_traceback() == error.render_traceback()
        assert again.engine_info == error.engine_info


@pytest.mark.parametrize(
    "kind", [kind for kind in errors.OWN_ERRORS.values() if kind is not KernelError]
)
def test_an_own_error_without_text_explains_itself(kind) -> None:
    """Raised bare, each of the system's errors still says what happened."""
    assert len(str(kind())) > 20
    assert str(kind("my words")) == "my words"


def test_no_engines_says_what_to_do() -> None:
    """Without engines the user is told how to start or await them."""
    assert "ipcluster start" in str(NoEnginesRegistered())
    assert "wait_for_engines" in str(NoEnginesRegistered())


class TestRemoteError:
    def test_text(self) -> None:
        """The text names engine, method, class and message."""
        assert str(division()) == "[0:apply] ZeroDivisionError: division by zero"

    @pytest.mark.parametrize("info", [None, {}])
    def test_text_without_engine(self, info: dict | None) -> None:
        """Where it is not known where an error happened there is no prefix."""
        error = RemoteError("ValueError", "no", ["t"], info)
        assert str(error) == "ValueError: no"
        assert repr(error) == "<RemoteError:ValueError(no)>"
        assert error.render_traceback() == ["t"]

    def test_repr(self) -> None:
        """The repr is the known one."""
        assert repr(division(3)) == "<RemoteError[3]:ZeroDivisionError(division by zero)>"

    def test_args(self) -> None:
        """The arguments are name and text."""
        assert division().args == ("ZeroDivisionError", "division by zero")

    def test_rendering(self) -> None:
        """The traceback to show is the engine's, under the engine's name; IPython shows the
        same.
        """
        lines = [
            "[0:apply]",
            "Traceback of the engine",
            "ZeroDivisionError: division by zero",
        ]
        assert division().render_traceback() == lines
        assert division()._render_traceback_() == lines

    def test_rendering_without_traceback(self) -> None:
        """An error without a traceback shows at least its text."""
        assert RemoteError("E", "v", [], INFO).render_traceback() == ["[0:apply]", "E: v"]

    def test_traceback_as_text(self) -> None:
        """A traceback given as one string is split into lines."""
        assert RemoteError("E", "v", "a\nb").traceback == ["a", "b"]

    def test_print_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`print_traceback` prints the rendered lines."""
        division().print_traceback()
        assert capsys.readouterr().out == "\n".join(division().render_traceback()) + "\n"


def different(count: int) -> CompositeError:
    """Errors of `count` engines, no two alike."""
    return CompositeError(
        "one or more exceptions raised in: f",
        [
            (
                "E",
                f"number {engine}",
                ["Traceback of the engine", f"E: number {engine}"],
                {**INFO, "engine_id": engine},
            )
            for engine in range(count)
        ],
    )


class TestCompositeError:
    def test_text_of_few(self) -> None:
        """Up to four kinds of errors are all in the text, one line each."""
        assert str(different(2)).splitlines() == [
            "one or more exceptions raised in: f",
            "[0:apply] E: number 0",
            "[1:apply] E: number 1",
        ]
        assert "..." not in str(different(4))

    def test_text_of_many(self) -> None:
        """Of more than four kinds the first four are shown and the rest is counted."""
        lines = str(different(8)).splitlines()
        assert len(lines) == 6
        assert lines[4] == "[3:apply] E: number 3"
        assert lines[5] == "... 4 more exceptions ..."

    def test_errors_that_are_alike_are_shown_once(self) -> None:
        """The same error of many engines is one line, and one traceback, with the engines."""
        error = composite(16)
        assert str(error).splitlines() == [
            "one or more exceptions raised in: f",
            "[0-15:apply] ZeroDivisionError: division by zero",
        ]
        assert error.render_traceback()[0] == "[0-15:apply]:"
        assert len(error.exceptions) == len(error.elist) == 16
        assert error.render_traceback(7)[0] == "[7:apply]"

    def test_engines_that_are_no_range_are_listed(self) -> None:
        """Engines are given as ranges and single numbers; more errors than these are counted."""
        infos = [{**INFO, "engine_id": engine} for engine in (0, 2, 3, 4, 2)]
        error = CompositeError("m", [("E", "v", [], info) for info in infos])
        assert str(error).splitlines()[1] == "[0,2-4:apply] E: v (5 times)"

    def test_another_traceback_is_another_error(self) -> None:
        """Errors with one text are told apart by their traceback; process ids do not matter."""
        lines = ["/tmp/ipykernel_1/5.py line 3", "/tmp/ipykernel_2/5.py line 3", "line 4"]
        error = CompositeError("m", [("E", "v", [line], INFO) for line in lines])
        assert [line for line in error.render_traceback() if "line" in line] == [lines[0], "line 4"]

    def test_notes_are_shown_below_the_traceback(self) -> None:
        """A note, such as a hint of what to do, ends the traceback of its error."""
        error = RemoteError("E", "v", ["t"], INFO)
        error.add_note("do this")
        assert error.render_traceback() == ["[0:apply]", "t", "do this"]
        assert CompositeError("m", [error]).render_traceback() == ["[0:apply]:", "t", "do this", ""]

    def test_limit_is_adjustable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Users can set how many are shown."""
        monkeypatch.setattr(CompositeError, "tb_limit", 1)
        assert str(different(3)).splitlines()[-1] == "... 2 more exceptions ..."
        assert different(3).render_traceback()[-1] == "... 2 more exceptions ..."

    def test_repr(self) -> None:
        """The repr counts the errors."""
        assert repr(composite(3)) == "CompositeError(3)"

    def test_rendering(self) -> None:
        """Each traceback shown has its engine above and a blank line below."""
        lines = different(6).render_traceback()
        assert lines[:4] == ["[0:apply]:", "Traceback of the engine", "E: number 0", ""]
        assert lines[-1] == "... 2 more exceptions ..."
        assert len(lines) == 4 * 4 + 1

    def test_from_tuples(self) -> None:
        """The list of tuples that users know makes the same errors, and can be read back."""
        elist = [("A", "b", ["t"], INFO), ("C", "d", [], None)]
        error = CompositeError("m", elist)
        assert error.elist == elist
        assert error.msg == error.message == "m"
        assert error.args == ("m", elist)
        assert [type(e) for e in error.exceptions] == [RemoteError, RemoteError]

    def test_raise_exception(self) -> None:
        """Any single error can be raised."""
        with pytest.raises(RemoteError) as caught:
            composite(3).raise_exception(2)
        assert str(caught.value).startswith("[2:apply]")
        with pytest.raises(RemoteError):
            composite(3).raise_exception()

    @pytest.mark.parametrize("call", ["raise_exception", "print_traceback"])
    def test_index_out_of_range(self, call: str) -> None:
        """A number that there is no error for is an IndexError that says how many there are."""
        with pytest.raises(IndexError, match="there are 3"):
            getattr(composite(3), call)(3)

    def test_print_one_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`print_traceback` with a number prints that error's traceback, in the form of one
        error.
        """
        composite(6).print_traceback(5)
        assert capsys.readouterr().out.splitlines()[0] == "[5:apply]"

    def test_split(self) -> None:
        """`split` parts the errors by a condition and both parts are CompositeErrors."""
        error = CompositeError("m", [division(), RemoteError("KeyError", "'k'")])
        match, rest = error.split(lambda e: getattr(e, "ename", "") == "KeyError")
        assert repr(match) == repr(rest) == "CompositeError(1)"
        assert match.exceptions[0].ename == "KeyError"
        assert match.msg == "m"

    def test_except_star(self) -> None:
        """`except*` of a base catches the errors, with their causes."""
        error = composite(2)
        error.exceptions[0].__cause__ = ZeroDivisionError("division by zero")
        caught = None
        try:
            raise error
        except* RemoteError as group:
            caught = group
        assert isinstance(caught, CompositeError)
        assert isinstance(caught.exceptions[0].__cause__, ZeroDivisionError)

    def test_empty(self) -> None:
        """A composite of no errors is refused, as by every ExceptionGroup."""
        with pytest.raises(ValueError):
            CompositeError("m", [])

    def test_plain_python_shows_it(self) -> None:
        """Python's own traceback of an uncaught composite shows the text of each error."""
        text = "".join(traceback.format_exception(composite(2)))
        assert "[1:apply] ZeroDivisionError: division by zero" in text


@pytest.mark.parametrize(
    ("original", "text"),
    [(composite(5), "5 errors"), (composite(1), "1 error"), (division(), "1 error")],
)
def test_already_displayed(original: RemoteError, text: str) -> None:
    """Errors that were shown render as their number and nothing else."""
    error = AlreadyDisplayedError(original)
    assert str(error) == text
    assert error._render_traceback_() == [text]
    assert error.original is original


class TestCollectExceptions:
    def test_passes_results(self) -> None:
        """Without an error the results come back."""
        assert collect_exceptions(iter([1, None, "x"]), "f") == [1, None, "x"]

    def test_returned_exceptions_are_values(self) -> None:
        """An exception object that a task returned is no error."""
        value = ValueError("a value")
        assert collect_exceptions([value]) == [value]

    def test_raises_all(self) -> None:
        """One error or many are raised together, named for what was called."""
        with pytest.raises(CompositeError) as caught:
            collect_exceptions([1, division(1)], "f")
        assert str(caught.value).splitlines() == [
            "one or more exceptions raised in: f",
            "[1:apply] ZeroDivisionError: division by zero",
        ]

    def test_of_a_mapping(self) -> None:
        """Of a mapping the values count."""
        assert collect_exceptions({1: "a"}) == ["a"]
        with pytest.raises(CompositeError, match="unspecified"):
            collect_exceptions({0: division()})

    def test_flattens(self) -> None:
        """A composite among the results adds its own errors, at any depth."""
        nested = CompositeError("outer", [composite(2), division(7)])
        with pytest.raises(CompositeError) as caught:
            collect_exceptions([nested, division(9)])
        assert [e.engine_info["engine_id"] for e in caught.value.exceptions] == [0, 1, 7, 9]

    def test_keeps_own_errors(self) -> None:
        """An error of the system becomes a RemoteError by name, with the original as its cause."""
        lost = EngineError("engine 2 was killed by signal 9")
        lost.engine_info = {**INFO, "engine_id": 2}
        with pytest.raises(CompositeError) as caught:
            collect_exceptions([lost])
        (error,) = caught.value.exceptions
        assert str(error) == "[2:apply] EngineError: engine 2 was killed by signal 9"
        assert error.__cause__ is lost


def test_unwrap_of_wrap() -> None:
    """`wrap_exception` describes the exception being handled and `unwrap_exception` restores it."""
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        content = errors.wrap_exception(INFO)
    assert content["status"] == "error"
    assert "1 / 0" in "\n".join(content["traceback"])
    assert repr(errors.unwrap_exception(content)) == repr(division())
    assert sys.exc_info() == (None, None, None)
