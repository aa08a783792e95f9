"""Functions that run remotely when called.

What lives here: `remote`, `parallel` and what they make; `interactive`, `require` and `depend`.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyfleet_client.partition import as_sequence, check_dist
from ipyfleet_protocol.namespace import Reference
from ipyfleet_protocol.requiring import Dependent, Requiring

if TYPE_CHECKING:
    from ipyfleet_client.views.base import View

__all__ = [
    "ParallelFunction",
    "RemoteFunction",
    "depend",
    "dependent",
    "interactive",
    "parallel",
    "remote",
    "require",
]

dependent = Dependent
"""The name that users know: ``dependent(f, condition, *arguments)``."""


class RemoteFunction:
    """A function that runs through a view: calling it is ``view.apply``.

    Attributes:
        func: the function.
        view: the view.
        block: whether calls wait; None for ``view.block``.
        flags: flags of the view that calls override.
    """

    def __init__(
        self, view: View, f: Callable[..., Any], block: bool | None = None, **flags: Any
    ) -> None:
        from ipyfleet_client.views.base import View, check_callable

        if not isinstance(view, View):
            raise TypeError(
                f"functions run through a view, such as rc[:], not through {type(view).__name__}"
            )
        check_callable(f)
        view._check_names(flags)
        self.view = view
        self.func = f
        self.block = block
        self.flags = flags
        self._dress(f)

    def _dress(self, f: Callable[..., Any]) -> None:
        self.__name__ = getattr(f, "__name__", "f")
        self.__doc__ = f"{type(self).__name__} wrapping:\n{getattr(f, '__doc__', None) or ''}"
        try:
            self.__signature__ = inspect.signature(f)
        except (TypeError, ValueError):
            # Some builtins have none.
            self.__signature__ = inspect.Signature()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function through the view."""
        with self.view.temp_flags(**self.flags):
            return self.view._finish(self.view._apply(self.func, args, kwargs), self.block)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__} on {self.view!r}>"


class ParallelFunction(RemoteFunction):
    """A function that runs on parts of sequences through a view.

    Calling it calls the function on each engine with parts of the arguments; `map` calls it with
    each item.
    """

    def __init__(
        self,
        view: View,
        f: Callable[..., Any],
        dist: str = "b",
        block: bool | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        **flags: Any,
    ) -> None:
        from ipyfleet_client.views.balanced import LoadBalancedView

        super().__init__(view, f, block, **flags)
        self._balanced = isinstance(view, LoadBalancedView)
        if chunksize is not None and not self._balanced:
            warnings.warn(
                "chunksize is for load-balanced views; a direct view makes one part per engine",
                UserWarning,
                stacklevel=3,
            )
            chunksize = None
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize must be an int of 1 or more, not {chunksize!r}")
        self.dist = check_dist(dist)
        self.chunksize = chunksize
        self.ordered = ordered
        self.return_exceptions = return_exceptions

    def __call__(self, *sequences: Any) -> Any:
        """Call the function with parts of the sequences, and join what it returns.

        Raises:
            TypeError: there is no sequence.
            ValueError: the sequences have different lengths.
        """
        if not sequences:
            raise TypeError(f"{self.__name__} needs at least one sequence")
        lists = tuple(as_sequence(sequence) for sequence in sequences)
        lengths = [len(sequence) for sequence in lists]
        if len(set(lengths)) > 1:
            raise ValueError(f"the sequences have different lengths: {lengths}")
        view: Any = self.view
        with view.temp_flags(**self.flags):
            if self._balanced:
                result = view._apply_parts(
                    self.func, lists, self.dist, self.chunksize, self.ordered
                )
            else:
                result = view._apply_parts(self.func, lists, self.dist)
            result._return_exceptions = self.return_exceptions
            return view._finish(result, self.block)

    def map(self, *sequences: Any) -> Any:
        """Call the function with each item of the sequences, as the builtin `map`."""
        options: dict[str, Any] = {"return_exceptions": self.return_exceptions}
        if self._balanced:
            options["ordered"] = self.ordered
            options["chunksize"] = self.chunksize or 1
        with self.view.temp_flags(**self.flags):
            return self.view.map(self.func, *sequences, block=self.block, **options)


