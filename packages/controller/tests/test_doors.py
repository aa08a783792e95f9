"""The doors: what each of them does alike, and that there is no zmq where it is not needed."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipyfleet_controller.doors import Doors
from ipyfleet_protocol.codec import decode
from ipyfleet_protocol.ids import Channel, PeerId, routing_id
from ipyfleet_protocol.local import Unreachable, frame_prefix
from ipyfleet_protocol.messages import Refused
from ipyfleet_testing.threshold import KINDS, PATIENCE_S, Threshold

NAME = routing_id(PeerId(b"p" * 16), Channel.CLIENT)
OTHER = routing_id(PeerId(b"o" * 16), Channel.CLIENT)
FRAME = bytes(4096)


@pytest.fixture(params=KINDS)
def threshold(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Threshold]:
    """The doors, with peers at either."""
    threshold = Threshold(tmp_path, request.param)
    yield threshold
    threshold.close()


def test_messages_go_both_ways(threshold: Threshold) -> None:
    """Frames of any size arrive as they were sent, with the name of the sender in front."""
    client = threshold.connect(NAME)
    frames = [b"header", b"", b"x" * 100, bytes(range(256)) * 20_000]
    sender = threading.Thread(target=client.send, args=[frames])
    sender.start()
    got = [bytes(memoryview(frame)) for frame in threshold.take()]
    sender.join(PATIENCE_S)
    assert got == [NAME, *frames]
    assert threshold.doors.send(NAME, frames)
    threshold.wait_until(lambda: client.wait(0.01))
    assert client.receive(0) == frames


def test_the_end_of_a_connection_comes_behind_its_last_message(threshold: Threshold) -> None:
    """What was sent before counts; from then on the peer cannot be reached."""
    client = threshold.connect(NAME)
    threshold.connect(OTHER)
    client.send([b"last"])
    threshold.wait_for([NAME, b"last"])
    client.close()
    threshold.wait_for([NAME])
    with pytest.raises(Unreachable):
        threshold.doors.send(NAME, [b"nobody"])
    assert threshold.doors.send(OTHER, [b"somebody"])


def test_nobody_is_unreachable(threshold: Threshold) -> None:
    """Sending to a name that never was here raises."""
    with pytest.raises(Unreachable):
        threshold.doors.send(NAME, [b"nobody"])


def test_a_full_connection_says_so_and_when_there_is_room(threshold: Threshold) -> None:
    """A message that was not taken is not sent; room is told of, once there is some."""
    client = threshold.connect(NAME)
    told: list[bytes] = []
    threshold.doors.when_room(told.append)
    n_sent = 0
    while threshold.doors.send(NAME, [b"%d" % n_sent, FRAME]):
        n_sent += 1
    assert not told
    got: list[bytes] = []

    def has(condition: Callable[[], object]) -> bool:
        while (frames := client.receive(0)) is not None:
            got.append(frames[0])
        return bool(condition())

    threshold.wait_until(lambda: has(lambda: told))
    assert set(told) == {NAME}
    threshold.wait_until(lambda: has(lambda: threshold.doors.send(NAME, [b"last"])))
    threshold.wait_until(lambda: has(lambda: got[-1:] == [b"last"]))
    assert got == [*(b"%d" % number for number in range(n_sent)), b"last"]


def test_what_waits_to_be_dealt_with_is_not_added_to(threshold: Threshold) -> None:
    """While messages are there nothing is taken in: a flood stays with who sends it."""
    client = threshold.connect(NAME)
    client.send([b"one"])
    threshold.wait_until(lambda: threshold.doors.inbox)
    client.send([b"two"])
    for _ in range(10):
        assert threshold.doors.wait(1.0)
        assert len(threshold.doors.inbox) == 1
    threshold.wait_for([NAME, b"one"])
    threshold.wait_for([NAME, b"two"])


def test_other_descriptors_are_told_of(threshold: Threshold) -> None:
    """A callback is called when its descriptor can be read, also while messages wait."""
    client = threshold.connect(NAME)
    client.send([b"one"])
    threshold.wait_until(lambda: threshold.doors.inbox)
    called: list[str] = []
    with subprocess.Popen(["echo"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        threshold.doors.add_reader(process.stdout.fileno(), lambda: called.append("called"))
        threshold.wait_until(lambda: called)


def test_an_engines_channel_needs_an_engines_key(tmp_path: Path) -> None:
    """What comes with another key is refused at the door."""
    threshold = Threshold(tmp_path, "tcp")
    try:
        threshold.connect(NAME)
        engine = threshold._channels.open(routing_id(PeerId(b"p" * 16), Channel.TASK))
        threshold._opened.append(engine)
        engine.send([b"let me in"])
        threshold.wait_until(lambda: threshold.doors.n_refused)
        answer = engine.receive(PATIENCE_S)
        assert answer is not None
        refused = decode(answer[0])
        assert isinstance(refused, Refused)
        assert "needs the key of a engine" in refused.reason
        assert not threshold.doors.inbox
    finally:
        threshold.close()


def test_a_closed_door_leaves_no_socket(tmp_path: Path) -> None:
    """The socket's file is removed; closing again is no error."""
    doors = Doors(tmp_path / "s")
    assert (tmp_path / "s").is_socket()
    for _ in range(2):
        doors.close(0.0)
    assert not (tmp_path / "s").exists()


def test_where_there_is_no_epoll_there_is_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything works with the older system call too."""
    monkeypatch.delattr("select.epoll")
    threshold = Threshold(tmp_path, "local")
    try:
        client = threshold.connect(NAME)
        assert not threshold.doors.wait(0.01)
        client.send([b"one"])
        threshold.wait_for([NAME, b"one"])
        client.close()
        threshold.wait_for([NAME])
    finally:
        threshold.close()


def test_a_peer_gets_in_when_there_are_descriptors_again(tmp_path: Path) -> None:
    """Also when it was no peer that had them."""
    threshold = Threshold(tmp_path, "local")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    late = socket.socket(socket.AF_UNIX)
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard)
        )
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        late.connect(str(tmp_path / "s"))
        late.sendall(frame_prefix([len(NAME)]) + NAME + frame_prefix([5]) + b"hello")
        assert threshold.doors.wait(PATIENCE_S)
        assert not threshold.doors.wait(PATIENCE_S), "it waits in vain, and not for long"
        for fd in taken:
            os.close(fd)
        taken.clear()
        threshold.wait_for([NAME, b"hello"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
        late.close()
        threshold.close()


def test_zmq_is_imported_for_other_hosts_only(tmp_path: Path) -> None:
    """A controller for this host neither imports it nor has threads of it."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ipyfleet_controller.app import IPController, make_router\n"
        "from ipyfleet_controller.database.keeper import RecordKeeper\n"
        "from ipyfleet_controller.database.sqlite import SQLiteDatabase\n"
        "from ipyfleet_controller.endpoints import ControllerSite\n"
        "from ipyfleet_controller.scheduler.core import SchedulerCore\n"
        "site = ControllerSite(Path(sys.argv[1]), ip=sys.argv[2])\n"
        "site.open()\n"
        "make_router(site, SchedulerCore(), keeper=RecordKeeper(lambda: None))\n"
        "site.close()\n"
        "print('zmq' in sys.modules)\n"
    )
    for ip, expected in (("", "False\n"), ("127.0.0.1", "True\n")):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, ip],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout == expected
