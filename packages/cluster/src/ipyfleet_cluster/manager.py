"""Finding the clusters of one or several profiles, and cleaning up after them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from traitlets import Dict
from traitlets.config import LoggingConfigurable

from ipyfleet_protocol import paths

from .cluster import Cluster
from .cluster_file import is_running, read_cluster_file
from .leftovers import remove_all_leftovers


class ClusterManager(LoggingConfigurable):
    """Clusters by key: ``<profile>:<cluster_id>``.

    Attributes:
        clusters: the clusters that are known: those found and those made with `new_cluster`.
    """

    clusters = Dict(help="The known clusters, by key.")

    def load_clusters(
        self,
        *,
        profile_dirs: Iterable[str | Path] | None = None,
        profile_dir: str | Path | None = None,
        profiles: Iterable[str] | None = None,
        profile: str | None = None,
        init_default_clusters: bool = False,
    ) -> dict[str, Cluster]:
        """Look up the running clusters of profiles; those that have stopped are dropped.

        Args:
            profile_dirs: directories of profiles to look in. Nothing given: all profiles.
            profile_dir: one more.
            profiles: names of profiles to look in.
            profile: one more.
            init_default_clusters: add a stopped default cluster for each profile that has none.

        Returns:
            All that are known now.
        """
        directories = _directories(profile_dirs, profile_dir, profiles, profile)
        # Those of this process are looked at through the object that holds their processes.
        known = {key: found for key, found in self.clusters.items() if found.is_running}
        for directory in directories:
            for path in paths.cluster_files(directory):
                try:
                    content = read_cluster_file(path)
                    if not is_running(content):
                        continue
                    cluster = Cluster.from_dict(content, cluster_file=str(path))
                except (FileNotFoundError, ValueError) as error:
                    self.log.warning("ignoring %s: %s", path, error)
                    continue
                known.setdefault(_key(cluster), cluster)
            if init_default_clusters:
                empty = Cluster(profile_dir=str(directory), cluster_id="")
                known.setdefault(_key(empty), empty)
        self.clusters = known
        return dict(known)

    def new_cluster(self, **kwargs: Any) -> tuple[str, Cluster]:
        """Make a cluster, not started; return its key and it. `kwargs` are those of `Cluster`.

        Raises:
            KeyError: there is one with this key.
        """
        cluster = Cluster(parent=self, **kwargs)
        key = _key(cluster)
        if key in self.clusters:
            raise KeyError(f"there is a cluster {key!r} already")
        self.clusters = {**self.clusters, key: cluster}
        return key, cluster

    def get_cluster(self, key: str) -> Cluster:
        """Return a known cluster.

        Raises:
            KeyError: there is none with this key.
        """
        found: Cluster = self.clusters[key]
        return found

    def remove_cluster(self, key: str) -> None:
        """Forget a cluster; does not stop it.

        Raises:
            KeyError: there is none with this key.
        """
        remaining = dict(self.clusters)
        del remaining[key]
        self.clusters = remaining


def _key(cluster: Cluster) -> str:
    name = Path(cluster.profile_dir).name
    if name.startswith("profile_"):
        return f"{name.removeprefix('profile_')}:{cluster.cluster_id}"
    return f"{cluster.profile_dir}:{cluster.cluster_id}"


def find_profile_dirs(ipython_dir: str | Path | None = None) -> list[Path]:
    """Return the directories of all profiles that there are, sorted."""
    base = paths.ipython_dir() if ipython_dir is None else Path(ipython_dir).expanduser()
    return sorted(path for path in base.absolute().glob("profile_*") if path.is_dir())


def _directories(
    profile_dirs: Iterable[str | Path] | None,
    profile_dir: str | Path | None,
    profiles: Iterable[str] | None,
    profile: str | None,
) -> list[Path]:
    given = [Path(directory) for directory in profile_dirs or ()]
    if profile_dir is not None:
        given.append(Path(profile_dir))
    names = [*(profiles or ()), *([profile] if profile is not None else [])]
    given += [paths.profile_dir(name) for name in names]
    return [directory.absolute() for directory in given] if given else find_profile_dirs()


def clean_cluster_files(
    profile_dirs: Iterable[str | Path] | None = None,
    *,
    log: logging.Logger | None = None,
    force: bool = False,
) -> list[Path]:
    """Remove the files and logs of clusters that have ended; return what was removed.

    Args:
        profile_dirs: which profiles; by default all.
        log: told of each file that is removed.
        force: remove the files of running clusters too. They go on, but nobody can connect any
            more.

    Raises:
        ValueError: a cluster is running in one of the profiles, and `force` is off. Nothing has
            been removed from that profile and those after it.
    """
    removed: list[Path] = []
    for directory in _directories(profile_dirs, None, None, None):
        removed += remove_all_leftovers(directory)
        left = _remaining(directory)
        if left and not force:
            names = ", ".join(str(path) for path in left)
            raise ValueError(
                f"clusters are running in {directory}, which use {names}; stop them with "
                "`ipcluster stop --all`, or remove their files too with --force"
            )
        logs = paths.log_dir(directory)
        for path in [*left, *logs.glob("ipcontroller*.log"), *logs.glob("ipengine*.log")]:
            path.unlink(missing_ok=True)
            removed.append(path)
    for path in removed:
        (log or logging.getLogger(__name__)).info("removed %s", path)
    return removed


def _remaining(directory: Path) -> list[Path]:
    """Cluster and connection files that are still there once stale ones are removed."""
    connection_files = [
        path
        for path in paths.security_dir(directory).glob("ipyfleet*.json")
        if path.stem.endswith(("-client", "-engine"))
    ]
    return sorted({*paths.cluster_files(directory), *connection_files})
