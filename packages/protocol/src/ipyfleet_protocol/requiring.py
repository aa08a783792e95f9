"""A function together with what it needs where it runs.

What lives here: `Requiring` and `Dependent`, which the client's ``@require`` and ``@depend`` make
and an engine unpickles and calls. They are here because engines do not have the client's package.

Where an engine does not have what is needed they raise `UnmetDependency`. A balanced task that
ends so is tried at another engine.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Self

from ipyfleet_protocol.errors import UnmetDependency
from ipyfleet_protocol.namespace import Reference, current_namespace

__all__ = ["Dependent", "Requiring"]


class Requiring:
    """A function that imports modules and assigns names before it runs.

    Attributes:
        func: the function.
        modules: names of the modules; ``"a.b"`` binds ``a``, as an import statement does.
        names: what is assigned in the namespace.
        aliases: modules that are imported under another name: ``{"np": "numpy"}``.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        modules: tuple[str, ...],
        names: Mapping[str, Any],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.func = func
        self.modules = modules
        self.names = dict(names)
        self.aliases = dict(aliases or {})
        self.__name__ = getattr(func, "__name__", "f")
        self.__doc__ = getattr(func, "__doc__", None)
        # By this the serialization sees what calls itself, and `inspect` the signature.
        self.__wrapped__ = func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a namespace that has what it needs.

        Raises:
            UnmetDependency: a module cannot be imported here.
        """
        namespace = current_namespace()
        for name in self.modules:
            self._import(name)
            root = name.partition(".")[0]
            namespace[root] = importlib.import_module(root)
        for alias, name in self.aliases.items():
            namespace[alias] = self._import(name)
        namespace.update(self.names)
        return self.func(*args, **kwargs)

    def _import(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UnmetDependency(f"{self.__name__} requires {name}: {error}") from error

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<Requiring {self.__name__}>"


class Dependent:
    """A function that runs only where another one, called first, does not return False.

    Called where it was made it just calls the function; what arrives at an engine checks first.

    Attributes:
        f: the function.
        df: the condition, called with `dargs` and `dkwargs`.

    Example:
        >>> import socket
        >>> task = Dependent(sum, lambda host: socket.gethostname() == host, "big-machine")
        >>> task([1, 2])
        3
    """

    def __init__(
        self, f: Callable[..., Any], df: Callable[..., Any], /, *dargs: Any, **dkwargs: Any
    ) -> None:
        """Make one.

        Raises:
            TypeError: one of the two is no function, or the condition is ``async``.
        """
        for role, function in (("the function", f), ("its condition", df)):
            if not callable(function) and not isinstance(function, Reference):
                raise TypeError(
                    f"{role} of a dependent function must be callable, not "
                    f"{type(function).__name__}: @depend(condition, *arguments) above the function"
                )
        from inspect import iscoroutinefunction

        if iscoroutinefunction(df):
            raise TypeError("the condition of a dependent function must not be async")
        self.f = f
        self.df = df
        self.dargs = dargs
        self.dkwargs = dkwargs
        self.__name__ = getattr(f, "__name__", "f")
        self.__doc__ = getattr(f, "__doc__", None)
        self.__wrapped__ = f
        self._checks = False

    def check_dependency(self) -> None:
        """Call the condition here.

        Raises:
            UnmetDependency: it returned False, as a bool of Python or numpy.
        """
        met = self.df(*self.dargs, **self.dkwargs)
        if _is_false(met):
            condition = getattr(self.df, "__name__", repr(self.df))
            raise UnmetDependency(f"{self.__name__} cannot run here: {condition} returned False")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; on an engine only if the condition is met.

        Raises:
            UnmetDependency: it is not.
        """
        if self._checks:
            self.check_dependency()
        return self.f(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.f, self.df, self.dargs, self.dkwargs)

    # Like functions, whose copies are themselves.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        condition = getattr(self.df, "__name__", repr(self.df))
        return f"<Dependent {self.__name__} on {condition}>"


def _arrive(
    f: Callable[..., Any],
    df: Callable[..., Any],
    dargs: tuple[Any, ...],
    dkwargs: dict[str, Any],
) -> Dependent:
    dependent = Dependent(f, df, *dargs, **dkwargs)
    dependent._checks = True
    return dependent


def _is_false(value: Any) -> bool:
    kind = type(value)
    return value is False or (
        kind.__module__ == "numpy" and kind.__name__.startswith("bool") and not value
    )
