"""The engine of an ipyfleet cluster: a full IPython kernel, and the host agent that forks engines.

A program, not a library: `ipengine` (or ``python -m ipyfleet_engine``) is the way in. What code
that runs on an engine may call: `bind_kernel`, `publish_data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .binding import bind_kernel
    from .datapub import publish_data

__version__ = "0.1.0"

__all__ = ["__version__", "bind_kernel", "publish_data"]


def __getattr__(name: str) -> Any:
    if name == "bind_kernel":
        # On demand: it needs much of Jupyter, which the rest of this module does not.
        from .binding import bind_kernel

        return bind_kernel
    if name == "publish_data":
        from .datapub import publish_data

        return publish_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
