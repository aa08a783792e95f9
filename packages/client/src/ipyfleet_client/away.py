"""How long a client waits for a controller that is away.

What lives here: `Away`: since when, how long it may take, what to say when it takes longer. What
must not: timers, sockets.
"""

from __future__ import annotations

from pathlib import Path

from ipyfleet_protocol.connection import ConnectionInfo, check_alive
from ipyfleet_protocol.errors import ConnectionFileStale
from ipyfleet_protocol.hosts import host_id
from ipyfleet_protocol.local import socket_path

TCP_PATIENCE_S = 60.0
"""A network that is cut is waited for at least so long."""

LOCAL_PATIENCE_S = 5.0
"""On one host a connection breaks because the controller dies, which may be seen a little later."""

DYING_S = 0.5
"""Within this a process whose sockets are gone is gone, too: then that can be said."""

LOOK_AGAIN_S = 0.5
"""Whoever would start the controller again may stop the cluster instead; how often that is seen."""


class Away:
    """The absence of a controller.

    Attributes:
        since: when the connection was lost; None while there is one.
        died: the controller's process is known to have ended.
        over_tcp: it is reached over a network.
        was_stopped: its owner has removed what a controller that is started again would need.
    """

    def __init__(self, info: ConnectionInfo, limit_s: float | None = None) -> None:
        """Judge the controller of a connection file.

        Args:
            info: the file's content.
            limit_s: how long to wait, instead of what the file and the network suggest.
        """
        self.since: float | None = None
        self.died = False
        self.over_tcp = False
        self.was_stopped = False
        self._info = info
        self._limit_s = limit_s
        self._restarted = False
        self._folder = _find_folder(info)

    def leave(self, now: float) -> float:
        """There is no connection; return how many seconds it may take until there is one."""
        if self.since is None:
            self.since = now
        if not self.died and not self._restarted:
            try:
                check_alive(self._info)
            except ConnectionFileStale:
                self.died = True
        self.was_stopped = self._is_stopped()
        return 0.0 if self.was_stopped else self._limit() - (now - self.since)

    def _is_stopped(self) -> bool:
        return self._folder is not None and not self._folder.exists()

    def _limit(self) -> float:
        if self._limit_s is not None:
            is_dying = not self.died and not self.over_tcp
            return max(self._limit_s, DYING_S) if is_dying else self._limit_s
        if self.over_tcp:
            return max(self._info.recover_s, TCP_PATIENCE_S)
        return self._info.recover_s if self.died else max(self._info.recover_s, LOCAL_PATIENCE_S)

    def come_back(self) -> bool:
        """There is a connection; return whether there was none before."""
        was_away, self.since = self.since is not None, None
        if self.died:
            # It runs again, as a process that the connection file did not name.
            self.died = False
            self._restarted = True
        return was_away

    def reason(self, now: float) -> str:
        """Say what has happened."""
        pid = self._info.pid
        if self.was_stopped:
            return f"the controller (process {pid}) has ended, and its cluster was stopped"
        if self.died:
            text = f"the controller (process {pid}) has died"
        else:
            text = f"the connection to the controller on {self._info.hostname} is lost"
        waited = 0.0 if self.since is None else now - self.since
        return f"{text} and did not come back within {waited:.0f} s" if waited >= 1 else text


def _find_folder(info: ConnectionInfo) -> Path | None:
    """Return the directory of the controller's socket, None if it cannot be seen from here."""
    local = next(filter(None, map(socket_path, info.urls)), None)
    if local is None or info.host != host_id():
        return None
    folder = Path(local).parent
    return folder if folder.is_dir() else None
