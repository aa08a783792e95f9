"""Functions and classes that travel by value, with the receiver's namespace as globals.

The only module that subclasses cloudpickle's pickler. What it relies on beyond cloudpickle's
documented API is named, one by one, in ``tests/test_serialize_cloudpickle.py``.

Theory of operation. cloudpickle decides what cannot be named by reference and how classes
travel. Functions are reduced here, since they differ in their globals:

- a function of ``__main__`` gets `current_namespace` of the receiver, the very dict; nothing
  of the sender's globals is captured, but for the class that a method belongs to (`own_class`);
- a nested function or lambda of a module gets that module's dict. Where the module is not
  installed but a local file, the globals that the function refers to travel too, and are
  used only where the receiver cannot import the module;
- a function of anything else (made by ``exec``, a module made by hand) is left to cloudpickle,
  which sends the globals it refers to.

Cells are rebuilt as cells, so two closures that shared a variable still do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import sys
import sysconfig
import types
import weakref
from collections import ChainMap
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle  # type: ignore[import-untyped,unused-ignore]

from ..namespace import current_namespace
from .classes import ClassTable, digest_of_body, find_class, load_class
from .frames import BufferCollector, Packed, dump_with, reduce_memoryview
from .own_class import own_classes, with_own_classes, without_own_classes

LruCacheWrapper = type(functools.lru_cache(lambda: None))

# Classes that were defined here and sent from here. When one comes back with a result, the
# state that comes along is older than what is here and must not overwrite it.
_own_classes: weakref.WeakSet[type] = weakref.WeakSet()
_received_classes: weakref.WeakSet[type] = weakref.WeakSet()

# Digest and pickle of received classes, so that those are not pickled with each value that is sent
# back; None where they have buffers. Others than the owner, who does not look at it, see the state
# that the class had when it was received, or first sent.
_bodies: weakref.WeakKeyDictionary[type, tuple[bytes, bytes] | None] = weakref.WeakKeyDictionary()

# Globals of functions whose module cannot be imported here: one dict for each module.
_stand_ins: dict[str, dict[str, Any]] = {}


def _reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    # Made empty and filled later, since what it holds may hold the cell.
    try:
        contents = (cell.cell_contents,)
    except ValueError:
        return types.CellType, ()
    return types.CellType, (), contents, None, None, fill_cell


def fill_cell(cell: types.CellType, contents: tuple[Any]) -> None:
    """Bind a cell that was made empty; pickles name this function."""
    cell.cell_contents = contents[0]


_REDUCERS: dict[type, Any] = {types.CellType: _reduce_cell, memoryview: reduce_memoryview}


class CapturingPickler(BufferCollector, cloudpickle.CloudPickler):  # type: ignore[misc,unused-ignore]
    """cloudpickle's own rules (functions bring the globals that they refer to)."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {memoryview: reduce_memoryview}, cloudpickle.CloudPickler.dispatch_table
    )


