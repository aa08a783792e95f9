"""Tests of `ipyfleet_engine.cache_dir`."""

import IPython.paths
import pytest

from ipyfleet_engine.cache_dir import give_own_cache_dir


def test_engines_have_caches_of_their_own(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The directory is below IPython's, is made when asked for, and is named for the engine."""
    monkeypatch.setattr(IPython.paths, "get_ipython_cache_dir", lambda: str(tmp_path))
    engine_id = -1
    give_own_cache_dir(lambda: engine_id)
    engine_id = 3
    assert IPython.paths.get_ipython_cache_dir() == str(tmp_path / "engine-3")
    assert (tmp_path / "engine-3").is_dir()
