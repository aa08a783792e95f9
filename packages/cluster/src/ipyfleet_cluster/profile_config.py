"""Reading the profile's ``ipcluster_config.py`` and ``ipcluster_config.json``."""

from __future__ import annotations

from pathlib import Path

from traitlets.config import Config

_NAME = "ipcluster_config"


def load_profile_config(profile_dir: Path) -> Config:
    """Return what a profile's ipcluster config files say; empty where there are none.

    The JSON file wins over the Python file, as everywhere in IPython.
    """
    config = Config()
    directory = str(profile_dir)
    if (profile_dir / f"{_NAME}.py").exists():
        from traitlets.config.loader import PyFileConfigLoader

        config.merge(PyFileConfigLoader(f"{_NAME}.py", path=directory).load_config())
    if (profile_dir / f"{_NAME}.json").exists():
        from traitlets.config.loader import JSONFileConfigLoader

        config.merge(JSONFileConfigLoader(f"{_NAME}.json", path=directory).load_config())
    return config
