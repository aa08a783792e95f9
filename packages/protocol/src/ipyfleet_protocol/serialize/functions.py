"""Packing of the function of a group: once, named by a digest, cached where that is safe.

The header says whether an engine may keep the unpickled function for further tasks
(``reusable``): not where a task could leave something behind in it, such as a mutable default,
a variable of a closure, an attribute.
"""

from __future__ import annotations

import abc
import functools
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from .. import messages
from ..namespace import Reference
from ..requiring import Dependent, Requiring
from . import packing
from .classes import ClassTable, Equipped, equipped_digest
from .failures import UnpackError
from .frames import unpack
from .own_class import own_classes
from .packing import pack

_DIGEST_BYTES = 16
_DIGEST_MAX_BYTES = 1024 * 1024

_IMMUTABLE = frozenset(
    (int, float, complex, bool, str, bytes, type(None), type(...), range, types.BuiltinFunctionType)
)
# How the pickle of something named by reference ends: STACK_GLOBAL, MEMOIZE, STOP.
_BY_REFERENCE_END = b"\x93\x94."
# What lru_cache and functools.update_wrapper put into the __dict__ of a cached function.
_LOOKS = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}
# What `__slots__` and a class's own making leave in a class.
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_ASSIGNS = ("STORE_ATTR", "DELETE_ATTR")
_READS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_LruCacheWrapper = type(functools.lru_cache(lambda: None))


class PackedFunction(NamedTuple):
    """A function for a group: its header and its frames (the pickle, then its buffers)."""

    function: messages.Function
    frames: list[bytes | memoryview]


class _Cached(NamedTuple):
    """A packed function, and all that its pickle was made from."""

    ingredients: tuple[Any, ...]
    self_name: str
    packed: PackedFunction


# A WeakKeyDictionary does the same, in Python.
_cache: dict[weakref.ref[types.FunctionType], _Cached] = {}

# What travels by name, by module and qualified name, with the generation of the fallback pickler.
_by_name: dict[tuple[str, str], tuple[int, PackedFunction]] = {}
_BY_NAME_MAX = 4096
_NAMED_KINDS = frozenset((types.FunctionType, types.BuiltinFunctionType, type))


def pack_function(f: Callable[..., Any] | Reference) -> PackedFunction:
    """Pickle a function for a group of tasks.

    Quick for a function seen before whose pickle depends on its code alone (no closure,
    immutable defaults, no attributes) or on its name alone (it is what its module has under that
    name). All of that is looked at again at each call.

    Raises:
        TypeError: ``f`` is neither callable nor a `Reference`.
        PackError: ``f`` cannot be pickled (it is a TypeError too).
    """
    name = _importable_name(f)
    if name is not None:
        known = _by_name.get(name)
        if known is not None and known[0] == packing.generation:
            return known[1]
        packed = _pack_function(f)
        if packed.frames[0][-len(_BY_REFERENCE_END) :] == _BY_REFERENCE_END:
            if len(_by_name) >= _BY_NAME_MAX:
                _by_name.clear()
            _by_name[name] = (packing.generation, packed)
        return packed
    ingredients = _ingredients(f)
    if ingredients is not None:
        assert isinstance(f, types.FunctionType)
        cached = _cache.get(weakref.ref(f))
        if (
            cached is not None
            and cached.ingredients == ingredients
            and _names_itself(f, f, cached.self_name)
        ):
            return cached.packed
    elif not callable(f) and not isinstance(f, Reference):
        raise TypeError(f"not a function: {type(f).__name__} object is not callable")
    packed = _pack_function(f)
    if ingredients is not None:
        key: weakref.ref[Any] = weakref.ref(f, _forget)
        _cache[key] = _Cached(ingredients, packed.function.self_name, packed)
    return packed


def _forget(key: weakref.ref[types.FunctionType]) -> None:
    _cache.pop(key, None)


def equip_function(packed: PackedFunction, classes: ClassTable) -> PackedFunction:
    """Return a packed function that brings the classes of its arguments.

    Args:
        packed: What `pack_function` returned.
        classes: What `pack_items` has put there; if that is nothing, `packed` is returned.
    """
    if not classes.bodies:
        return packed
    header = packed.function
    data, buffers = pack(Equipped(packed.frames, classes.bodies), what=header.name)
    frames: list[bytes | memoryview] = [data, *buffers]
    equipped = messages.Function(
        digest=equipped_digest(header, classes.bodies),
        name=header.name,
        reusable=header.reusable,
        self_name=header.self_name,
        frames=len(frames),
    )
    return PackedFunction(equipped, frames)


