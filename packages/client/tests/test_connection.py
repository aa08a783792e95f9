"""Connections, of either kind, without a client around them."""

import contextlib
import os
import select
import socket
import subprocess
import sys

import pytest

from ipyfleet_client.connection import LocalConnection, make_connector
from ipyfleet_protocol.connection import new_connection_info, new_instance, save_connection_file
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_protocol.ids import new_peer_id
from ipyfleet_protocol.local import frame_prefix
from ipyfleet_testing.waiting import wait_until


@pytest.fixture(params=["local", "tcp"])
def make_end(request, ends):
    """What the controller listens with."""
    return ends[request.param]


@pytest.fixture
def end(directory, make_end):
    """What listens, in this thread."""
    end = make_end(directory)
    with contextlib.closing(end):
        yield end


@pytest.fixture
def connector(end):
    """What connects there."""
    info = new_connection_info(instance=new_instance(), role="client", **end.options)
    connector = make_connector(info.urls[0], info, new_peer_id())
    yield connector
    connector.close()


@pytest.fixture
def connection(connector):
    """A connection."""
    connection = connector.connect()
    yield connection
    connection.close()


def wait(connection, timeout_s=5.0):
    """Wait for news of a connection as the wire does; return whether there was some."""
    return bool(select.select(connection.fds, (), (), timeout_s)[0])


def receive(connection, count=1):
    """Return the next messages, fewer if the connection ends before."""
    got: list = []
    while len(got) < count:
        received = connection.receive_all()
        got += [[bytes(frame) for frame in frames] for frames in received]
        if not received:
            if connection.is_over:
                break
            assert wait(connection)
    return got


def test_messages_travel_both_ways(connection, end):
    """Frames of any size, also none at all, arrive as they were sent and in order."""
    sent = [[b"a"], [b"", b"b" * 10, b""], [b"header", b"c" * 300_000, memoryview(b"d")]]
    for frames in sent:
        connection.send(frames)
    got = []
    while len(got) < 3:
        connection.flush()
        message = end.receive(0.05)
        if message:
            identity, *frames = message
            got.append([bytes(frame) for frame in frames])
    assert got == [list(map(bytes, frames)) for frames in sent]
    for frames in sent:
        end.send(identity, list(frames))
    back: list = []
    while len(back) < 3:
        end.receive(0)
        back += [[bytes(frame) for frame in frames] for frames in connection.receive_all()]
    assert back == got


def test_what_arrives_while_something_is_sent_is_told(connection, end):
    """Sending does not take the news away that there is something to receive."""
    connection.send([b"hello"])
    identity, _ = end.receive(5)
    for number in range(50):
        end.send(identity, [b"%d" % number])
        connection.send([b"ping"])
        assert end.receive(5)[1] == b"ping"
        connection.send([b"ping"])
        assert receive(connection) == [[b"%d" % number]]
        assert end.receive(5)[1] == b"ping"


# The other kind can be waited for until it has room.
@pytest.mark.parametrize("make_end", ["tcp"], indirect=True)
def test_room_that_comes_while_something_is_sent_is_told(connection, end):
    """Sending does not take the news away that what waits can leave."""
    n_left = 0
    while connection.send([bytes(10_000)]):
        n_left += 1
    # When all have arrived nothing happens any more that the descriptors could tell of.
    for _ in range(n_left):
        assert end.receive(5)
    connection.send([b"behind"])
    assert wait(connection)
    assert connection.receive_all() == []
    assert connection.flush()
    assert [end.receive(5)[1] for _ in range(2)] == [bytes(10_000), b"behind"]


def test_the_end_is_seen_by_who_reads(connection, end):
    """What came before the end is received, then the connection is over, and stays so."""
    connection.send([b"hello"])
    identity, _ = end.receive(5)
    end.send(identity, [b"last"])
    assert receive(connection) == [[b"last"]]
    end.send(identity, [b"very last"])
    assert wait(connection)
    end.close()
    assert receive(connection, 2) == [[b"very last"]]
    assert connection.is_over
    assert connection.send([b"to nobody"])
    assert connection.flush()
    assert connection.receive_all() == []


def test_nobody_listens(connector, end):
    """A connection to where nobody listens cannot be made, or is over as soon as that is known."""
    end.close()
    try:
        connection = connector.connect()
    except FileNotFoundError:
        return
    with contextlib.closing(connection):
        assert receive(connection) == []


@pytest.fixture
def pair():
    """A connection and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    connection = LocalConnection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_half_a_message_is_no_message(pair):
    """What the end of a connection cuts in two is not received, what came before is."""
    connection, other = pair
    whole = frame_prefix([3, 2]) + b"abcde"
    large = frame_prefix([300_000]) + bytes(200_000)
    other.sendall(whole + large)
    assert receive(connection) == [[b"abc", b"de"]]
    other.close()
    assert receive(connection) == []
    assert connection.is_over


def test_nonsense_ends_a_connection(pair):
    """Bytes that are no messages end it; the messages before are received."""
    connection, other = pair
    other.sendall(frame_prefix([1]) + b"a" + b"\xff" * 100)
    assert receive(connection, 2) == [[b"a"]]
    assert connection.is_over
    other.sendall(frame_prefix([1]) + b"b")
    assert connection.receive_all() == []


def test_what_is_there_is_received_though_sending_failed(pair):
    """A write that fails says nothing of what has arrived before."""
    connection, other = pair
    other.sendall(frame_prefix([1]) + b"a" + frame_prefix([1]) + b"b")
    assert receive(connection) == [[b"a"], [b"b"]]
    other.sendall(frame_prefix([1]) + b"c")
    other.close()
    assert connection.send([b"to nobody"])
    assert connection.is_over
    assert receive(connection, 2) == [[b"c"]]


def test_zmq_is_for_tcp_only(controller, directory, make_end, ends):
    """A client of a controller on its host never imports zmq, in no part of its life."""
    path = directory / "client.json"
    save_connection_file(path, controller.info)
    code = f"""
import sys
from ipyfleet_client import Client
with Client({str(path)!r}) as rc:
    assert rc.load_balanced_view().map_sync(abs, range(-9, 0))
    assert rc[:].apply_sync(abs, -1) == [1, 1]
print("zmq" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout.strip(), done.stderr) == (str(make_end is ends["tcp"]), "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("make_end", ["local"], indirect=True)
def test_a_forked_child_does_not_hold_the_connection(rc, controller):
    """When the client is closed its connection ends, though a forked child lives on."""
    read, write = os.pipe()
    said_read, said_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            rc[0].apply_async(abs, 1)
        except ClientClosed:
            os.write(said_write, b"x")
        finally:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        assert os.read(said_read, 1) == b"x"
        assert rc[0].apply_sync(abs, -1) == 1
        assert len(controller.end) == 1
        rc.close()
        wait_until(lambda: not len(controller.end))
    finally:
        for fd in (read, write, said_read, said_write):
            os.close(fd)
        os.waitpid(pid, 0)
