"""Bad input gives an error that says what happened and what to do; the client stays usable."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipyfleet as ipf

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def rc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipf.Client]:
    """A client of two engines, shared by the tests: no bad input may harm it."""
    profile = tmp_path_factory.mktemp("profile")
    with ipf.Cluster(n=2, profile_dir=os.fspath(profile)) as client:
        yield client


@pytest.fixture(autouse=True)
def client_stays_usable(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that uses the shared client, the client still works."""
    yield
    if "rc" in request.fixturenames:
        client = request.getfixturevalue("rc")
        assert client[:].apply_async(lambda: 1).get(TIMEOUT_S) == [1, 1]


def test_missing_connection_file(tmp_path: Path) -> None:
    """No cluster under this name: the error names the file and the command that starts one."""
    with pytest.raises(OSError, match=r"ipcluster start") as caught:
        ipf.Client(profile_dir=os.fspath(tmp_path), timeout=0.2)
    assert "ipyfleet-client.json" in str(caught.value)


def test_unreadable_connection_file(tmp_path: Path) -> None:
    """A connection file that is not JSON is called so, at once."""
    file = tmp_path / "broken.json"
    file.write_text("{not json")
    file.chmod(0o600)
    with pytest.raises(ipf.error.ConnectionFileError, match=r"broken\.json"):
        ipf.Client(os.fspath(file))


def test_connection_file_of_another_version(rc: ipf.Client, tmp_path: Path) -> None:
    """A file of a release that speaks another protocol is refused with both versions named."""
    content = _connection_file_of(rc)
    content["protocol"] = 999
    file = tmp_path / "other.json"
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    with pytest.raises(ipf.error.ConnectionFileVersion, match="999"):
        ipf.Client(os.fspath(file))


def test_stale_connection_file(tmp_path: Path) -> None:
    """A file whose controller was killed is recognised at once, not after a timeout."""
    cluster = ipf.Cluster(n=1, profile_dir=os.fspath(tmp_path))
    with cluster as client:
        content = _connection_file_of(client)
    file = tmp_path / "stale.json"
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    with pytest.raises(ipf.error.ConnectionFileStale, match=r"ipcluster start"):
        ipf.Client(os.fspath(file), timeout=20)


def test_url_instead_of_connection_file() -> None:
    """A bare address is not enough, and the error says what is."""
    with pytest.raises(ValueError, match="connection file"):
        ipf.Client("tcp://127.0.0.1:10101")


def test_port_in_use(tmp_path: Path) -> None:
    """A controller whose port is taken says so in one line and exits with code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [
                *(sys.executable, "-m", "ipyfleet_controller"),
                *("--ip=127.0.0.1", f"--port={port}", f"--profile-dir={tmp_path}"),
            ],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert result.returncode == 1
    assert str(port) in result.stderr and "in use" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*client.json")), "a connection file was left behind"


def test_unpicklable_argument(rc: ipf.Client) -> None:
    """An argument that cannot be sent fails in the call, naming its type."""
    lock = threading.Lock()
    for view in (rc[0], rc[:], rc.load_balanced_view()):
        with pytest.raises(TypeError, match="lock"):
            view.apply_async(print, {"deep": [lock]})
    with pytest.raises(TypeError, match="lock"):
        rc.load_balanced_view().map_async(repr, [1, 2, lock])
    with pytest.raises(TypeError, match="lock"):
        rc[:].push({"name": lock})


def test_unpicklable_result(rc: ipf.Client) -> None:
    """A result that cannot be sent is an error of its task alone."""

    def make_lock() -> object:
        import threading

        return threading.Lock()

    with pytest.raises(ipf.error.RemoteError, match="lock"):
        rc[0].apply_async(make_lock).get(TIMEOUT_S)
    with pytest.raises(ipf.error.CompositeError, match="lock"):
        rc[:].apply_async(make_lock).get(TIMEOUT_S)


def test_wrong_targets(rc: ipf.Client) -> None:
    """Indexing by an engine that is not there, or by a word, says which engines there are."""
    with pytest.raises(IndexError, match="99"):
        rc[99]
    with pytest.raises(TypeError, match="str"):
        rc["x"]  # type: ignore[index]
    with pytest.raises(IndexError):
        rc.direct_view([0, 99]).apply_async(os.getpid)
    with pytest.raises(TypeError, match="callable"):
        rc[0].apply_async("not a function")  # type: ignore[arg-type]


def test_cluster_without_engines(tmp_path: Path) -> None:
    """Work for no engines is refused at once, with a hint; the client serves when engines come."""
    cluster = ipf.Cluster(n=0, profile_dir=os.fspath(tmp_path))
    cluster.start_controller_sync()
    try:
        with cluster.connect_client_sync() as client:
            assert client.ids == []
            view = client.load_balanced_view()
            with pytest.raises(ipf.error.NoEnginesRegistered, match=r"(?i)engine"):
                view.apply_async(os.getpid).get(TIMEOUT_S)
            with pytest.raises(ipf.error.NoEnginesRegistered, match=r"(?i)engine"):
                client[:].apply_async(os.getpid).get(TIMEOUT_S)
            cluster.start_engines_sync(1)
            client.wait_for_engines(1, timeout=TIMEOUT_S)
            assert view.apply_async(lambda: 2).get(TIMEOUT_S) == 2
    finally:
        cluster.stop_cluster_sync()


def _connection_file_of(client: ipf.Client) -> dict[str, object]:
    """Return the content of the file that a client was made from."""
    assert client.cluster is not None
    directory = Path(client.cluster.profile_dir) / "security"
    (file,) = directory.glob("ipyfleet*-client.json")
    content: dict[str, object] = json.loads(file.read_text())
    return content
