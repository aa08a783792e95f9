"""Old imports: ``import ipyparallel`` and ``from IPython import parallel`` mean ipyfleet.

    import ipyfleet.compat
    ipyfleet.compat.install()

or ``%load_ext ipyfleet.compat`` in a notebook. From then on, in this process, the old names are
importable, with the submodules that scripts use. Engines are other processes: what runs there and
imports the old name needs ``rc[:].apply_sync(ipyfleet.compat.install)``.

What lives here: the finder of these modules. What must not: behaviour; a name means the same under
the old import as under the new one.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

ROOTS = ("ipyparallel", "IPython.parallel")
"""The packages that are stood in for."""

_CLIENT = ("ipyfleet", "ipyfleet_client")

SUBMODULES: dict[str, tuple[str, ...]] = {
    "": ("ipyfleet",),
    "error": ("ipyfleet.error",),
    "client": _CLIENT,
    "client.asyncresult": ("ipyfleet_client.asyncresult", "ipyfleet_client.mapresult", *_CLIENT),
    "client.client": ("ipyfleet_client.client", "ipyfleet_client.outputs", *_CLIENT),
    "client.magics": ("ipyfleet_magics",),
    "client.map": ("ipyfleet_client.partition",),
    "client.remotefunction": ("ipyfleet_client.decorators",),
    "client.view": ("ipyfleet_client.views", "ipyfleet_client.executor"),
    "cluster": ("ipyfleet_cluster",),
    "cluster.cluster": ("ipyfleet_cluster.cluster", "ipyfleet_cluster"),
    "cluster.launcher": ("ipyfleet_cluster.launchers", "ipyfleet_cluster"),
    "controller": ("ipyfleet",),
    "controller.dependency": ("ipyfleet", "ipyfleet_client.decorators"),
    "datapub": ("ipyfleet_engine.datapub",),
    "engine": ("ipyfleet",),
    "engine.datapub": ("ipyfleet_engine.datapub",),
    "joblib": ("ipyfleet.default_cluster",),
    "serialize": ("ipyfleet.serialize", "ipyfleet_protocol.serialize", "ipyfleet"),
    "util": ("ipyfleet.util",),
    "version": ("ipyfleet",),
}
"""Where the names of each old submodule are, in the order in which they are looked for."""


class OldModule(ModuleType):
    """An old module: each name that is asked of it is one of ipyfleet's."""

    def __init__(self, name: str, sources: tuple[str, ...]) -> None:
        super().__init__(name, f"Stands in for {name}: its names are those of {sources[0]}.")
        self.__dict__["_sources"] = sources

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [public for public in dir(self) if not public.startswith("_")]
        if not name.startswith("__") or name == "__version__":
            for source in self.__dict__["_sources"]:
                try:
                    return getattr(import_module(source), name)
                except (AttributeError, ModuleNotFoundError):
                    continue
        raise AttributeError(f"{self.__name__} stands in for ipyfleet, which has no {name!r}")

    def __dir__(self) -> list[str]:
        names: set[str] = set()
        for source in self.__dict__["_sources"][:1]:
            module = import_module(source)
            names.update(getattr(module, "__all__", ()) or dir(module))
        return sorted(name for name in names if not name.startswith("_"))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old modules, before anything that is installed under these names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        submodule = _submodule(fullname)
        if submodule is None:
            return None
        if submodule not in SUBMODULES:
            known = ", ".join(name for name in SUBMODULES if name)
            raise ModuleNotFoundError(
                f"{fullname} has no counterpart in ipyfleet; there are {known}", name=fullname
            )
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        submodule = _submodule(spec.name)
        assert submodule is not None
        return OldModule(spec.name, SUBMODULES[submodule])

    def exec_module(self, module: ModuleType) -> None:
        return


def _submodule(fullname: str) -> str | None:
    for root in ROOTS:
        if fullname == root:
            return ""
        if fullname.startswith(f"{root}."):
            return fullname[len(root) + 1 :]
    return None


_finder = _Finder()


def install() -> None:
    """Make the old names importable as ipyfleet, in this process. Idempotent.

    Raises:
        ImportError: the real package is imported already; nothing was changed.
    """
    if _finder in sys.meta_path:
        return
    for name, module in list(sys.modules.items()):
        if _submodule(name) is not None and not isinstance(module, OldModule):
            raise ImportError(
                f"{name} is imported already, from {getattr(module, '__file__', None)}: two "
                "packages cannot have one name. Restart Python (or the kernel) and run "
                "ipyfleet.compat.install() before anything that imports it"
            )
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Undo `install`: the old names mean what is installed under them again. Idempotent."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, OldModule):
            del sys.modules[name]
    ipython = sys.modules.get("IPython")
    if isinstance(getattr(ipython, "parallel", None), OldModule):
        del ipython.parallel  # type: ignore[union-attr]


def load_ipython_extension(ip: Any) -> None:
    """Called by IPython for ``%load_ext ipyfleet.compat``."""
    install()


def unload_ipython_extension(ip: Any) -> None:
    """Called by IPython for ``%unload_ext ipyfleet.compat``."""
    uninstall()
