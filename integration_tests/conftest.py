"""Fixtures of the integration tests: real clusters, each in an IPYTHONDIR of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20


@pytest.fixture
def ipcluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run ``ipcluster start -n 4`` as a user would; yield its IPYTHONDIR, stop it with Ctrl-C."""
    import ipyfleet as ipf

    monkeypatch.setenv("IPYTHONDIR", os.fspath(tmp_path))
    log = tmp_path / "ipcluster.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [os.fspath(Path(sys.executable).with_name("ipcluster")), "start", "-n", "4"],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        with ipf.Client(timeout=START_TIMEOUT_S) as client:
            client.wait_for_engines(4, timeout=START_TIMEOUT_S)
        yield tmp_path
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
            raise
        finally:
            print(log.read_text(errors="replace"))
    assert code in (0, 130, -signal.SIGINT), f"ipcluster ended with {code}"
