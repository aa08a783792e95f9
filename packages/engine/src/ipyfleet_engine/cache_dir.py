"""A cache directory for each engine.

What lives here: `give_own_cache_dir`. Why: extensions keep what they compile in IPython's cache,
under a name made of the code. Engines that run one ``%%cython`` cell at the same time would write
the same files at once, and now and then one of them would fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import IPython.paths


def give_own_cache_dir(engine_id: Callable[[], int]) -> None:
    """Make ``IPython.paths.get_ipython_cache_dir`` answer with a directory of this engine.

    It is named for the engine's id, so the next cluster finds what this one compiled.

    Args:
        engine_id: tells the id; asked when the directory is.
    """
    shared_dir = IPython.paths.get_ipython_cache_dir

    def get_ipython_cache_dir() -> str:
        """Return the directory where this engine may keep what it can make again."""
        own = Path(shared_dir()) / f"engine-{engine_id()}"
        own.mkdir(parents=True, exist_ok=True)
        return str(own)

    IPython.paths.get_ipython_cache_dir = get_ipython_cache_dir
