"""What the subcommands of ``ipcluster`` share: flags, the profile, logging."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

from traitlets import Bool, Unicode, default
from traitlets.config import Application, Config

from ipyfleet_protocol import paths
from ipyfleet_protocol.logs import log_handler, log_path

from .. import __version__
from ..profile_config import load_profile_config

ALREADY_RUNNING = 10
"""Exit code of ``ipcluster start`` when the cluster is running already."""

NO_CLUSTER = 11
"""Exit code of ``ipcluster stop`` when there is no such cluster."""

BASE_ALIASES: dict[str, Any] = {
    "profile": "ClusterCommand.profile",
    "profile-dir": "ClusterCommand.profile_dir",
    "ipython-dir": "ClusterCommand.ipython_dir",
    "cluster-id": "ClusterCommand.cluster_id",
    "work-dir": "ClusterCommand.work_dir",
    "log-level": "Application.log_level",
}
BASE_FLAGS: dict[str, Any] = {
    "debug": ({"Application": {"log_level": "DEBUG"}}, "Log everything."),
    "log-to-file": (
        {"ClusterCommand": {"log_to_file": True}},
        "Log to a file in the profile's log directory, too.",
    ),
    "quiet": ({"Application": {"log_level": "CRITICAL"}}, "Log only what is fatal."),
}


class ClusterCommand(Application):
    """Base of the subcommands."""

    version = __version__
    aliases = BASE_ALIASES
    flags = BASE_FLAGS
    profile = Unicode("", help="The name of the IPython profile.").tag(config=True)
    profile_dir = Unicode("", help="The profile directory, instead of a name.").tag(config=True)
    ipython_dir = Unicode("", help="Where the profiles are.").tag(config=True)
    cluster_id = Unicode("", help="The cluster's name in its profile; '' is the default.").tag(
        config=True
    )
    work_dir = Unicode("", help="The directory to work in.").tag(config=True)
    log_to_file = Bool(False, help="Log to a file in the profile's log directory, too.").tag(
        config=True
    )

    @default("log_level")
    def _default_log_level(self) -> str:
        return "INFO"

    @default("log_format")
    def _default_log_format(self) -> str:
        return "%(asctime)s.%(msecs)03d [%(name)s] %(message)s"

    def initialize(self, argv: list[str] | None = None) -> None:
        """Called by traitlets: read the command line, then the profile's config below it."""
        self.parse_command_line(argv)
        if self.ipython_dir:
            # Also for the processes to come.
            os.environ["IPYTHONDIR"] = str(Path(self.ipython_dir).expanduser().absolute())
        command_line = Config(copy.deepcopy(self.cli_config))
        self.update_config(load_profile_config(self.directory))
        # What was said on the command line wins over the files.
        self.update_config(command_line)
        if self.log_to_file:
            path = log_path(paths.log_dir(self.directory), "ipcluster", self.cluster_id)
            self.log.addHandler(log_handler("ipcluster", path))
        if self.work_dir:
            os.chdir(self.work_dir)

    @property
    def directory(self) -> Path:
        """The profile's directory."""
        return paths.profile_dir(self.profile or None, self.profile_dir or None)

    def say(self, text: str) -> None:
        """Tell the user something that is not a log message."""
        print(text, flush=True)

    def complain(self, text: str) -> None:
        """Tell the user what went wrong."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)
