"""A PostgreSQL server for tests: an instance of its own, gone afterwards.

What lives here: `PostgresServer`. It is run from the programs of Debian's packages (``make
services`` installs them), listens at a Unix socket in its own directory only, and runs as an
unprivileged user, since PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

USERS = ("postgres", "nobody")
"""Whom the server runs as where the tests run as root; the first that there is."""

PATIENCE_S = 30.0
"""How long the server may take to start or to stop."""


def find_programs() -> Path | None:
    """Return the directory with ``initdb`` and ``postgres``, the newest; None if there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    # Debian has them outside of PATH, a directory for each version.
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    ordered = sorted(versions, key=lambda path: float(path.parts[-3]))
    return ordered[-1].parent if ordered else None


class PostgresServer:
    """A running server.

    Attributes:
        directory: all that it has, its socket included.
        url: how to connect to its one database.
    """

    def __init__(self, programs: Path) -> None:
        """Choose a directory; nothing runs before `start`."""
        self._programs = programs
        self._user = next(filter(_exists, USERS)) if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="ipyfleet-pg-"))
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        self.url = f"postgresql://ipyfleet@/postgres?host={self.directory}"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_initialized = False

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: if it does not start; the text is what it wrote.
        """
        data = self.directory / "data"
        if not self._is_initialized:
            options = ["--auth=trust", "--username=ipyfleet", "--encoding=UTF8", "--no-sync"]
            self._run([self._programs / "initdb", "--pgdata", data, *options])
            self._is_initialized = True
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
        }
        arguments = [f"-c{name}={value}" for name, value in settings.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, *arguments],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.directory,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError((self.directory / "log").read_text())
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it; connections are closed, data stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(PATIENCE_S)
            self._process = None

    def close(self) -> None:
        """Stop it and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory)

    def _is_ready(self) -> bool:
        asked = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self.directory)]
        return subprocess.run(asked, check=False, timeout=PATIENCE_S).returncode == 0

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            command, user=self._user, cwd=self.directory, capture_output=True, timeout=PATIENCE_S,
            text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


__all__ = ["PostgresServer", "find_programs"]
