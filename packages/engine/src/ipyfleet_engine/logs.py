"""Log files of engines, kept below a size.

What lives here: `LogKeeper`. What must not: who writes them, and what.

An engine's log is what its process writes to file descriptor 2, and C code or a crash writes there
too: nobody in the process can switch to another file. So the agent copies a file that has grown too
large and empties it; its writers append, and so go on at the beginning. What is written between
copy and emptying is lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

CHECK_S = 5.0
"""How often the agent should look."""


class LogKeeper:
    """Keeps log files below a size: ``x.log`` and one older part, ``x.log.1``, of each."""

    def __init__(self, max_bytes: int) -> None:
        """Keep each file below `max_bytes`, as seen every `CHECK_S`; 0 for no bound."""
        self.max_bytes = max_bytes

    def rotate(self, paths: Iterable[Path]) -> list[Path]:
        """Look at the files; return those that were too large."""
        if not self.max_bytes:
            return []
        return [path for path in paths if self._rotate(path)]

    def _rotate(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if size <= self.max_bytes:
                return False
            older = path.with_name(f"{path.name}.1")
            part = path.with_name(f"{path.name}.part")
            with path.open("rb") as source, part.open("wb") as target:
                os.fchmod(target.fileno(), 0o600)
                # The end says more than the beginning, and the copy has a bound too.
                source.seek(max(0, size - self.max_bytes))
                target.write(source.read(self.max_bytes))
            part.replace(older)
            os.truncate(path, 0)
            return True
        return False
