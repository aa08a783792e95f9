"""The surroundings of a test run: directories of its own for whatever clusters and IPython write.

Nothing that a test starts may touch the profile of whoever runs the tests, and two runs at a time
must not see each other's files.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

TOKEN_NAME = "IPYFLEET_TEST_RUN"
"""The environment variable that marks every process started by a test run."""

_SHM = Path("/dev/shm")


class Surroundings:
    """Directories and environment variables of one test run. Use: `enter`, then `leave`.

    Attributes:
        token: the value of `TOKEN_NAME`.
        root: the directory that holds the others.
        runtime: what the run sees as ``$XDG_RUNTIME_DIR``: sockets of its clusters.
        shm: what it sees as ``$IPYFLEET_SHM_DIR``: their shared memory.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        # Paths of sockets must stay below 100 bytes, so this is not below pytest's own directories.
        base = tempfile.gettempdir()
        self.root = Path(base if len(base) < 30 else "/tmp") / f"ipyft-{self.token[:8]}"
        self.runtime = self.root / "run"
        self.shm = (_SHM if _SHM.is_dir() else self.root) / f"ipyft-{self.token[:8]}"
        self._previous: dict[str, str | None] = {}

    def enter(self) -> None:
        """Make the directories and set the environment variables."""
        variables = {
            TOKEN_NAME: self.token,
            "IPYTHONDIR": str(self.root / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.root / "jupyter"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "IPYFLEET_SHM_DIR": str(self.shm),
        }
        for folder in (self.root, self.runtime, self.shm):
            folder.mkdir(mode=0o700)
        for name, value in variables.items():
            self._previous[name] = os.environ.get(name)
            os.environ[name] = value

    def leave(self) -> None:
        """Set the environment variables back and remove the directories with what is in them."""
        for name, value in self._previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._previous.clear()
        for folder in (self.root, self.shm):
            shutil.rmtree(folder, ignore_errors=sys.platform == "win32")