def unpack_function(frames: Sequence[bytes | memoryview]) -> Callable[..., Any]:
    """Rebuild a function from the frames of `PackedFunction`. Runs code, as `unpack`.

    Raises:
        UnpackError: It cannot be unpickled here, or is not callable.
    """
    f = unpack(frames[0], [memoryview(frame) for frame in frames[1:]])
    if not callable(f):
        raise UnpackError(f"not a function: {type(f).__name__} object is not callable")
    return f  # type: ignore[no-any-return]


def _pack_function(f: Callable[..., Any] | Reference) -> PackedFunction:
    name = _name_of(f)
    data, buffers = pack(f, what=name)
    frames: list[bytes | memoryview] = [data, *buffers]
    size = len(data) + sum(buffer.nbytes for buffer in buffers)
    if size > _DIGEST_MAX_BYTES:
        # Hashing would take longer than sending it again saves.
        digest, reusable = os.urandom(_DIGEST_BYTES), False
    else:
        digest = _digest(frames)
        reusable = _is_reusable(f, data)
    header = messages.Function(
        digest=digest,
        name=name,
        reusable=reusable,
        self_name=_self_name(f),
        frames=len(frames),
    )
    return PackedFunction(header, frames)


def _digest(frames: Sequence[bytes | memoryview]) -> bytes:
    state = blake2b(digest_size=_DIGEST_BYTES)
    for frame in frames:
        state.update(len(frame).to_bytes(8, "little"))
        state.update(frame)
    return state.digest()


def _name_of(f: Any) -> str:
    if isinstance(f, Reference):
        return f.name
    while isinstance(f, functools.partial):
        f = f.func
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else type(f).__name__


# --- what may be cached ---


def _importable_name(f: Any) -> tuple[str, str] | None:
    """Module and qualified name of what a module has under just that name now, else None."""
    if type(f) not in _NAMED_KINDS:
        return None
    module, path = f.__module__, f.__qualname__
    if module == "__main__" or type(module) is not str:
        return None
    found: Any = sys.modules.get(module)
    for name in path.split(".") if "." in path else (path,):
        found = getattr(found, name, None)
    return (module, path) if found is f else None


def _ingredients(f: Any) -> tuple[Any, ...] | None:
    """All that the pickle of a function depends on, or None where that is not its code alone."""
    if type(f) is not types.FunctionType or f.__closure__ is not None or f.__dict__:
        return None
    if "." in f.__qualname__ and own_classes(f):
        return None
    defaults = f.__defaults__
    kwdefaults = f.__kwdefaults__
    annotations = f.__annotations__
    if (defaults and not _is_immutable(defaults)) or (
        kwdefaults and not all(map(_is_immutable, kwdefaults.values()))
    ):
        return None
    if annotations and not all(map(_is_fixed_annotation, annotations.values())):
        return None
    return (
        # Code compares by value (1 == 1.0 in constants), hence the identity; the object
        # itself is kept too, or its address could come back with another.
        id(f.__code__),
        f.__code__,
        f.__name__,
        f.__qualname__,
        f.__module__,
        f.__doc__,
        _typed(defaults) if defaults else None,
        tuple((name, _typed(value)) for name, value in kwdefaults.items()) if kwdefaults else None,
        tuple(annotations.items()) if annotations else None,
        id(f.__globals__),
        packing.generation,
    )


def _typed(value: Any) -> Any:
    """A value that is equal only to the same value of the same type (1, 1.0 and True differ)."""
    if type(value) is tuple:
        return (tuple, tuple(map(_typed, value)))
    if type(value) in (str, bytes, int):
        return (type(value), value)
    return (type(value), repr(value))  # 0.0 and -0.0 are equal, too


def _is_immutable(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_is_immutable, value))
    return kind in _IMMUTABLE


def _is_fixed_annotation(value: Any) -> bool:
    if isinstance(value, type):
        return _is_of_a_module(value)
    return value is None or type(value) is str


# --- what may be reused ---


def _is_reusable(f: Any, data: bytes) -> bool:
    if isinstance(f, Reference):
        return False  # evaluated anew for each task
    return data.endswith(_BY_REFERENCE_END) or _is_stateless(f, set())


