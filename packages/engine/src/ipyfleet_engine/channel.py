"""The engine's TASK socket, used by the main thread only.

What lives here: `TaskChannel`, which receives until nothing is left and sends. What must not:
what the messages mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import zmq

from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import AnyMessage, Message

log = logging.getLogger("ipyfleet.engine")

Handler = Callable[[AnyMessage, Sequence[Frame]], None]


def receive_all(socket: zmq.Socket[bytes], handle: Handler) -> bool:
    """Hand every message that is there to `handle`; return whether there was one.

    A zmq file descriptor tells of changes, not of a state: whoever waits for it has to read
    until nothing is left, and again after sending.
    """
    received = False
    while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        received = True
        try:
            message = decode(frames[0].buffer)
            handle(message, [frame.buffer for frame in frames[1:]])
        except ProtocolError as error:
            log.debug("dropped a message: %s", error)
    return received


def send(socket: zmq.Socket[bytes], message: Message, frames: Sequence[Frame] = ()) -> None:
    """Send a message.

    Raises:
        zmq.Again: if the socket's queue is full (OUTPUT only; the others are bounded by what
            the controller asks for).
    """
    header = encode(message)
    if frames:
        socket.send_multipart([header, *frames], zmq.NOBLOCK, copy=False)
    else:
        socket.send(header, zmq.NOBLOCK)


class TaskChannel:
    """See the module docstring."""

    def __init__(self, socket: zmq.Socket[bytes], handle: Handler) -> None:
        self._socket = socket
        self._handle = handle

    @property
    def fd(self) -> int:
        """The file descriptor whose changes say that something may be there."""
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self) -> bool:
        """Hand every message that is there to the handler; return whether there was one."""
        return receive_all(self._socket, self._handle)

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message; afterwards `receive` has to be called before waiting."""
        send(self._socket, message, frames)

    def close(self) -> None:
        """Close the socket; what is queued has a moment to leave."""
        self._socket.close()
