"""Messages between the processes of one host: Unix sockets, without zmq between.

What lives here: `framing` (bytes to messages, no I/O), `stream` (one connection) and `router` (the
end that many connect to). What must not: what messages mean.

Why not zmq's ``ipc://``: its sockets are read and written by a thread of their own, so a message
wakes three threads on its way instead of one, and each costs 25-50 µs. Four messages make a
round trip. To other hosts, where encryption and heartbeats are needed and a network's latency is
there anyway, messages travel over zmq.
"""

from .framing import Deframer, frame_prefix
from .router import LocalRouter, Unreachable
from .stream import LocalStream, connect_local, local_url, socket_path

__all__ = [
    "Deframer",
    "LocalRouter",
    "LocalStream",
    "Unreachable",
    "connect_local",
    "frame_prefix",
    "local_url",
    "socket_path",
]
