"""A way to a controller through ssh: one forwarding, held by a child process.

What lives here: `Tunnel`, for clients and for engines. What must not: passwords; connecting to what
the tunnel leads to.

Theory of operation
-------------------
The system's ``ssh`` does the work, so that keys, agents, jump hosts and ``~/.ssh/config`` hold. It
listens on a unix socket in a private directory of this process: there is no port that somebody else
could use or take. From the ssh server it goes on to the controller's TCP port, encrypted end to end
as ever, or, if the controller has none, to its unix socket, which is on the ssh server then.

ssh is the child of a shell that waits for the end of a pipe which this process holds open. However
this process ends, the pipe does too, and the shell ends ssh. Both are in a session of their own, so
that a Ctrl-C in a terminal is not theirs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from .connection import ConnectionInfo

__all__ = ["Tunnel"]

_POLL_S = 0.01
_STOP_S = 2.0
_SAID_MAX_BYTES = 4096

# The reader of the pipe is ended too, or it would wait for a line after ssh has failed by itself.
# It ends ssh last, since it is ended itself when ssh has ended.
_KEEPER = """
directory=$1
shift
exec 3<&0
"$@" </dev/null 3<&- &
ssh=$!
{ read line; rm -rf "$directory"; kill $ssh; } <&3 2>/dev/null &
lease=$!
exec 3<&-
trap 'kill $ssh' TERM
wait $ssh
code=$?
kill $lease 2>/dev/null
exit $code
"""

_HINTS = (
    (
        "permission denied",
        "give a key with sshkey=, or load it into ssh-agent; passwords are not asked for",
    ),
    ("host key verification failed", "log in once with `ssh` by hand, to accept the host's key"),
    ("could not resolve hostname", "is the server's name right?"),
    ("connection refused", "does an ssh server run there, on that port?"),
    ("administratively prohibited", "the ssh server does not allow forwarding"),
)


class Tunnel:
    """A forwarding through an ssh server to a controller.

    Attributes:
        server: as it was given.
        url: where the controller can be reached while the tunnel stands.
        encrypted: it leads to the controller's TCP port, whose keys are to be used.
    """

    def __init__(
        self, info: ConnectionInfo, server: str, *, key: str = "", args: Sequence[str] = ()
    ) -> None:
        """Make a tunnel; nothing is started.

        Args:
            info: the controller's connection file.
            server: ``host``, ``user@host`` or ``user@host:port``; or a name in the ssh config.
            key: path of a private key; empty for those that ssh finds by itself.
            args: more arguments for ssh, such as ``["-J", "jump.host"]``.

        Raises:
            ConnectionError: there is no ssh, or `server` cannot be one.
        """
        ssh = shutil.which("ssh")
        if ssh is None:
            raise ConnectionError(
                f"a tunnel through {server} needs `ssh`, which is not installed here"
            )
        if not server or server.startswith("-") or any(c.isspace() for c in server):
            raise ConnectionError(f"{server!r} is no ssh server: give user@host or user@host:port")
        self.server = server
        tcp = next((url for url in info.urls if url.startswith("tcp://")), "")
        self.encrypted = bool(tcp)
        target = (tcp or info.urls[0]).partition("://")[2]
        host, port = _split_port(server)
        # Short: a unix socket's path must stay below 100 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="ipyfleet-ssh-"))
        self._socket = self._directory / "s"
        self._said = self._directory / "said"
        # What is spoken here is what is spoken at the other end: zmq, or its stream of messages.
        self.url = f"{'ipc' if tcp else 'unix'}://{self._socket}"
        self._command = [
            *("sh", "-c", _KEEPER, "ipyfleet-tunnel", str(self._directory), ssh, "-N", "-T"),
            *("-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
            *("-o", "StreamLocalBindUnlink=yes", "-o", "ControlPath=none"),
            *("-o", "ServerAliveInterval=15", "-o", "LogLevel=INFO"),
            *(("-i", os.path.expanduser(key)) if key else ()),
            *(("-p", port) if port else ()),
            *args,
            *("-L", f"{self._socket}:{target}", "--", host),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer = weakref.finalize(self, _end, None, self._directory, os.getpid())

    def start(self, timeout_s: float) -> None:
        """Start ssh and wait until it forwards.

        Raises:
            ConnectionError: ssh has failed; the message has what it said and what to do.
            TimeoutError: it needs longer. Nothing is left behind, here as above.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._spawn()
            while not self._socket.exists():
                assert self._process is not None
                if self._process.poll() is not None:
                    raise ConnectionError(self._why())
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"ssh did not log in to {self.server} within {timeout_s:g} s; "
                        f"{self.last_words or 'it has said nothing'}"
                    )
                time.sleep(_POLL_S)
        except BaseException:
            self.close()
            raise

    def revive(self) -> None:
        """Start ssh again if it has ended; does not wait until it forwards."""
        if self._finalizer.alive and (self._process is None or self._process.poll() is not None):
            self._spawn()

    @property
    def is_alive(self) -> bool:
        """Whether ssh runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def last_words(self) -> str:
        """What ssh has said last, in one line."""
        try:
            with self._said.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _SAID_MAX_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "; ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())

    def close(self) -> None:
        """End ssh and remove what it used. Idempotent."""
        self._finalizer()

    def _spawn(self) -> None:
        self._finalizer.detach()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._process, self._directory, os.getpid())

    def _why(self) -> str:
        said = self.last_words
        hint = next((hint for sign, hint in _HINTS if sign in said.lower()), "")
        why = f"ssh cannot make a tunnel through {self.server}: {said or 'it gave no reason'}"
        return f"{why} ({hint})" if hint else why


def _end(process: subprocess.Popen[bytes] | None, directory: Path, owner_pid: int) -> None:
    if os.getpid() != owner_pid:
        return  # a fork of the owner: neither is its own
    if process is not None:
        assert process.stdin is not None
        # Its end is what the keeper waits for.
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def _split_port(server: str) -> tuple[str, str]:
    host, colon, port = server.rpartition(":")
    if colon and port.isdigit() and "]" not in port and host.count(":") == 0:
        return host, port
    return server, ""