class ByValuePickler(BufferCollector, cloudpickle.CloudPickler):  # type: ignore[misc,unused-ignore]
    """Functions of ``__main__`` take the receiver's namespace as globals.

    Args:
        file: Where the pickle is written.
        capture: Whether nested functions of local modules bring the globals they refer to.
        classes: Takes the classes that travel by value; the pickle has their digests.
        whole: Whether received classes are pickled in place, as a part of this pickle.
    """

    dispatch_table: ClassVar[Any] = ChainMap(_REDUCERS, cloudpickle.CloudPickler.dispatch_table)

    def __init__(
        self,
        file: io.BytesIO,
        *,
        capture: bool = True,
        classes: ClassTable | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(file)
        self._capture = capture
        self._classes = classes
        self._whole = whole
        self.captured = False

    def reducer_override(self, obj: Any) -> Any:
        """Called by pickle for all but the built-in containers and atoms."""
        kind = type(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind is LruCacheWrapper:
            return self._reduce_lru_cache(obj)
        if obj is dataclasses.MISSING:
            return "MISSING"  # a name in its module; pickle would make a second one
        return NotImplemented

    def _reduce_function(self, func: types.FunctionType) -> Any:
        if is_main_function(func):
            return _reduce_by_value(func, None, None)
        reduced = super().reducer_override(func)
        if reduced is NotImplemented:
            return NotImplemented
        module = sys.modules.get(func.__globals__.get("__name__", ""))
        if module is None or module.__dict__ is not func.__globals__ or module.__spec__ is None:
            return reduced
        captured = None
        if self._capture and not _is_installed(module):
            captured = reduced[2][1]["__globals__"]
            self.captured = True
        return _reduce_by_value(func, module.__name__, captured)

    def _reduce_class(self, cls: type) -> Any:
        classes = self._classes
        if classes is not None and cls in classes.digests:
            return find_class, (classes.digests[cls],)
        if not self._whole and cls in _received_classes:
            body = _body_of(cls)
            if body is not None:
                return load_class, body
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) != 6:
            return reduced
        if classes is not None:
            return find_class, (classes.digest_of(cls, dump_by_value),)
        if cls not in _received_classes:
            _own_classes.add(cls)
        make, args, state, _, _, set_state = reduced
        return make, args, (set_state, state), None, None, restore_class_state

    def _reduce_lru_cache(self, cached: Any) -> Any:
        module = sys.modules.get(cached.__module__)
        if cached.__module__ != "__main__" and _lookup(module, cached.__qualname__) is cached:
            return NotImplemented
        parameters = cached.cache_parameters()
        made_anew = ("__wrapped__", "cache_parameters")
        attributes = {k: v for k, v in vars(cached).items() if k not in made_anew}
        args = (cached.__wrapped__, parameters["maxsize"], parameters["typed"])
        return restore_lru_cache, args, attributes or None


def is_main_function(func: types.FunctionType) -> bool:
    """Whether the globals of ``func`` are to be the receiver's namespace."""
    if func.__globals__.get("__name__") == "__main__":
        return True
    # Set by hand, it asks for the namespace. On a wrapper that functools.wraps made it only
    # tells where the wrapped function is from.
    return func.__module__ == "__main__" and not hasattr(func, "__wrapped__")


def dump_by_value(obj: Any, classes: ClassTable | None = None) -> Packed:
    """Pickle with `ByValuePickler`; for `classes` see there."""
    file = io.BytesIO()
    pickler = ByValuePickler(file, classes=classes)
    try:
        pickler.dump(obj)
    except Exception:
        if not pickler.captured:
            raise
        # A global of a local module that cannot be pickled: do without; the receiver has to
        # be able to import the module then.
        again = functools.partial(ByValuePickler, capture=False, classes=classes)
        return dump_with(again, obj)
    return Packed(file.getvalue(), pickler.buffers)


def dump_capturing(obj: Any) -> Packed:
    """Pickle with cloudpickle's own rules."""
    return dump_with(CapturingPickler, obj)


def _body_of(cls: type) -> tuple[bytes, bytes] | None:
    """Return digest and pickle of a received class, or None if it has buffers."""
    if cls not in _bodies:
        file = io.BytesIO()
        pickler = ByValuePickler(file, whole=True)
        pickler.dump(cls)
        packed = Packed(file.getvalue(), pickler.buffers)
        _bodies[cls] = None if packed.buffers else (digest_of_body(packed), packed.pickle)
    return _bodies[cls]


def _reduce_by_value(
    func: types.FunctionType, module_name: str | None, captured: dict[str, Any] | None
) -> tuple[Any, ...]:
    special = {
        "__qualname__": func.__qualname__,
        "__module__": func.__module__,
        "__doc__": func.__doc__,
        "__defaults__": func.__defaults__,
        "__kwdefaults__": func.__kwdefaults__,
        "__annotations__": func.__annotations__,
    }
    # What is at its default anyway is left out: most functions have none of these.
    special = {name: value for name, value in special.items() if value}
    code, own = without_own_classes(func.__code__)
    if module_name is None:
        own.update(own_classes(func))
    args = (code, module_name, func.__name__, func.__closure__, captured is not None)
    state = (special, func.__dict__, captured, own)
    return restore_function, args, state, None, None, restore_function_state


def restore_function(
    code: types.CodeType,
    module_name: str | None,
    name: str,
    closure: tuple[types.CellType, ...] | None,
    has_captured: bool,
) -> types.FunctionType:
    """Rebuild a function without its state; pickles name this function."""
    if module_name is None:
        namespace = current_namespace()
    else:
        namespace = _module_globals(module_name, has_captured)
    return types.FunctionType(code, namespace, name, None, closure)


def restore_function_state(
    func: types.FunctionType,
    state: tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None, dict[str, type]],
) -> None:
    """Give a rebuilt function its defaults, attributes and so on; pickles name this function."""
    special, attributes, captured, own = state
    for name, value in special.items():
        setattr(func, name, value)
    func.__dict__.update(attributes)
    if captured and func.__globals__ is _stand_ins.get(func.__globals__.get("__name__", "")):
        func.__globals__.update(captured)
    if own:
        func.__code__ = with_own_classes(func.__code__, own)


def restore_class_state(cls: type, state: tuple[Any, Any]) -> None:
    """Fill a rebuilt class, unless it is one of ours come home; pickles name this function."""
    if cls in _own_classes:
        return
    _received_classes.add(cls)
    _bodies.pop(cls, None)  # it may have changed
    set_state, class_state = state
    set_state(cls, class_state)


def restore_lru_cache(func: Any, maxsize: int | None, typed: bool) -> Any:
    """Rebuild a cached function with an empty cache; pickles name this function."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(func)


def _module_globals(name: str, has_captured: bool) -> dict[str, Any]:
    try:
        return importlib.import_module(name).__dict__
    except ImportError:
        if not has_captured:
            raise
    return _stand_ins.setdefault(name, {"__name__": name, "__builtins__": __builtins__})


def _lookup(module: types.ModuleType | None, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


@functools.cache
def _installed_roots() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib"))


def _is_installed(module: types.ModuleType) -> bool:
    """Whether a module belongs to the installation, which receivers are taken to have too."""
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    path = Path(file).resolve()
    return any(path.is_relative_to(root) for root in _installed_roots())