def _is_stateless(f: Any, seen: set[int]) -> bool:
    """Whether no call can leave anything behind in what ``f`` was rebuilt to."""
    if id(f) in seen:
        return True
    seen.add(id(f))
    if isinstance(f, types.BuiltinFunctionType):
        return f.__self__ is None or isinstance(f.__self__, types.ModuleType)
    if isinstance(f, type):
        return all(_is_stateless_class(base, seen) for base in f.__mro__)
    if type(f) is functools.partial:
        return (
            not vars(f)
            and _is_stateless(f.func, seen)
            and all(_is_settled(value, seen) for value in (*f.args, *f.keywords.values()))
        )
    if type(f) is _LruCacheWrapper:
        # What a cache keeps is what it is for.
        return vars(f).keys() <= _LOOKS and _is_stateless(f.__wrapped__, seen)
    if type(f) is Dependent:
        needed = (f.f, f.df, *f.dargs, *f.dkwargs.values())
        return all(_is_settled(value, seen) for value in needed)
    if type(f) is Requiring:
        return all(_is_settled(value, seen) for value in (f.func, *f.names.values()))
    if type(f) is not types.FunctionType:
        return False
    values = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values(), *vars(f).values()]
    if vars(f).keys() - {"__wrapped__"}:
        return False
    if f.__closure__:
        if _rebinds_free_variables(f.__code__):
            return False
        try:
            values += [cell.cell_contents for cell in f.__closure__]
        except ValueError:  # a variable that is not bound yet
            return False
    return all(_is_settled(value, seen) for value in values) and all(
        _is_stateless(cls, seen) for cls in own_classes(f).values()
    )


def _is_stateless_class(cls: type, seen: set[int]) -> bool:
    """Whether a class has nothing but methods, and fixed attributes that no method assigns to."""
    if _is_of_a_module(cls):
        return True
    seen.add(id(cls))
    if type(cls) not in (type, abc.ABCMeta):
        return False
    fixed: set[str] = set()
    assigned: set[str] = set()
    for name, value in vars(cls).items():
        parts = _functions_in(value)
        if parts is None:
            if not (name.startswith("__") or name == "_abc_impl"):
                fixed.add(name)
                if not _is_immutable(value):
                    return False
            continue
        for part in parts:
            if part.__globals__.get("__name__") in ("dataclasses", "reprlib"):
                continue  # a dataclass's repr; what it notes is gone when it returns
            if not _is_stateless(part, seen):
                return False
            assigned.update(_names_in(part.__code__, _ASSIGNS))
    return fixed.isdisjoint(assigned)


def _functions_in(value: Any) -> list[types.FunctionType] | None:
    """Return the functions that an attribute of a class is made of; None if it is no such thing."""
    if isinstance(value, _SLOTS):
        return []
    parts = [value]
    if isinstance(value, staticmethod | classmethod):
        parts = [value.__func__]
    elif type(value) is property:
        parts = [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    return parts if all(type(part) is types.FunctionType for part in parts) else None


def _is_of_a_module(cls: type) -> bool:
    return cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def _is_settled(value: Any, seen: set[int]) -> bool:
    if _is_immutable(value) or isinstance(value, types.ModuleType):
        return True
    if isinstance(value, type):
        return id(value) in seen or _is_of_a_module(value)
    return _is_stateless(value, seen)


def _rebinds_free_variables(code: types.CodeType) -> bool:
    import dis

    free = set(code.co_freevars)
    return any(
        instruction.opname in ("STORE_DEREF", "DELETE_DEREF") and instruction.argval in free
        for instruction in dis.get_instructions(code)
    ) or any(
        _rebinds_free_variables(inner) and free.intersection(inner.co_freevars)
        for inner in code.co_consts
        if isinstance(inner, types.CodeType)
    )


# --- recursion ---


def _self_name(f: Any) -> str:
    """The global name by which ``f`` calls itself, or ''; of a partial, that of its function."""
    while isinstance(f, functools.partial):
        f = f.func
    func = _innermost(f)
    if func is None:
        return ""
    for name in _names_in(func.__code__, _READS_GLOBAL):
        if func.__globals__.get(name) is f:
            return name
    return ""


def _names_itself(f: Any, func: types.FunctionType, self_name: str) -> bool:
    """Whether the self name found earlier still holds (cheap form of `_self_name`)."""
    if self_name:
        return func.__globals__.get(self_name) is f
    names = func.__code__.co_names
    found = func.__globals__.get(func.__name__)
    return found is not f or func.__name__ not in names or _self_name(f) == ""


def _innermost(f: Any) -> types.FunctionType | None:
    """The function of ``__main__`` below decorators that say what they wrap."""
    from .by_value import is_main_function

    for _ in range(100):  # a decorator that wraps itself would have no end
        wrapped = getattr(f, "__wrapped__", None)
        if wrapped is None:
            break
        f = wrapped
    return f if type(f) is types.FunctionType and is_main_function(f) else None


def _names_in(code: types.CodeType, operations: tuple[str, ...]) -> Iterator[str]:
    """Yield the names that a function, and those inside it, apply one of the operations to."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_in(inner, operations)
