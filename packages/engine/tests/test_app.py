"""The command line of `ipengine`."""

from __future__ import annotations

from pathlib import Path

from ipyfleet_engine.app import IPEngineApp
from ipyfleet_protocol import paths


def test_options_are_read_from_the_command_line(tmp_path: Path) -> None:
    """What is set often has a flag."""
    app = IPEngineApp()
    app.initialize(
        ["-n", "3", f"--profile-dir={tmp_path}", "--cluster-id=big", "--no-fork", "--timeout=5"]
    )
    assert (app.n, app.cluster_id, app.fork, app.timeout) == (3, "big", False, 5.0)
    assert app.file_path == paths.connection_file(tmp_path, "big", "engine")


def test_options_are_read_from_the_profile(tmp_path: Path) -> None:
    """`ipengine_config.py` counts, and the command line counts more."""
    (tmp_path / "ipengine_config.py").write_text(
        "c.IPEngineApp.n = 5\nc.IPEngineApp.timeout = 1.5\n"
    )
    app = IPEngineApp()
    app.initialize([f"--profile-dir={tmp_path}", "-n=2"])
    assert (app.n, app.timeout) == (2, 1.5)


def test_a_connection_file_can_be_named(tmp_path: Path) -> None:
    """It wins over the profile's."""
    app = IPEngineApp()
    app.initialize([f"--file={tmp_path}/x.json", f"--profile-dir={tmp_path}"])
    assert app.file_path == tmp_path / "x.json"
