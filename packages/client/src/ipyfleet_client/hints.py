"""What to do about an error, said in the error.

What lives here: `add_hint`, for names that exist here and not on the engine. What must not: hints
that need no knowledge of this process; the errors have those themselves.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from ipyfleet_protocol.errors import RemoteError

_MISSING = re.compile(r"name '(\w+)' is not defined")
_OURS = __name__.partition(".")[0]


def add_hint(errors: Iterable[BaseException]) -> None:
    """Tell in each remote NameError how to send the name, if it exists in the caller's namespace.

    Looks into ``__main__`` and into the function that called into this package. The hint becomes
    a note of the error (PEP 678), and ends its rendered traceback.
    """
    scopes: list[Mapping[str, Any]] | None = None
    for error in errors:
        if not isinstance(error, RemoteError) or error.ename != "NameError":
            continue
        found = _MISSING.search(error.evalue)
        if found is None or getattr(error, "__notes__", None):
            continue
        if scopes is None:
            scopes = _scopes()
        name = found[1]
        for scope in scopes:
            if name in scope:
                is_code = (error.engine_info or {}).get("method") == "execute"
                error.add_note(_advice(name, scope[name], is_code=is_code))
                break


def _scopes() -> list[Mapping[str, Any]]:
    """The caller's namespaces: its locals, its globals, ``__main__``."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != _OURS and not module.startswith("concurrent."):
            break
        frame = frame.f_back
    scopes: list[Mapping[str, Any]] = []
    if frame is not None:
        scopes += [frame.f_locals, frame.f_globals]
    main = sys.modules.get("__main__")
    if main is not None:
        scopes.append(vars(main))
    return scopes


def _advice(name: str, value: Any, *, is_code: bool) -> str:
    if isinstance(value, types.ModuleType):
        module = value.__name__
        statement = f"import {module}" if module == name else f"import {module} as {name}"
        if is_code:
            return (
                f"{name!r} is a module that is imported here and not on the engine. Import it "
                f"there: `%px {statement}`, or `with view.sync_imports(): {statement}`"
            )
        return (
            f"{name!r} is a module that is imported here and not on the engine. Import it there: "
            f"`with view.sync_imports(): {statement}`, or @require({module!r}) on the function, or "
            f"view.execute({statement!r})"
        )
    if is_code:
        return (
            f"{name!r} exists here and not on the engine. Send it: view.push(dict({name}={name})) "
            f"or view[{name!r}] = {name}"
        )
    return (
        f"{name!r} exists here and not on the engine, whose namespace the function sees. Send it: "
        f"view.push(dict({name}={name})) or view[{name!r}] = {name}; or pass it as an argument, or "
        f"@require({name}={name}) on the function"
    )
