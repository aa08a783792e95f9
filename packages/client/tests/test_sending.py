"""Messages that the other end does not take at once."""

import contextlib
import socket
import threading

import pytest

from ipyfleet_client import Client
from ipyfleet_client.connection import LocalConnection
from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.io import Wire
from ipyfleet_client.link import ClientLink
from ipyfleet_client.poller import PlainPoller
from ipyfleet_client.submission import Submitter
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.local import frame_prefix
from ipyfleet_testing.interrupts import interrupt_when
from ipyfleet_testing.waiting import wait_until

LARGE = 50_000_000


@pytest.fixture(params=["local", "tcp"])
def make_end(request, ends):
    """What the controller listens with."""
    return ends[request.param]


@pytest.fixture(params=["leader", "plain"])
def anyhow(request, controller, monkeypatch):
    """A client without shared memory, with either kind of poller and of connection."""
    if request.param == "plain":
        monkeypatch.setattr("ipyfleet_client.io.make_poller", PlainPoller)
    with contextlib.closing(Client(controller.info, timeout=5)) as client:
        client.session.submit.blobs = None
        yield client


def start(function):
    """Run a function in a thread."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_large_messages_do_not_mingle(anyhow, controller):
    """Of messages that several threads send at once to a controller that reads late all arrive."""
    controller.stop_reading()
    results = {}

    def send(number):
        data = bytes([number]) * (LARGE // 5 + number)
        results[number] = anyhow[number % 2].apply_async(lambda data: (len(data), set(data)), data)

    threads = [start(lambda number=number: send(number)) for number in range(4)]
    small = [start(lambda: results.setdefault("small", anyhow[0].apply_async(abs, -3)))]
    controller.read_on()
    for thread in threads + small:
        thread.join(20)
    assert results.pop("small").get(10) == 3
    for number, result in results.items():
        assert result.get(10) == (LARGE // 5 + number, {number})


@pytest.mark.parametrize("make_end", ["local"], indirect=True)
def test_the_sender_waits_for_a_controller_that_does_not_read(anyhow, controller):
    """A call with a large argument returns when that has left, so no more than it is in memory."""
    controller.stop_reading()
    done = threading.Event()

    def send():
        results.append(anyhow[0].apply_async(len, bytes(LARGE)))
        done.set()

    results: list = []
    thread = start(send)
    wire = anyhow.session.wire
    wait_until(lambda: wire._connection.unsent_bytes)
    assert not done.wait(0.1)
    controller.read_on()
    assert done.wait(10)
    thread.join(5)
    assert results[0].get(10) == LARGE


@pytest.mark.parametrize("make_end", ["local"], indirect=True)
def test_ctrl_c_while_a_message_leaves(anyhow, controller):
    """Ctrl-C ends the wait for a controller that does not read; the message leaves by and by."""
    controller.stop_reading()
    wire = anyhow.session.wire
    thread = interrupt_when(lambda: wire._n_sending)
    with pytest.raises(KeyboardInterrupt):
        anyhow[0].apply_sync(len, bytes(LARGE))
    thread.join(5)
    result = anyhow.get_result(anyhow.history[-1])
    wait_until(lambda: wire._room_wanted)
    controller.read_on()
    assert anyhow[0].apply_sync(abs, -1) == 1
    assert result.get(10) == LARGE
    wait_until(lambda: not wire._room_wanted)
    assert len(controller.received(m.Submit)) == 2


def test_ctrl_c_while_one_before_has_not_left(anyhow, controller):
    """Ctrl-C ends a call that waits to be sent; nothing is lost, and the calls go out in order."""
    controller.stop_reading()
    wire = anyhow.session.wire
    thread = interrupt_when(lambda: wire._connection.unsent_bytes)
    results = []

    def fill():
        for number in range(10_000):
            results.append(anyhow[0].apply_async(lambda n, _: n, number, bytes(20_000)))
            anyhow.session.submit.flush()

    with pytest.raises(KeyboardInterrupt):
        fill()
    thread.join(5)
    controller.read_on()
    last = anyhow[0].apply_async(abs, -1)
    assert [result.get(10) for result in results] == list(range(len(results)))
    assert last.get(10) == 1
    assert last.msg_ids[0] == anyhow.history[-1]


def test_a_callback_may_send_much(anyhow, controller):
    """What is sent from a callback, by the thread that receives, arrives like anything else."""
    results: list = []
    sent = threading.Event()

    def send(_):
        for _ in range(3):
            results.append(anyhow[0].apply_async(len, bytes(LARGE // 5)))
        sent.set()

    anyhow[0].apply_async(abs, -1).add_done_callback(send)
    assert sent.wait(10)
    assert [result.get(10) for result in results] == [LARGE // 5] * 3


@pytest.fixture
def bare():
    """A wire without a client, the socket at its other end, and what it has dispatched."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    got: list = []
    wire = Wire(
        lambda: LocalConnection(ours),
        greet=lambda incarnation, received, greeting: b"hello",
        dispatch=got.append,
        flush=lambda wait: True,
        lost=lambda: None,
    )
    wire.start()
    wire.welcome(b"", 0)
    assert theirs.recv(100) == frame_prefix([5]) + b"hello"
    yield wire, theirs, got
    wire.close("over")
    theirs.close()


