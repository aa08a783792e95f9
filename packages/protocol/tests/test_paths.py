"""Names of files and directories."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipyfleet_protocol import paths

INSTANCE = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, and none of the user's settings."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


def test_ipython_dir(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython's directory is in the home directory unless the environment says otherwise."""
    assert paths.ipython_dir() == home / ".ipython"
    monkeypatch.setenv("IPYTHONDIR", "~/elsewhere")
    assert paths.ipython_dir() == home / "elsewhere"


def test_profile_dir(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile is found by name, or by path, which wins; relative paths become absolute."""
    assert paths.profile_dir() == home / ".ipython" / "profile_default"
    assert paths.profile_dir("mpi", ipython_dir="/ip") == Path("/ip/profile_mpi")
    assert paths.profile_dir("mpi", profile_dir="~/p") == home / "p"
    monkeypatch.chdir(home)
    assert paths.profile_dir(profile_dir="p") == home / "p"


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "x\0", "n" * 300])
def test_bad_names(name: str) -> None:
    """A profile or cluster id that cannot be part of a file name is refused."""
    with pytest.raises(ValueError, match="not a profile"):
        paths.profile_dir(name)
    if name:
        with pytest.raises(ValueError, match="not a cluster id"):
            paths.connection_file(Path("/p"), name, "client")


def test_files_of_a_profile() -> None:
    """Connection and cluster files are in `security`, named for cluster and role."""
    profile = Path("/p")
    security = profile / "security"
    assert paths.connection_file(profile, "", "client") == security / "ipyfleet-client.json"
    assert paths.connection_file(profile, "a b", "engine") == security / "ipyfleet-a b-engine.json"
    assert paths.cluster_file(profile, "x") == security / "ipyfleet-cluster-x.json"
    assert paths.log_dir(profile) == profile / "log"


def test_cluster_files_are_told_from_connection_files(tmp_path: Path) -> None:
    """Listing clusters never lists a connection file, whatever the cluster's id."""
    files = [paths.cluster_file(tmp_path, name) for name in ("", "cluster-1", "b")]
    others = [
        paths.connection_file(tmp_path, name, role)
        for name in ("", "cluster-1", "cluster-")
        for role in ("client", "engine")
    ]
    assert len({*files, *others}) == 9
    paths.security_dir(tmp_path).mkdir()
    for path in [*files, *others]:
        path.touch()
    assert paths.cluster_files(tmp_path) == sorted(files)
    with pytest.raises(ValueError, match="must not end"):
        paths.cluster_file(tmp_path, "a-client")


class TestRuntimeDir:
    def test_default(self) -> None:
        """Without a runtime directory of the user's the sockets are in /tmp."""
        assert paths.runtime_dir(INSTANCE) == Path(f"/tmp/ipyfleet-{os.getuid()}-0123456789ab")

    def test_configured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The user's runtime directory is taken if it is there, theirs and short."""
        # The test's own directory may have too long a path; a link to it has not.
        link = Path(f"/tmp/ipyfleet-test-{os.getpid()}")
        link.symlink_to(tmp_path)
        try:
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(link))
            assert paths.runtime_dir(INSTANCE) == link / "ipyfleet-0123456789ab"
        finally:
            link.unlink()

    @pytest.mark.parametrize("where", ["/nowhere", "relative", "/proc", "/" + "x" * 90])
    def test_unusable(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A runtime directory that is missing, relative or too long is not used."""
        if where == "/proc" and os.geteuid() == 0:
            pytest.skip("root owns /proc")
        monkeypatch.setenv("XDG_RUNTIME_DIR", where)
        assert paths.runtime_dir(INSTANCE).parent == Path("/tmp")

    def test_too_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A socket's path fits into 100 bytes wherever the runtime directory is."""
        deep = tmp_path / ("d" * 80)
        deep.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
        path = paths.runtime_dir(INSTANCE) / "router"
        assert len(os.fsencode(path)) < 100

    @pytest.mark.parametrize("instance", ["", "short", "../../../../etc", INSTANCE.upper()])
    def test_bad_instance(self, instance: str) -> None:
        """What is no instance id never becomes part of a path."""
        with pytest.raises(ValueError):
            paths.runtime_dir(instance)
        with pytest.raises(ValueError):
            paths.blob_dir(instance)


def test_blob_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory has a directory per user and instance, in a place that can be chosen."""
    name = f"ipyfleet-{os.getuid()}-0123456789ab"
    monkeypatch.delenv("IPYFLEET_SHM_DIR", raising=False)
    assert paths.blob_dir(INSTANCE) == Path("/dev/shm") / name
    monkeypatch.setenv("IPYFLEET_SHM_DIR", "/elsewhere")
    assert paths.blob_dir(INSTANCE) == Path("/elsewhere") / name


class TestMakePrivateDir:
    def test_makes(self, tmp_path: Path) -> None:
        """A new directory is its owner's alone, and making it again is fine."""
        path = paths.make_private_dir(tmp_path / "a" / "b")
        assert path.stat().st_mode & 0o777 == 0o700
        assert paths.make_private_dir(path) == path

    @pytest.mark.parametrize("kind", ["file", "link", "writable"])
    def test_refuses(self, tmp_path: Path, kind: str) -> None:
        """What others may have put there before is refused."""
        path = tmp_path / "d"
        if kind == "file":
            path.touch()
        elif kind == "link":
            path.symlink_to(tmp_path)
        else:
            path.mkdir()
            path.chmod(0o777)
        with pytest.raises(PermissionError, match=str(path)):
            paths.make_private_dir(path)


def test_a_runtime_dir_is_removed_by_several(tmp_path: Path) -> None:
    """Whoever finds a file gone goes on, until the directory is gone."""
    for round_ in range(20):
        path = tmp_path / f"ipyfleet-{round_}"
        path.mkdir()
        for number in range(50):
            (path / str(number)).touch()
        with ThreadPoolExecutor(4) as pool:
            removals = [pool.submit(paths.remove_runtime_dir, path) for _ in range(4)]
        for removal in removals:
            removal.result()
        assert not path.exists()


def test_empty_runtime_dirs_are_swept(tmp_path: Path) -> None:
    """What is empty and not new goes; sockets, new directories and links stay."""
    names = ["ours", "empty", "new", "used"]
    ours, empty, new, used = (tmp_path / f"ipyfleet-0-{name}" for name in names)
    for path in (ours, empty, new, used):
        path.mkdir()
    (used / "router").touch()
    (tmp_path / "ipyfleet-0-link").symlink_to(tmp_path)
    (tmp_path / "else").mkdir()
    for path in (ours, empty, used, tmp_path / "else"):
        os.utime(path, (0, 0))
    paths.remove_empty_runtime_dirs(ours)
    left = {path.name.removeprefix("ipyfleet-0-") for path in tmp_path.iterdir()}
    assert left == {"ours", "new", "used", "link", "else"}
