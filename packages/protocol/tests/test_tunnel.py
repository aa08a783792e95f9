"""Tunnels over a program that does what ssh does, as far as a tunnel can tell.

The real one is in the integration tests.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from ipyfleet_protocol.connection import ConnectionInfo, new_connection_info, new_instance
from ipyfleet_protocol.tunnel import Tunnel

FAKE = """#!{python}
import os, socket, sys, time
from pathlib import Path
here = Path({folder!r})
(here / "arguments").write_text("\\n".join(sys.argv[1:]))
(here / "pid").write_text(str(os.getpid()))
mode = (here / "mode").read_text()
if mode != "works":
    sys.exit("ssh: " + mode)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("-L") + 1].partition(":")[0])
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake ssh is, and tells what it was called with."""
    program = tmp_path / "ssh"
    program.write_text(FAKE.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    (tmp_path / "mode").write_text("works")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def info(*urls: str) -> ConnectionInfo:
    """Return the file of a controller that listens there."""
    return new_connection_info(instance=new_instance(), role="client", urls=list(urls))


def until_gone(pid: int) -> bool:
    """Wait until a process has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("urls", "target", "encrypted"),
    [
        (("unix:///run/x/router", "tcp://10.0.0.7:5000"), "10.0.0.7:5000", True),
        (("unix:///run/x/router",), "/run/x/router", False),
    ],
    ids=["tcp", "unix"],
)
def test_what_ssh_is_asked_for(
    folder: Path, urls: tuple[str, ...], target: str, encrypted: bool
) -> None:
    """It is to forward a private socket here to the controller's port, or else to its socket."""
    tunnel = Tunnel(info(*urls), "me@there:2200", key="/k", args=["-J", "jump"])
    tunnel.start(10)
    try:
        arguments = (folder / "arguments").read_text().splitlines()
        socket_path = tunnel.url.partition("://")[2]
        assert arguments[-4:] == ["-L", f"{socket_path}:{target}", "--", "me@there"]
        assert "-p 2200 -J jump" in " ".join(arguments)
        assert "-i /k" in " ".join(arguments)
        assert "BatchMode=yes" in arguments
        assert tunnel.encrypted is encrypted
        assert tunnel.is_alive
        assert Path(socket_path).parent.stat().st_mode & 0o077 == 0
    finally:
        tunnel.close()
    assert until_gone(int((folder / "pid").read_text()))
    assert not Path(socket_path).parent.exists()
    tunnel.close()


def test_it_is_started_again(folder: Path) -> None:
    """A tunnel whose ssh has ended can be revived, one that was closed cannot."""
    tunnel = Tunnel(info("tcp://h:1"), "there")
    tunnel.start(10)
    first = int((folder / "pid").read_text())
    tunnel.revive()
    assert int((folder / "pid").read_text()) == first
    os.kill(first, 9)
    deadline = time.monotonic() + 10
    while tunnel.is_alive and time.monotonic() < deadline:
        time.sleep(0.01)
    tunnel.revive()
    assert tunnel.is_alive
    tunnel.close()
    tunnel.revive()
    assert not tunnel.is_alive


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("me@there: Permission denied (publickey).", "sshkey="),
        ("Host key verification failed.", "by hand"),
        ("Could not resolve hostname there", "name right"),
        ("something new", "something new"),
    ],
)
def test_ssh_fails(folder: Path, said: str, hint: str) -> None:
    """What it says is in the error, with what to do where that is known."""
    (folder / "mode").write_text(said)
    tunnel = Tunnel(info("tcp://h:1"), "there")
    with pytest.raises(ConnectionError, match="through there") as caught:
        tunnel.start(10)
    assert said in str(caught.value)
    assert hint in str(caught.value)
    assert not Path(tunnel.url.partition("://")[2]).parent.exists()


@pytest.mark.parametrize("server", ["", "-oProxyCommand=x", "a b"])
def test_what_is_no_server(folder: Path, server: str) -> None:
    """Nothing that ssh would take for an option, or for more than a name, is given to it."""
    with pytest.raises(ConnectionError, match="no ssh server"):
        Tunnel(info("tcp://h:1"), server)


def test_without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no ssh that is what is said."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConnectionError, match="not installed"):
        Tunnel(info("tcp://h:1"), "there")
