"""Methods that name the class they belong to, or a base of it, and find it where they are sent.

What lives here: which classes a method names so, and how its code is made to find them. What must
not: pickling (`by_value`).

Theory of operation. A method's globals are the receiver's namespace, and its class is not there.
Put there it would be in the way of what the receiver's user calls by that name, of another version
of the class, and of another sender's class; taken away again after the task it would be missed by
the objects that stay. So the class is kept in ``builtins`` under a name that no source can spell,
and the method's code, with that of the functions inside it, is given this name in place of the
plain one. Before the method is sent on, the plain names are put back.

What a class is sent with was known to the interpreter anyway, hence its bases but not other
classes: those are looked up in the namespace, as all globals are.
"""

from __future__ import annotations

import builtins
import itertools
import types
import weakref
from collections.abc import Iterator

# A name in code that reads as this prefix, a number, a space, and the plain name is one of ours.
_PREFIX = " own class "

_READS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))

_next_number = itertools.count(1)
_numbers: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()


def own_classes(func: types.FunctionType) -> dict[str, type]:
    """Return the classes around a method, and their bases, that its code has names of.

    The qualified name tells which classes are around it; so the functions inside a method, and
    what decorators made a secret of, are found to belong to the class too.
    """
    *path, _ = func.__qualname__.split(".")
    family: list[type] = []
    attributes = func.__globals__
    for part in path:
        cls = attributes.get(part)
        if not isinstance(cls, type):
            break
        family += cls.__mro__
        attributes = vars(cls)  # type: ignore[assignment]
    if not family:
        return {}
    own: dict[str, type] = {}
    for name in _names_in(func.__code__):
        value = func.__globals__.get(name)
        own.update((name, cls) for cls in family if cls is value)
    return own


def with_own_classes(code: types.CodeType, own: dict[str, type]) -> types.CodeType:
    """Return code that finds its own classes, whatever its globals are.

    A name that the code uses for an attribute as well stays a plain global there.
    """
    spelling = {}
    for name, cls in own.items():
        number = _numbers.get(cls)
        if number is None:
            number = _numbers[cls] = next(_next_number)
        spelling[name] = f"{_PREFIX}{number} {name}"
        setattr(builtins, spelling[name], cls)
    return _respelled(code, spelling)


def without_own_classes(code: types.CodeType) -> tuple[types.CodeType, dict[str, type]]:
    """Undo `with_own_classes`: return the code with plain names, and the classes."""
    ours = {name for name in _names_in(code) if name.startswith(_PREFIX)}
    if not ours:
        return code, {}
    spelling = {name: name.rpartition(" ")[2] for name in ours}
    return _respelled(code, spelling), {spelling[n]: getattr(builtins, n) for n in sorted(ours)}


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_in(inner)


def _respelled(code: types.CodeType, spelling: dict[str, str]) -> types.CodeType:
    names = tuple(
        spelling[name] if name in spelling and _is_only_read(code, name) else name
        for name in code.co_names
    )
    consts = tuple(
        _respelled(inner, spelling) if isinstance(inner, types.CodeType) else inner
        for inner in code.co_consts
    )
    if names == code.co_names and all(map(_is_same, consts, code.co_consts)):
        return code
    return code.replace(co_names=names, co_consts=consts)


def _is_only_read(code: types.CodeType, name: str) -> bool:
    import dis

    return all(
        instruction.opname in _READS
        for instruction in dis.get_instructions(code)
        if instruction.opcode in dis.hasname and instruction.argval == name
    )


def _is_same(one: object, other: object) -> bool:
    return one is other