def send(wire, frames):
    """Send as a user's thread does."""
    with hold_interrupts() as interrupt:
        return wire.send(frames, interrupt)


def test_what_comes_while_something_leaves_is_received(bare):
    """A controller that reads nothing before it has been heard cannot block a sender for ever."""
    wire, other, got = bare
    thread = start(lambda: send(wire, [bytes(LARGE)]))
    wait_until(lambda: wire._n_sending)
    other.sendall(frame_prefix([LARGE]) + bytes(LARGE))
    left = 12 + LARGE
    while left:
        left -= len(other.recv(left))
    thread.join(10)
    assert [len(frame) for frames in got for frame in frames] == [LARGE]


def test_who_asks_and_waits_receives_while_it_sends(bare):
    """A thread that leads when it sends receives meanwhile, as nobody else does."""
    wire, other, got = bare
    thread = start(lambda: wire.wait_until(lambda: got, 20, lambda: send(wire, [bytes(LARGE)])))
    wait_until(lambda: wire._n_sending)
    assert wire._leader is not None
    other.sendall(frame_prefix([LARGE]) + bytes(LARGE))
    left = 12 + LARGE
    while left:
        left -= len(other.recv(left))
    thread.join(10)
    assert not thread.is_alive()
    assert [len(frame) for frames in got for frame in frames] == [LARGE]


def test_who_waits_to_send_receives_meanwhile(bare):
    """A thread that leads and cannot send, since another one does, receives all the same."""
    wire, other, got = bare
    submit = Submitter(PeerId(bytes(16)), "here", ClientLink(bytes(16)))
    submit.wire = wire

    def send_large():
        submit.send_message(b"large", [bytes(LARGE)])

    first = start(send_large)
    wait_until(lambda: wire._n_sending)

    def ask():
        submit._outbox.append([b"small"])
        submit.flush()

    second = start(lambda: wire.wait_until(lambda: len(got) > 1, 20, ask))
    wait_until(lambda: wire._leader is not None)
    other.sendall(frame_prefix([LARGE]) + bytes(LARGE))
    left = len(frame_prefix([5, LARGE])) + 5 + LARGE + len(frame_prefix([5])) + 5
    while left:
        left -= len(other.recv(left))
    other.sendall(frame_prefix([1]) + b"x")
    for thread in (first, second):
        thread.join(10)
        assert not thread.is_alive()


def test_a_sender_lets_go_when_the_connection_ends(bare):
    """The end of a connection, or of the client, ends the wait of who sends."""
    wire, other, _ = bare
    thread = start(lambda: send(wire, [bytes(LARGE)]))
    wait_until(lambda: wire._n_sending)
    other.close()
    thread.join(5)
    assert not thread.is_alive()
    wait_until(lambda: not wire.is_open)
    assert send(wire, [b"kept"])


def test_a_sender_lets_go_when_the_client_is_closed(bare):
    """Closing does not wait for a controller that reads nothing, nor does a sender."""
    wire, _, _ = bare
    thread = start(lambda: send(wire, [bytes(LARGE)]))
    wait_until(lambda: wire._n_sending)
    wire.close("enough", linger_s=0.05)
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(ClientClosed, match="enough"):
        send(wire, [b"x"])
