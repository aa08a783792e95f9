"""A function together with what it needs where it runs.

What lives here: `Requiring`, which the client's ``@require`` makes and an engine unpickles and
calls. It is here because engines do not have the client's package.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ipyfleet_protocol.errors import UnmetDependency
from ipyfleet_protocol.namespace import current_namespace

__all__ = ["Requiring"]


class Requiring:
    """A function that imports modules and assigns names before it runs.

    Attributes:
        func: the function.
        modules: names of the modules; ``"a.b"`` binds ``a``, as an import statement does.
        names: what is assigned in the namespace.
    """

    def __init__(
        self, func: Callable[..., Any], modules: tuple[str, ...], names: Mapping[str, Any]
    ) -> None:
        self.func = func
        self.modules = modules
        self.names = dict(names)
        self.__name__ = getattr(func, "__name__", "f")
        self.__doc__ = getattr(func, "__doc__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a namespace that has what it needs.

        Raises:
            UnmetDependency: a module cannot be imported here.
        """
        namespace = current_namespace()
        for name in self.modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UnmetDependency(f"{self.__name__} requires {name}: {error}") from error
            root = name.partition(".")[0]
            namespace[root] = importlib.import_module(root)
        namespace.update(self.names)
        return self.func(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<Requiring {self.__name__}>"
