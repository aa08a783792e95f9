"""Which way a client takes to its controller: directly, or through an ssh server.

What lives here: `choose_tunnel`. What must not: the tunnel itself (`ipyfleet_protocol.tunnel`),
sockets.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipyfleet_protocol.connection import ConnectionInfo, host_id

if TYPE_CHECKING:
    from ipyfleet_protocol.tunnel import Tunnel

_LOOPBACK = ("tcp://127.", "tcp://localhost:", "tcp://[::1]")


def choose_tunnel(
    info: ConnectionInfo,
    sshserver: str | None = None,
    sshkey: str | os.PathLike[str] | None = None,
    password: str | None = None,
    paramiko: bool | None = None,
    ssh_args: Sequence[str] = (),
) -> Tunnel | None:
    """Return the tunnel, not started, that leads to a controller; None for the direct way.

    The connection file may name an ssh server; it is for those who are on other hosts.

    Raises:
        NotImplementedError: a password was given, or paramiko asked for.
        TypeError: `ssh_args` is a string.
        ConnectionError: there is no ssh, or the server cannot be one.
    """
    if password is not None:
        raise NotImplementedError(
            "tunnels take no password=: give a key (sshkey=), load it into ssh-agent, or set up "
            "the server in ~/.ssh/config"
        )
    if paramiko:
        raise NotImplementedError("tunnels are made by the system's ssh; leave paramiko= out")
    if isinstance(ssh_args, str):
        raise TypeError("ssh_args is a list of arguments, such as ['-J', 'jump.host'], not a str")
    here = info.host == host_id()
    server = sshserver or ("" if here else info.ssh)
    if server:
        from ipyfleet_protocol.tunnel import Tunnel

        key = os.fspath(sshkey or "")
        return Tunnel(info, server, key=key, args=ssh_args)
    urls = [url for url in info.urls if url.startswith("tcp://")]
    is_elsewhere = not here and info.hostname != socket.gethostname()
    if is_elsewhere and urls and all(url.startswith(_LOOPBACK) for url in urls):
        warnings.warn(
            f"the controller listens at {urls[0]} of {info.hostname}, which is not this host; to "
            f"reach it through ssh, give Client(sshserver='you@{info.hostname}')",
            RuntimeWarning,
            stacklevel=3,
        )
    return None
