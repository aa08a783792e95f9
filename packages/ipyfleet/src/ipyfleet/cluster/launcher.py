"""Launchers under the name that scripts import them by: ``ipyfleet.cluster.launcher``."""

from ipyfleet_cluster.launchers import (
    ControllerLauncher,
    EngineLauncher,
    Launcher,
    LauncherState,
    abbreviate_launcher_class,
    all_launchers,
    find_launcher_class,
)

__all__ = [
    "ControllerLauncher",
    "EngineLauncher",
    "Launcher",
    "LauncherState",
    "abbreviate_launcher_class",
    "all_launchers",
    "find_launcher_class",
]
