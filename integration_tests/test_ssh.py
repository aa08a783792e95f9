"""Clients that reach their controller through a real ssh server, on this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ipyfleet as ipf
from ipyfleet_protocol.connection import save_connection_file
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 30
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="needs ssh and sshd (make services)"
)

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


class SshServer:
    """An sshd of this user's, who may log in with one key.

    Attributes:
        name: for ``sshserver=``.
        arguments: of `Client`, that lead to it.
    """

    def __init__(self, folder: Path) -> None:
        for key in ("host", "id", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True, timeout=TIMEOUT_S)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "config").write_text(CONFIG.format(folder=folder, port=port))
        kind, key, *_ = (folder / "host.pub").read_text().split()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        self.folder = folder
        self.name = f"{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{port}"
        self.arguments: dict[str, Any] = {
            "sshserver": self.name,
            "sshkey": folder / "id",
            "ssh_args": ["-F", "none", "-o", f"UserKnownHostsFile={folder}/known"],
            "timeout": TIMEOUT_S,
        }
        if os.getuid() == 0:
            # Where its package's service would have made it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        with (folder / "log").open("wb") as log:
            command = [SSHD, "-D", "-e", "-f", str(folder / "config")]
            self._process = subprocess.Popen(command, stderr=log)
        assert wait_until(lambda: "Server listening" in self.log or self._ended(), TIMEOUT_S)
        assert not self._ended(), self.log

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        for child in psutil.Process(self._process.pid).children(recursive=True):
            child.kill()
        self._process.kill()
        self._process.wait(TIMEOUT_S)


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshServer]:
    """A running ssh server."""
    folder = tmp_path / "ssh"
    folder.mkdir()
    server = SshServer(folder)
    yield server
    server.close()


def tunnels(pid: int | None = None) -> list[psutil.Process]:
    """Return the ssh processes below a process, by default this one."""
    return [p for p in psutil.Process(pid).children(recursive=True) if p.name() == "ssh"]


@pytest.mark.parametrize("ip", ["127.0.0.1", ""], ids=["tcp", "unix"])
def test_a_cluster_behind_an_ssh_server(
    cluster_factory: Callable[..., Any], ssh: SshServer, ip: str
) -> None:
    """Calls, large data and results of others come through one tunnel, which ends with the client.

    It leads to the controller's TCP port if that has one, else to its unix socket.
    """
    cluster = cluster_factory(n=2, controller_ip=ip)
    with ipf.Client(cluster.client_connection_file, **ssh.arguments) as rc:
        assert len(tunnels()) == 1
        assert rc[:].apply_sync(os.getpid) == [
            int(pid) for pid in rc[:]["__import__('os').getpid()"]
        ]
        array = np.arange(300_000)
        assert (rc[0].apply_sync(lambda x: x + 1, array) == array + 1).all()
        assert rc.load_balanced_view().map_sync(abs, range(-500, 0)) == list(range(500, 0, -1))
        assert rc.get_result(rc.history[-1]).get(TIMEOUT_S) == 1
    assert tunnels() == []


def test_a_tunnel_that_breaks_is_made_again(
    cluster_factory: Callable[..., Any], ssh: SshServer
) -> None:
    """When ssh ends under a running client another one is started, and nothing is lost."""
    cluster = cluster_factory(n=1, controller_ip="127.0.0.1")
    with ipf.Client(cluster.client_connection_file, **ssh.arguments) as rc:
        rc[0].apply_sync(abs, -1)
        ar = rc[0].apply_async(lambda: __import__("time").sleep(1) or 5)
        ar.msg_ids  # noqa: B018 - sends it
        (first,) = tunnels()
        first.kill()
        assert ar.get(TIMEOUT_S) == 5
        assert rc[0].apply_async(abs, -2).get(TIMEOUT_S) == 2
        assert [p.pid for p in tunnels()] != [first.pid]


@pytest.mark.parametrize("flags", [[], ["--no-fork"]], ids=["forked", "programs"])
def test_engines_behind_an_ssh_server(
    cluster_factory: Callable[..., Any], ssh: SshServer, flags: list[str]
) -> None:
    """Engines reach their controller through ssh, and nothing of it outlives them."""
    cluster = cluster_factory(n=0, controller_ip="127.0.0.1")
    file = Path(cluster.client_connection_file)
    command = [sys.executable, "-m", "ipyfleet_engine", "-n", "2", *flags]
    command += [f"--file={file.with_name(file.name.replace('client', 'engine'))}"]
    command += [f"--profile-dir={cluster.profile_dir}"]
    command += [f"--ssh={ssh.name}", f"--sshkey={ssh.folder / 'id'}"]
    command += [f"--IPEngineApp.ssh_args={a}" for a in ssh.arguments["ssh_args"]]
    with cluster.connect_client_sync() as rc, subprocess.Popen(command) as agent:
        rc.wait_for_engines(2, timeout=TIMEOUT_S)
        assert rc[:].map_sync(abs, range(-4, 0)) == [4, 3, 2, 1]
        used = tunnels(agent.pid)
        assert len(used) == (3 if flags else 1)
        agent.terminate()
        assert agent.wait(TIMEOUT_S) == 0
        assert wait_until(lambda: not any(map(_runs, used)), TIMEOUT_S)


def test_the_connection_file_names_the_server(
    cluster_factory: Callable[..., Any], ssh: SshServer, tmp_path: Path
) -> None:
    """A file from another host that names an ssh server is enough to get there."""
    cluster = cluster_factory(n=1, controller_ip="127.0.0.1", controller_args=["--ssh", ssh.name])
    with cluster.connect_client_sync() as rc:
        # On the controller's own host nothing is tunnelled.
        assert tunnels() == []
        info = rc.session.info
    assert info.ssh == ssh.name
    info.host = "0" * 32
    save_connection_file(tmp_path / "copied.json", info)
    arguments = {k: v for k, v in ssh.arguments.items() if k != "sshserver"}
    with ipf.Client(tmp_path / "copied.json", **arguments) as rc:
        assert len(tunnels()) == 1
        assert rc[0].apply_sync(abs, -1) == 1


def test_nothing_outlives_a_client_that_is_killed(
    cluster_factory: Callable[..., Any], ssh: SshServer
) -> None:
    """The end of the client's process, whatever way it comes, is the end of its ssh."""
    cluster = cluster_factory(n=1, controller_ip="127.0.0.1")
    code = (
        "import ipyfleet as ipf, sys, time\n"
        f"rc = ipf.Client({str(cluster.client_connection_file)!r}, sshserver={ssh.name!r},\n"
        f"    sshkey={str(ssh.folder / 'id')!r}, ssh_args={ssh.arguments['ssh_args']!r})\n"
        "print(rc[0].apply_sync(abs, -7), flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "7\n"
        children = psutil.Process(program.pid).children(recursive=True)
        folder = Path(tunnels(program.pid)[0].cmdline()[-3].partition(":")[0]).parent
        assert folder.is_dir()
        program.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(map(_runs, children)) and not folder.exists(), TIMEOUT_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_refuses(cluster_factory: Callable[..., Any], ssh: SshServer) -> None:
    """What ssh says, and what to do, is in the error; nothing stays behind."""
    file = cluster_factory(n=0, controller_ip="127.0.0.1").client_connection_file
    for changes, text in (
        ({"sshkey": ssh.folder / "stranger"}, r"Permission denied .*give a key with sshkey="),
        ({"sshserver": "someone@127.0.0.1:1"}, "Connection refused .*does an ssh server run there"),
        ({"ssh_args": ["-F", "none", "-o", "UserKnownHostsFile=none"]}, "accept the host's key"),
        ({"sshserver": "-oProxyCommand=x"}, "no ssh server: give user@host"),
    ):
        with pytest.raises(ConnectionError, match=text):
            ipf.Client(file, **ssh.arguments | changes)
    assert tunnels() == []


def test_a_server_that_says_nothing(cluster_factory: Callable[..., Any], ssh: SshServer) -> None:
    """The client's timeout holds for ssh, too."""
    file = cluster_factory(n=0, controller_ip="127.0.0.1").client_connection_file
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"someone@127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="ssh did not log in to someone"):
            ipf.Client(file, **ssh.arguments | {"sshserver": server, "timeout": 0.5})
    assert tunnels() == []


def test_a_controller_that_is_not_there(
    cluster_factory: Callable[..., Any], ssh: SshServer, tmp_path: Path
) -> None:
    """A tunnel that leads nowhere ends in the client's timeout, with what ssh says about it."""
    cluster = cluster_factory(n=0, controller_ip="127.0.0.1")
    with cluster.connect_client_sync() as rc:
        info = rc.session.info
    info.host, info.urls = "0" * 32, ["tcp://127.0.0.1:1"]
    save_connection_file(tmp_path / "copied.json", info)
    with pytest.raises(TimeoutError, match=r"did not answer .*ssh says: .*Connection refused"):
        ipf.Client(tmp_path / "copied.json", **ssh.arguments | {"timeout": 6})
    assert tunnels() == []