def remote(
    view: View, block: bool | None = None, **flags: Any
) -> Callable[[Callable[..., Any]], RemoteFunction]:
    """Decorate a function so that calls of it run through a view.

    Example:
        >>> @remote(view, block=True)  # doctest: +SKIP
        ... def pid():
        ...     return os.getpid()
    """
    return lambda f: RemoteFunction(view, f, block, **flags)


def parallel(
    view: View,
    dist: str = "b",
    block: bool | None = None,
    ordered: bool = True,
    **flags: Any,
) -> Callable[[Callable[..., Any]], ParallelFunction]:
    """Decorate a function so that it runs on parts of sequences through a view.

    Example:
        >>> @parallel(view, block=True)  # doctest: +SKIP
        ... def squares(numbers):
        ...     return [n * n for n in numbers]
    """
    return lambda f: ParallelFunction(view, f, dist, block, ordered=ordered, **flags)


def require(*modules_or_functions: Any, **objects: Any) -> Callable[[Any], Requiring]:
    """Decorate a function so that what it needs is there when it runs.

    A task whose engine cannot import one of the modules ends as one whose dependency is unmet; see
    `depend`.

    Args:
        *modules_or_functions: modules, or names of modules such as "scipy.stats" or "numpy as np":
            imported on the engine; functions and classes: assigned to their name there.
        **objects: assigned to these names there; modules are imported.

    Raises:
        TypeError: an argument is none of these.
        ValueError: a string is no module's name.

    Example:
        >>> @require("numpy")  # doctest: +SKIP
        ... def norm(x):
        ...     return numpy.linalg.norm(x)
    """
    modules: list[str] = []
    aliases: dict[str, str] = {}
    names: dict[str, Any] = {}
    for item in modules_or_functions:
        if isinstance(item, types.ModuleType):
            modules.append(item.__name__)
        elif isinstance(item, str):
            module, alias = _read_import(item)
            if alias:
                aliases[alias] = module
            else:
                modules.append(module)
        elif str(getattr(item, "__name__", "")).isidentifier():
            names[item.__name__] = item
        else:
            raise TypeError(
                "require() takes names of modules, modules, functions and classes, not "
                f"{type(item).__name__}; other objects as require(name=object)"
            )
    for name, value in objects.items():
        if isinstance(value, types.ModuleType):
            aliases[name] = value.__name__
        else:
            names[name] = value
    return lambda f: Requiring(f, tuple(modules), names, aliases)


def _read_import(text: str) -> tuple[str, str]:
    """Return module and alias (or an empty string) of what may stand after ``import``."""
    module, _, alias = (part.strip() for part in text.partition(" as "))
    if not all(part.isidentifier() for part in module.split(".")) or (
        alias and not alias.isidentifier()
    ):
        raise ValueError(
            f"require() takes names of modules such as 'numpy' or 'numpy as np', not {text!r}"
        )
    return module, alias


def depend(
    condition: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Callable[[Callable[..., Any]], Dependent]:
    """Decorate a function so that it runs only where a condition is met.

    ``condition(*args, **kwargs)`` is called on the engine before each call of the function. Where
    it returns False (nothing else means no) or raises `UnmetDependency`, a balanced task is tried
    at another engine. A task of a direct view fails with `UnmetDependency`.

    Raises:
        TypeError: the condition is no function, or is ``async``.

    Example:
        >>> def has(command):
        ...     return shutil.which(command) is not None
        >>> @depend(has, "ffmpeg")
        ... def encode(path): ...
    """
    if not callable(condition) and not isinstance(condition, Reference):
        raise TypeError(
            f"depend() takes a function that tells whether an engine will do, not "
            f"{type(condition).__name__}"
        )
    return lambda f: Dependent(f, condition, *args, **kwargs)


def interactive(f: Any) -> Any:
    """Return a function or class as if it had been defined in ``__main__``.

    Its globals are then the namespace of the engine that runs it.
    """
    import __main__

    if isinstance(f, types.FunctionType):
        g = types.FunctionType(
            f.__code__, __main__.__dict__, f.__name__, f.__defaults__, f.__closure__
        )
        functools.update_wrapper(g, f)
        del g.__dict__["__wrapped__"]
        g.__kwdefaults__ = f.__kwdefaults__
        g.__module__ = "__main__"
        return g
    f.__module__ = "__main__"
    return f
