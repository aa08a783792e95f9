"""Clusters of stand-in processes: real processes, without controller and engine packages."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from traitlets.config import Config

from ipyfleet_cluster import Cluster

HERE = Path(__file__).parent


def stand_ins() -> Config:
    """Return the configuration that starts stand-ins instead of controllers and engines."""
    config = Config()
    config.LocalControllerLauncher.controller_cmd = [
        sys.executable,
        str(HERE / "fake_controller.py"),
    ]
    config.LocalEngineLauncher.engine_cmd = [sys.executable, str(HERE / "fake_engines.py")]
    return config


@pytest.fixture
def stand_in_config() -> Config:
    """Give the configuration that starts stand-ins."""
    return stand_ins()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make clusters in one profile; those that still run at the end are stopped."""
    made: list[Cluster] = []

    def make(**kwargs: object) -> Cluster:
        kwargs.setdefault("config", stand_ins())
        made.append(Cluster(profile_dir=str(tmp_path / "profile"), **kwargs))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop_cluster_sync()
