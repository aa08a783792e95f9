"""A network between two processes that a test can cut, freeze and mend.

What lives here: `TcpProxy`, which forwards the connections to one port, in a process of its own, so
that it can be killed (the connections are reset, new ones refused) and stopped (they stand, and
nothing passes). What must not: anything that knows what is forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from types import TracebackType

from ipyfleet_testing.waiting import wait_until

_CHUNK_BYTES = 256 * 1024


class TcpProxy:
    """Forwards connections to a port of this host. A context manager: at its end it is gone.

    Attributes:
        port: where it listens, on 127.0.0.1; the same after a restart.
    """

    def __init__(self, target_port: int) -> None:
        """Choose a port; nothing is forwarded before `start`.

        Args:
            target_port: where to, on 127.0.0.1.
        """
        self._target_port = target_port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Forward from now on.

        Raises:
            TimeoutError: it does not listen.
        """
        command = [sys.executable, "-m", __name__, str(self.port), str(self._target_port)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(self._is_listening, message="the proxy to listen")

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Cut every connection and refuse new ones, until `start`. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def freeze(self) -> None:
        """Let nothing pass, without ending anything, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let everything pass again that was held up."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> TcpProxy:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _serve(port: int, target_port: int) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
