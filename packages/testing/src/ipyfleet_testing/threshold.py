"""A controller's doors without the controller, and peers in front of them.

What lives here: `Threshold`. What must not: what is behind doors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ipyfleet_controller.curve import KeyRing
from ipyfleet_controller.doors import Doors
from ipyfleet_controller.tcp import TcpDoor
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import new_connection_info, new_instance
from ipyfleet_protocol.local import local_url

from .raw import RawChannel, RawChannels

PATIENCE_S = 30.0

KINDS = ("local", "tcp")


class Threshold:
    """Both doors, and peers that come through one of them.

    Attributes:
        doors: open ones.
        kind: through which peers come.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.doors = Doors(directory / "s")
        url, info = local_url(directory / "s"), None
        if kind == "tcp":
            keys = KeyRing.make()
            tcp = TcpDoor("127.0.0.1", 0, keys, 0.0)
            self.doors.add_tcp(tcp)
            url = f"tcp://127.0.0.1:{tcp.port}"
            info = new_connection_info(
                instance=new_instance(),
                role="client",
                urls=[url],
                server_public=keys.server.public.decode(),
                public=keys.client.public.decode(),
                secret=keys.client.secret.decode(),
            )
        self._channels = RawChannels(url, info)
        self._opened: list[RawChannel] = []

    def connect(self, identity: bytes) -> RawChannel:
        """Return a client's connection, of which the doors know."""
        self._opened.append(self._channels.open(identity))
        self._opened[-1].send([b"here"])
        self.wait_for([identity, b"here"])
        return self._opened[-1]

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Let the doors work until a condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition does not hold"
            self.doors.wait(0.01)

    def take(self) -> list[Frame]:
        """Return the next message, or the news of a connection's end."""
        self.wait_until(lambda: self.doors.inbox)
        return self.doors.inbox.popleft()

    def wait_for(self, message: list[bytes]) -> None:
        """Take the next message, which has to be this one."""
        assert self.take() == message

    def close(self) -> None:
        """Close all."""
        for channel in self._opened:
            channel.close()
        self._channels.close()
        self.doors.close(0.0)


__all__ = ["KINDS", "PATIENCE_S", "Threshold"]
