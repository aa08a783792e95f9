"""Connection files: written safely, and refused with a plain word when they are not right."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from ipyfleet_protocol import connection
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    check_alive,
    host_id,
    load_connection_file,
    new_connection_info,
    new_instance,
    pick_url,
    remove_connection_file,
    save_connection_file,
)
from ipyfleet_protocol.errors import (
    ConnectionFileError,
    ConnectionFileInvalid,
    ConnectionFileMissing,
    ConnectionFilePermission,
    ConnectionFileStale,
    ConnectionFileUnreachable,
    ConnectionFileUnreadable,
    ConnectionFileVersion,
)

LOCAL = "unix:///tmp/ipyfleet-0-0123/router"
TCP = "tcp://192.0.2.7:9001"


def example(**changes: object) -> ConnectionInfo:
    """Return the description of a controller that is this process."""
    info = new_connection_info(
        instance=new_instance(),
        role="client",
        urls=[LOCAL, TCP],
        secret="s" * 40,
        cluster_id="mine",
    )
    return msgspec.structs.replace(info, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A connection file's path in a directory that is not there yet."""
    return tmp_path / "profile_x" / "security" / "ipyfleet-client.json"


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def changed(**changes: object) -> bytes:
    """Return the bytes of a connection file in which some values are others, or missing if None."""
    values = {**json.loads(msgspec.json.encode(example())), **changes}
    return json.dumps({k: v for k, v in values.items() if v is not None}).encode()


class TestSave:
    def test_round_trip(self, path: Path) -> None:
        """What was saved is what is loaded."""
        info = example()
        save_connection_file(path, info)
        assert load_connection_file(path) == info
        assert (info.pid, info.host, info.hostname) == (
            os.getpid(),
            host_id(),
            socket.gethostname(),
        )

    def test_rights(self, path: Path) -> None:
        """The file is its owner's alone, in a directory that is too, whatever the umask."""
        old = os.umask(0)
        try:
            save_connection_file(path, example())
        finally:
            os.umask(old)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

    def test_rights_of_what_is_there(self, path: Path, tmp_path: Path) -> None:
        """An open `security` directory is closed, any other directory is left as it is."""
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o755)
        other = tmp_path / "shared"
        other.mkdir()
        other.chmod(0o755)
        save_connection_file(path, example())
        save_connection_file(other / "c.json", example())
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert other.stat().st_mode & 0o777 == 0o755

    def test_atomic(self, path: Path) -> None:
        """A reader beside many writers sees a whole file every time."""
        infos = [example() for _ in range(2)]
        save_connection_file(path, infos[0])
        done = threading.Event()

        def rewrite() -> None:
            for n in range(200):
                save_connection_file(path, infos[n % 2])
            done.set()

        writer = threading.Thread(target=rewrite)
        writer.start()
        while not done.is_set():
            assert load_connection_file(path) in infos
        writer.join(30)
        assert os.listdir(path.parent) == [path.name]

    def test_replaces_a_link(self, path: Path, tmp_path: Path) -> None:
        """A link in the file's place is replaced; what it points to is not written."""
        target = tmp_path / "target"
        target.write_text("keep")
        path.parent.mkdir(parents=True)
        path.symlink_to(target)
        save_connection_file(path, example())
        assert target.read_text() == "keep"
        assert not path.is_symlink()

    def test_impossible(self, tmp_path: Path) -> None:
        """Where nothing can be written the error says where and what to do, and nothing is left."""
        (tmp_path / "file").touch()
        with pytest.raises(ConnectionFileError, match=r"cannot write.*--profile-dir"):
            save_connection_file(tmp_path / "file" / "c.json", example())
        (tmp_path / "c.json").mkdir()
        with pytest.raises(ConnectionFileError, match="cannot write"):
            save_connection_file(tmp_path / "c.json", example())
        assert sorted(os.listdir(tmp_path)) == ["c.json", "file"]

    def test_secret_is_not_in_the_repr(self) -> None:
        """A secret key does not get into logs by way of the repr."""
        assert "s" * 40 not in repr(example())


