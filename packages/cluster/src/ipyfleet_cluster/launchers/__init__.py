"""Launchers: how the processes of a cluster are started, one file per way of starting them.

`base` is the interface, `local` starts processes on this host, `registry` finds a launcher by name.
"""

from .base import ControllerLauncher, EngineLauncher, Launcher, LauncherState
from .registry import abbreviate_launcher_class, all_launchers, find_launcher_class

__all__ = [
    "ControllerLauncher",
    "EngineLauncher",
    "Launcher",
    "LauncherState",
    "abbreviate_launcher_class",
    "all_launchers",
    "find_launcher_class",
]
