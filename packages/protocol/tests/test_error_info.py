"""Errors as data: what an engine makes of any exception, and what a client makes of that."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from ipyfleet_protocol.errors import (
    TEXT_MAX_BYTES,
    CompositeError,
    EngineError,
    ImpossibleDependency,
    InvalidDependency,
    NoEnginesRegistered,
    RemoteError,
    UnmetDependency,
    collect_exceptions,
    error_from_info,
    info_from_exception,
    is_unmet,
)
from ipyfleet_protocol.errors.bounded import safe_text, shorten, shorten_lines
from ipyfleet_protocol.messages import ErrorInfo


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class ExitingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    def __reduce__(self) -> tuple:
        raise SystemExit(3)


class NotTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - the point of this class


class UnpicklableError(Exception):
    def __reduce__(self) -> tuple:
        raise ValueError("stays here")


class OneWayError(Exception):
    """Pickles, and does not unpickle: its constructor wants two arguments and keeps one."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def describe(exc: BaseException, traceback: list[str] | None = None) -> ErrorInfo:
    """Return the exception as data, as it looks after the wire."""
    info = info_from_exception(
        exc, engine_id=1, engine_uuid="ab", method="apply", traceback=traceback or ["line"]
    )
    return msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=ErrorInfo)


def test_round_trip() -> None:
    """A client gets name, text, traceback, place and the original exception as the cause."""
    error = error_from_info(describe(KeyError("k"), ["a", "b"]))
    assert isinstance(error, RemoteError)
    assert repr(error) == """<RemoteError[1]:KeyError('k')>"""
    assert error.traceback == ["a", "b"]
    assert error.engine_info == {"engine_id": 1, "engine_uuid": "ab", "method": "apply"}
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("k",)


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (UnprintableError(), "str() raised RuntimeError"),
        (ExitingError(), "str() raised SystemExit"),
        (NotTextError(), "str() raised TypeError"),
        (ValueError("\ud800 half a pair"), "\\ud800 half a pair"),
        (KeyboardInterrupt(), ""),
        (SystemExit(4), "4"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hostile_text(exc: BaseException, text: str) -> None:
    """Whatever the text of an exception does, the error can be told."""
    info = describe(exc)
    assert info.ename == type(exc).__name__
    assert text in info.evalue


@pytest.mark.parametrize(
    "exc",
    [
        UnpicklableError("x"),
        ExitingError(),
        ValueError(lambda: None),
        ValueError(b"x" * TEXT_MAX_BYTES),
    ],
    ids=["reduce raises", "reduce exits", "lambda inside", "too large"],
)
def test_without_cause(exc: Exception) -> None:
    """An exception that cannot be pickled, or is large, is told without the object."""
    info = describe(exc)
    assert info.cause == b""
    assert error_from_info(info).__cause__ is None


@pytest.mark.parametrize(
    "cause",
    [
        pickle.dumps(OneWayError(1, "a")),
        b"cno.such.module\nThing\n.",
        b"garbage",
        pickle.dumps("no exception"),
        pickle.dumps(KeyError("k"))[:-3],
    ],
    ids=["constructor", "no module", "garbage", "a string", "cut"],
)
def test_cause_that_does_not_unpickle(cause: bytes) -> None:
    """A cause that this side cannot make is left out, and the error is complete without it."""
    error = error_from_info(ErrorInfo("E", "v", ["t"], 0, "u", "apply", cause))
    assert str(error) == "[0:apply] E: v"
    assert error.__cause__ is None


def test_own_errors() -> None:
    """What the system says of itself arrives as the class it names."""
    error = error_from_info(ErrorInfo("EngineError", "killed", [], 4, "u", "apply", own=True))
    assert type(error) is EngineError
    assert str(error) == "killed"
    assert error.engine_info == {"engine_id": 4, "engine_uuid": "u", "method": "apply"}
    nobody = error_from_info(ErrorInfo("NoEnginesRegistered", "", [], own=True))
    assert type(nobody) is NoEnginesRegistered
    assert "ipcluster start" in str(nobody)
    assert nobody.engine_info is None


class NoGpuError(UnmetDependency):
    """A user's own way of saying it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnmetDependency("no gpu"), UnmetDependency),
        (NoGpuError("no gpu"), RemoteError),
        (ImpossibleDependency("no gpu"), RemoteError),
    ],
)
def test_what_user_code_says_of_its_engine(error, expected) -> None:
    """UnmetDependency, raised by user code, is that to the client, caused by a RemoteError."""
    lines = ["Traceback:", "  in f", "UnmetDependency: no gpu"]
    info = info_from_exception(error, engine_id=3, engine_uuid="u", method="apply", traceback=lines)
    arrived = error_from_info(info)
    assert type(arrived) is expected
    assert arrived.engine_info == {"engine_id": 3, "engine_uuid": "u", "method": "apply"}
    remote = arrived if expected is RemoteError else arrived.__cause__
    assert isinstance(remote, RemoteError)
    assert remote.traceback == lines
    with pytest.raises(CompositeError) as caught:
        collect_exceptions([arrived, 1])
    assert caught.value.exceptions[0].traceback == lines


def test_which_errors_send_a_task_elsewhere() -> None:
    """UnmetDependency and classes of users below it; not what no engine can help."""
    assert is_unmet(UnmetDependency())
    assert is_unmet(NoGpuError())
    assert not is_unmet(ImpossibleDependency())
    assert not is_unmet(InvalidDependency())
    assert not is_unmet(ValueError())


@pytest.mark.parametrize(
    "info",
    [
        ErrorInfo("EngineError", "v", []),
        ErrorInfo("SystemExit", "v", [], own=True),
        ErrorInfo("CompositeError", "v", [], own=True),
    ],
    ids=["not own", "not ours", "not for this"],
)
def test_other_names_are_remote_errors(info: ErrorInfo) -> None:
    """A name alone makes no own error, and no name makes anything but one of the listed classes."""
    error = error_from_info(info)
    assert type(error) is RemoteError
    assert error.ename == info.ename


def test_large_texts_are_bounded() -> None:
    """The text and traceback of an error never grow a message without bound, and say what is
    missing.
    """
    info = describe(ValueError("ä" * 10**6 + "the end"), [f"line {n}" for n in range(10**5)])
    assert len(info.evalue.encode()) < TEXT_MAX_BYTES + 100
    assert info.evalue.endswith("the end")
    assert "shortened" in info.evalue
    assert sum(len(line.encode()) for line in info.traceback) < TEXT_MAX_BYTES + 100
    assert (info.traceback[0], info.traceback[-1]) == ("line 0", "line 99999")
    assert any("shortened" in line for line in info.traceback)


def test_shorten_keeps_what_fits() -> None:
    """A text of the allowed length is not touched."""
    assert shorten("x" * 100, 100) == "x" * 100
    assert shorten_lines(["a" * 10] * 9, 100) == ["a" * 10] * 9


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [30, 1, 30, 1, 90, 30, 30], [0] * 500])
def test_shorten_lines_bounds_any_shape(sizes: list[int]) -> None:
    """Lines of any sizes end up within the bound, but for the notes of what is left out."""
    lines = shorten_lines(["x" * size for size in sizes], 100)
    assert sum(line.count("x") for line in lines) <= 100
    assert len(lines) <= 101


def test_safe_text_of_plain_values() -> None:
    """The text of a well-behaved object is its str."""
    assert safe_text(ValueError("a", 1)) == "('a', 1)"