class TestLoad:
    def test_missing(self, path: Path) -> None:
        """Without a file the user is told that no cluster runs and how to start one."""
        with pytest.raises(ConnectionFileMissing, match="ipcluster start") as caught:
            load_connection_file(path)
        assert str(path) in str(caught.value)

    def test_waits(self, path: Path) -> None:
        """A file that appears within the timeout is loaded."""
        info = example()
        writer = threading.Timer(0.1, save_connection_file, (path, info))
        writer.start()
        assert load_connection_file(path, timeout_s=20) == info
        writer.join(10)

    def test_waits_no_longer_than_told(self, path: Path) -> None:
        """When the file does not appear, the same error comes after the timeout."""
        with pytest.raises(ConnectionFileMissing):
            load_connection_file(path, timeout_s=0.1)

    def test_waits_for_a_live_one(self, path: Path) -> None:
        """With `alive` a stale file is waited out, and told when nobody replaces it."""
        save_connection_file(path, example(pid_start=1.0))
        with pytest.raises(ConnectionFileStale):
            load_connection_file(path, timeout_s=0.1, alive=True)
        info = example()
        writer = threading.Timer(0.1, save_connection_file, (path, info))
        writer.start()
        assert load_connection_file(path, timeout_s=20, alive=True) == info
        writer.join(10)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"no json",
            b"\xff\xfe",
            b"[" * 60_000,
            b"null",
            b"[]",
            b"{}",
            b'{"shell_port": 1, "key": ""}',
            b" " * 100_000,
            changed(format="1"),
            changed(pid=None),
            changed(pid="1"),
            changed(pid=-1),
            changed(urls=[]),
            changed(urls=["http://x"]),
            changed(urls=[5]),
            changed(role="king"),
            changed(instance="../.."),
            changed(instance=""),
        ],
        ids=lambda content: ascii(content[-24:]),
    )
    def test_invalid(self, path: Path, content: bytes) -> None:
        """What is no connection file is refused as such, and does not become a different error."""
        write(path, content)
        with pytest.raises(ConnectionFileInvalid, match="is no connection file") as caught:
            load_connection_file(path)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value, ConnectionFileUnreadable)

    @pytest.mark.parametrize("change", [{"format": 2}, {"protocol": 99}, {"format": 0}])
    def test_other_version(self, path: Path, change: dict[str, int]) -> None:
        """Another release's file is refused by naming both releases, even if all else differs
        too.
        """
        write(path, changed(**change, version="9.9", pid=None, urls=None, extra=1))
        with pytest.raises(ConnectionFileVersion, match=r"ipyfleet 9\.9 .*same release"):
            load_connection_file(path)

    def test_newer_fields(self, path: Path) -> None:
        """A field that this release does not know is ignored."""
        write(path, changed(extra=1))
        assert load_connection_file(path).cluster_id == "mine"

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
    def test_open_to_others(self, path: Path, mode: int) -> None:
        """A file that others may read or write is refused with the command that mends it."""
        write(path, changed(), mode)
        with pytest.raises(ConnectionFilePermission, match=f"chmod 600 {path}"):
            load_connection_file(path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_not_readable(self, path: Path) -> None:
        """A file that this user may not read is an error of rights."""
        write(path, changed(), 0)
        with pytest.raises(ConnectionFilePermission, match="may not be read"):
            load_connection_file(path)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can play two users")
    def test_as_another_user(self, tmp_path: Path) -> None:
        """Another user can neither read the file nor be made to trust it."""
        code = f"""
import os, pathlib
from ipyfleet_protocol.connection import load_connection_file, _check_rights
from ipyfleet_protocol.errors import ConnectionFilePermission
found = os.stat(r"{tmp_path}/c.json")
os.setuid(65534)
path = pathlib.Path(r"{tmp_path}/c.json")
for attempt in (lambda: load_connection_file(path), lambda: _check_rights(path, found)):
    try:
        attempt()
    except ConnectionFilePermission as error:
        print(error)
"""
        write(tmp_path / "c.json", changed())
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
        )
        first, second = done.stdout.splitlines()
        assert "may not be read by this user" in first
        assert "belongs to user 0" in second

    @pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
    def test_not_a_file(self, path: Path, kind: str) -> None:
        """A directory, a pipe or an endless link in the file's place is refused at once."""
        path.parent.mkdir(parents=True)
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path, 0o600)
        else:
            path.symlink_to(path)
        with pytest.raises(ConnectionFileUnreadable, match=str(path)):
            load_connection_file(path)

    def test_link(self, path: Path, tmp_path: Path) -> None:
        """A link to a good file is followed: its owner and rights are checked, not the link's."""
        save_connection_file(path, example())
        link = tmp_path / "link.json"
        link.symlink_to(path)
        assert load_connection_file(link).cluster_id == "mine"
        path.chmod(0o644)
        with pytest.raises(ConnectionFilePermission):
            load_connection_file(link)

    def test_all_failures_are_os_errors(self) -> None:
        """Whoever catches OSError or our base class catches every failure."""
        kinds = [
            getattr(connection, name)
            for name in dir(connection)
            if name.startswith("ConnectionFile")
        ]
        assert len(kinds) == 8
        assert all(issubclass(kind, ConnectionFileError) for kind in kinds)
        assert issubclass(ConnectionFileError, OSError)


