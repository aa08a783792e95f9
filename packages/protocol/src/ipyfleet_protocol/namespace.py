"""The namespace that received code runs in, and what others do with it by name.

An engine sets its shell's user namespace here once; a process that sets nothing uses
``__main__``. Functions that arrive by value get *this very dict* as their globals, a
`Reference` is evaluated in it while the receiver unpickles, and the small functions below
are sent by reference to push, pull and import on the engine. Nothing in this module sends
or receives anything.
"""

from __future__ import annotations

import ast
import sys
from types import CodeType
from typing import Any

_PUSHED_VALUE = "__ipyfleet_pushed_value__"

_namespace: dict[str, Any] | None = None


def set_namespace(ns: dict[str, Any] | None) -> None:
    """Make ``ns`` the namespace of this process; called once, by the engine, at its start.

    Args:
        ns: The dict itself is kept, not a copy. None goes back to ``__main__``.
    """
    global _namespace
    _namespace = ns


def current_namespace() -> dict[str, Any]:
    """The dict that functions received by value have as globals."""
    if _namespace is None:
        return sys.modules["__main__"].__dict__
    return _namespace


def push_names(ns: dict[str, Any]) -> None:
    """Assign each value of ``ns`` in the namespace.

    Args:
        ns: Keys are assignment targets: a name, or an attribute or an item of something
            that is there already (``"a"``, ``"a.b"``, ``"a['k'][0]"``).

    Raises:
        TypeError: A key is not a string.
        ValueError: A key is not one assignment target. Nothing was assigned: all keys are
            checked before the first assignment.
        Exception: Whatever an assignment to an attribute or item raises; the assignments
            before it stay.
    """
    targets = [(key, _compile_target(key)) for key in ns]
    namespace = current_namespace()
    for key, code in targets:
        if code is None:
            namespace[key] = ns[key]
        else:
            # The value is seen as a local, so that no helper name shows in the namespace.
            exec(code, namespace, {_PUSHED_VALUE: ns[key]})


def pull_names(names: str | tuple[str, ...] | list[str]) -> Any:
    """Evaluate a name (or any expression) in the namespace; for several, list their values.

    Raises:
        NameError: As Python raises it, when a name is missing.
    """
    namespace = current_namespace()
    if isinstance(names, str):
        return eval(names, namespace)
    return [eval(name, namespace) for name in names]


def import_names(statement: str) -> None:
    """Run import statements in the namespace (``"import numpy as np"``).

    Raises:
        ValueError: ``statement`` holds anything but imports; nothing was run.
        ImportError: As the import raises it.
    """
    tree = ast.parse(statement)
    if not tree.body or not all(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body):
        raise ValueError(f"not an import statement: {statement!r}")
    exec(compile(tree, "<imports>", "exec"), current_namespace())


class Reference:
    """The name of something that only the receiver has; it arrives as that thing.

    ``Reference("a.b[0]")`` may stand anywhere in arguments, at any depth, or in the place of
    the function itself. Any expression goes; it is evaluated in the receiver's namespace
    each time that it is unpickled.

    Args:
        name: The expression.

    Raises:
        TypeError: ``name`` is not a string.
        SyntaxError: ``name`` is not an expression.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"Reference takes a name (str), not {type(name).__name__}")
        compile(name.strip(), "<reference>", "eval")
        self.name = name

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return resolve_reference, (self.name,)

    def __repr__(self) -> str:
        return f"Reference({self.name!r})"


def resolve_reference(name: str) -> Any:
    """Evaluate a `Reference` where it arrives; pickles name this function."""
    return eval(name.strip(), current_namespace())


def _compile_target(key: str) -> CodeType | None:
    """Compile an assignment to ``key``; None for a plain name, which needs no code."""
    if not isinstance(key, str):
        raise TypeError(f"a name to push must be a str, not {type(key).__name__}: {key!r}")
    if key.isidentifier():
        return None
    try:
        tree = ast.parse(f"{key} = {_PUSHED_VALUE}")
    except SyntaxError:
        raise ValueError(f"cannot assign to {key!r}: not a name, attribute or item") from None
    match tree.body:
        # One target of these kinds only: a name inside a tuple target would be bound in the
        # locals of exec() and so be lost in silence.
        case [ast.Assign(targets=[ast.Attribute() | ast.Subscript()], value=ast.Name())]:
            return compile(tree, "<push>", "exec")
    raise ValueError(f"cannot assign to {key!r}: not a name, attribute or item")
