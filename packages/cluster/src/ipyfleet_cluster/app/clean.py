"""``ipcluster clean``."""

from __future__ import annotations

from typing import Any

from traitlets import Bool

from ..manager import clean_cluster_files
from .base import BASE_FLAGS, ClusterCommand

_FLAGS: dict[str, Any] = {
    **BASE_FLAGS,
    "all": ({"IPClusterClean": {"all": True}}, "In every profile."),
    "force": ({"IPClusterClean": {"force": True}}, "Files of running clusters too."),
}


class IPClusterClean(ClusterCommand):
    """Remove what clusters that have ended left behind."""

    name = "ipcluster-clean"
    description = """Remove connection files, cluster files and logs of clusters that have ended."""
    flags = _FLAGS
    all = Bool(False, help="Clean every profile.").tag(config=True)
    force = Bool(False, help="Remove the files of running clusters too.").tag(config=True)

    def start(self) -> None:
        """Called by traitlets: clean, and exit."""
        directories = None if self.all else [self.directory]
        try:
            removed = clean_cluster_files(directories, log=self.log, force=self.force)
        except ValueError as error:
            self.complain(str(error))
            self.exit(1)
        else:
            self.say(f"Removed {len(removed)} files.")