class TestRemove:
    def test_own(self, path: Path) -> None:
        """A controller removes its own file, any number of times."""
        info = example()
        save_connection_file(path, info)
        remove_connection_file(path, info.instance)
        remove_connection_file(path, info.instance)
        assert not path.exists()

    def test_successors(self, path: Path) -> None:
        """It leaves the file of the controller that came after it."""
        save_connection_file(path, example())
        remove_connection_file(path, new_instance())
        assert path.exists()


class TestAlive:
    def test_this_process(self) -> None:
        """A living controller is alive."""
        check_alive(example())

    def test_killed(self) -> None:
        """After its process was killed a controller is found gone, with what to do about it."""
        code = (
            "from ipyfleet_protocol.connection import *\n"
            "import msgspec\n"
            "info = new_connection_info(instance=new_instance(), role='client', urls=['unix://x'])\n"
            "print(msgspec.json.encode(info).decode(), flush=True)\n"
            "input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            info = msgspec.json.decode(process.stdout.readline(), type=ConnectionInfo)
            check_alive(info)
            process.kill()
            process.wait(10)
            with pytest.raises(ConnectionFileStale, match=r"has ended.*ipcluster start"):
                check_alive(info)

    def test_reused_process_id(self) -> None:
        """A process that started at another time is another process."""
        with pytest.raises(ConnectionFileStale, match="another process's now"):
            check_alive(example(pid_start=example().pid_start + 10))

    def test_unknown_start(self) -> None:
        """Where the start time was not known the process id alone counts."""
        check_alive(example(pid_start=0.0))

    def test_elsewhere(self) -> None:
        """Of a controller on another host nothing is claimed."""
        check_alive(example(host="another", pid=1 << 30))


class TestPickUrl:
    def test_same_host(self, tmp_path: Path) -> None:
        """On the controller's host the socket in the file system is taken."""
        (tmp_path / "s").touch()
        local = f"unix://{tmp_path}/s"
        assert pick_url(example(urls=[local, TCP])) == local
        assert pick_url(example(urls=[TCP, local])) == local
        assert pick_url(example(urls=[LOCAL])) == LOCAL

    def test_socket_out_of_sight(self) -> None:
        """On the same host, but where the socket cannot be seen, TCP serves."""
        assert pick_url(example(urls=["unix:///no/such/place", TCP])) == TCP

    def test_other_host(self) -> None:
        """From another host TCP is taken."""
        assert pick_url(example(host="another")) == TCP

    @pytest.mark.parametrize("hostname", ["farm7", socket.gethostname()])
    def test_unreachable(self, hostname: str) -> None:
        """Where only local connections are listened for, others are told how to change that."""
        with pytest.raises(ConnectionFileUnreachable, match=f"{hostname}.*--ip=") as caught:
            pick_url(example(host="another", hostname=hostname, urls=[LOCAL]))
        assert ("restarted" in str(caught.value)) == (hostname == socket.gethostname())
