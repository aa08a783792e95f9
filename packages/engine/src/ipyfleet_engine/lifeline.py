"""Whether the controller is still connected.

What lives here: `Lifeline`, which follows one socket's connection. What must not: what is said
over it.

zmq reconnects by itself and for ever, and says nothing of it to the socket's reader. Its monitor
does: a connection that breaks, and one that stands again. Whoever is told of the latter says hello
again, since the controller may have given the peer up meanwhile. A controller that stays away
longer than the limit will not come back.
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class Lifeline:
    """Follows the connection of a socket that connects to one place.

    Attributes:
        monitor: readable when there is news; for a poller.
        gives_up_at: while the connection is broken: when to give up, by the monotonic clock; else
            None.
    """

    def __init__(self, socket: zmq.Socket[Any], limit_s: float) -> None:
        """Follow `socket`; its thread only.

        Args:
            socket: which.
            limit_s: how long the controller may be away; 0 for "for ever".
        """
        self._socket = socket
        self._limit_s = limit_s
        self._is_broken = False
        self.gives_up_at: float | None = None
        self.monitor: zmq.Socket[Any] = socket.get_monitor_socket(_EVENTS)

    def read(self, now: float) -> bool:
        """Take in the news; return whether a broken connection stands again."""
        is_back = False
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(self.monitor)["event"]
            if event == zmq.EVENT_DISCONNECTED:
                self._is_broken, is_back = True, False
                if self._limit_s and self.gives_up_at is None:
                    self.gives_up_at = now + self._limit_s
            elif self._is_broken:
                self._is_broken, is_back = False, True
                self.gives_up_at = None
        return is_back

    def close(self) -> None:
        """Stop following; before the socket is closed."""
        self._socket.disable_monitor()
        # That leaves the reading end open, and a context waits for it for ever.
        self.monitor.close(0)
