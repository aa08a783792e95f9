"""``ipcluster`` itself: finds the subcommand and hands over to it."""

from __future__ import annotations

import sys
from typing import Any

from traitlets.config import Application

from .. import __version__
from .clean import IPClusterClean
from .engines import IPClusterEngines
from .listing import IPClusterList
from .start import IPClusterStart
from .stop import IPClusterStop

_FLAGS: dict[str, Any] = {}


_ALIASES: dict[str, Any] = {}


_SUBCOMMANDS: dict[str, Any] = {
    "start": (IPClusterStart, "Start a controller and engines."),
    "engines": (IPClusterEngines, "Start engines for a cluster that is running already."),
    "stop": (IPClusterStop, "Stop a running cluster."),
    "list": (IPClusterList, "List the running clusters."),
    "clean": (IPClusterClean, "Remove files and logs of clusters that have ended."),
}


class IPCluster(Application):
    """Start, stop and list clusters."""

    name = "ipcluster"
    version = __version__
    description = """Start, stop and list clusters of ipyfleet: a controller and engines.

    `ipcluster start -n 4` starts a cluster in the default profile; in Python, `ipf.Client()`
    connects to it.
    """
    examples = """
ipcluster start -n 4              # until Ctrl-C
ipcluster start -n 4 --daemonize  # returns when the engines are ready
ipcluster list
ipcluster stop
    """
    flags = _FLAGS
    aliases = _ALIASES
    subcommands = _SUBCOMMANDS

    def start(self) -> None:
        """Called by traitlets once the command line is read: run the subcommand."""
        if self.subapp is None:
            self.print_help()
            self.exit(1)
        super().start()


def main(argv: list[str] | None = None) -> None:
    """Run ``ipcluster`` and exit with its code."""
    app = IPCluster.instance()
    app.initialize(sys.argv[1:] if argv is None else argv)
    app.start()
    sys.exit(0)
