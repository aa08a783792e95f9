"""Sessions that go on: a controller that is cut off, that dies, that comes back."""

import contextlib
import os
import threading
import time

import pytest

from ipyfleet_client import Client
from ipyfleet_client.poller import PlainPoller
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode, encode_part, split
from ipyfleet_protocol.columns import Payloads, PayloadWriter, float64_column
from ipyfleet_protocol.connection import host_id, new_connection_info, new_instance
from ipyfleet_protocol.errors import ClientClosed, KernelError, RemoteError
from ipyfleet_protocol.reliable import ACK_MESSAGES, SESSION_MESSAGES
from ipyfleet_protocol.serialize import pack, unpack_call
from ipyfleet_testing.waiting import wait_until


class Controller:
    """A controller whose every step the test makes; `die` and `run` make it another run.

    Attributes:
        received: counted messages since the last Hello of another run.
    """

    def __init__(self, directory, make_end):
        self.instance = new_instance()
        self.client = b""
        self.end = None
        self._make_end = lambda: make_end(directory)
        self.run()
        self.info = new_connection_info(instance=self.instance, role="client", **self.end.options)
        self.info.recover_s = 30.0

    def run(self, incarnation=None):
        """Start, as another run unless told otherwise."""
        self.incarnation = incarnation or os.urandom(8)
        if incarnation is None:
            self.received = 0
        self.end = self._make_end()

    def die(self):
        """Close the socket, with all that is in it."""
        if self.end is not None:
            self.end.close()
            self.end = None

    def receive(self, kind=None, *, timeout_s=5.0):
        """Return the next message, or the next of a kind, and its frames."""
        deadline = time.monotonic() + timeout_s
        while got := self.end.receive(max(0, deadline - time.monotonic())):
            self.client, header, *frames = got
            message = decode(header)
            if type(message) not in SESSION_MESSAGES:
                self.received += 1
            if kind is None or isinstance(message, kind):
                return message, frames
        raise TimeoutError(f"no {kind} came")

    def send(self, message, frames=()):
        """Send to the client."""
        self.end.send(self.client, [encode(message), *frames])

    def welcome(self, received=None):
        """Take the client's Hello and welcome it; return the Hello."""
        hello, _ = self.receive(m.Hello)
        self.answer(hello, received)
        return hello

    def answer(self, hello, received=None):
        """Answer a Hello."""
        engine = m.EngineInfo(0, bytes(16), host_id(), "here", os.getpid())
        count = self.received if received is None else received
        self.send(
            m.Welcome(
                bytes.fromhex(self.instance),
                engines=[engine],
                host=host_id(),
                incarnation=self.incarnation,
                received=count,
                greeting=hello.greeting,
            )
        )

    def finish(self, first, values):
        """Send results: values, and errors as `ErrorInfo`."""
        writer = PayloadWriter()
        for value in values:
            is_error = isinstance(value, m.ErrorInfo)
            writer.append(encode_part(value) if is_error else pack(value).pickle)
        columns, frames = writer.finish()
        count = len(values)
        times = float64_column([time.time()] * count)
        status = bytes(m.FAILED if isinstance(value, m.ErrorInfo) else m.OK for value in values)
        piece = m.ResultSlice(first, count, 0, first, status, times, times, b"", columns)
        self.send(m.Results(self.client[:16], 0, [piece]), frames)


@pytest.fixture(params=["local", "tcp"])
def make_end(request, ends):
    """What the controller listens with."""
    return ends[request.param]


@pytest.fixture
def scripted(directory, make_end):
    """A controller that does what the test says."""
    controller = Controller(directory, make_end)
    yield controller
    controller.die()


def connect(controller, **options):
    """A client of it."""
    thread = threading.Thread(target=controller.welcome)
    thread.start()
    client = Client(controller.info, timeout=5, **options)
    thread.join()
    return client


@pytest.fixture(params=["leader", "plain"])
def rc(request, scripted, monkeypatch):
    """A connected client, with either kind of poller."""
    if request.param == "plain":
        monkeypatch.setattr("ipyfleet_client.io.make_poller", PlainPoller)
    with contextlib.closing(connect(scripted)) as client:
        yield client


def groups(message):
    """The seqs and the marks of the groups of a Submit."""
    return [(group.first, group.count, group.ended) for group in message.groups]


def test_a_cut_is_mended(rc, scripted):
    """What was lost and what was submitted meanwhile arrives after a cut, once and in order."""
    view = rc[0]
    results = [view.apply_async(abs, -1)]
    scripted.receive(m.Submit)
    lost = view.apply_async(abs, -2)
    wait_until(lambda: scripted.end.has_news())
    same = scripted.incarnation
    scripted.die()
    wait_until(lambda: rc.session.reconnecting)
    assert "reconnecting" in repr(rc)
    results += [lost, *(view.apply_async(abs, -k) for k in (3, 4))]
    rc.session.submit.flush()
    scripted.run(same)
    hello = scripted.welcome()
    assert (hello.incarnation, hello.received) == (same, 0)
    firsts = []
    while len(firsts) < 3:
        message, _ = scripted.receive(m.Submit)
        firsts += [group.first + k for group in message.groups for k in range(group.count)]
    assert firsts == [1, 2, 3]
    assert scripted.receive(m.Ack)[0].received == 0
    scripted.finish(0, [1, 2, 3, 4])
    assert [result.get(5) for result in results] == [1, 2, 3, 4]
    wait_until(lambda: "reconnecting" not in repr(rc))


def test_another_run_is_told_what_is_open(rc, scripted):
    """Groups with open tasks come again with their functions, marked where tasks have ended."""
    view = rc.load_balanced_view()
    done = view.apply_async(abs, -5)
    scripted.receive(m.Submit)
    scripted.finish(0, [5])
    assert done.get(5) == 5
    half = view.map_async(lambda x: x + 1, range(4), chunksize=1)
    scripted.receive(m.Submit)
    scripted.finish(2, [2, 3])
    wait_until(lambda: half.progress == 2)
    scripted.die()
    wait_until(lambda: rc.session.reconnecting)
    later = view.apply_async(lambda x: x + 2, 1)
    rc.session.submit.flush()
    scripted.run()
    assert scripted.welcome().incarnation not in (b"", scripted.incarnation)
    again: list = []
    while sum(group[1] for group in again) < 5:
        message, frames = scripted.receive(m.Submit)
        again += groups(message)
        for group, parts in zip(message.groups, split(message, frames), strict=True):
            assert parts.function or group.function.frames == 0
    assert again == [(1, 4, b"\0\1\1\0"), (5, 1, b"")]
    payloads = Payloads(message.groups[-1].columns, parts.payload)
    assert unpack_call(payloads.pickle(0), ()) == ((1,), {})
    scripted.receive(m.Ack)
    # What it had already comes once more: it is not delivered again.
    scripted.finish(1, [1, -7, -7, 4])
    scripted.finish(5, [3])
    assert half.get(5) == [1, 2, 3, 4]
    assert later.get(5) == 3
    assert not rc.session.link.ledger.groups


def test_another_run_is_told_what_failed(rc, scripted):
    """A group that comes again brings along which tasks before it had failed."""
    view = rc.load_balanced_view()
    failed = view.apply_async(abs, -5)
    scripted.receive(m.Submit)
    scripted.finish(0, [m.ErrorInfo("ValueError", "no", [])])
    with pytest.raises(RemoteError):
        failed.get(5)
    with view.temp_flags(after=failed):
        view.apply_async(abs, -6)
    scripted.receive(m.Submit)
    scripted.die()
    scripted.run()
    scripted.welcome()
    [group] = scripted.receive(m.Submit)[0].groups
    assert (group.first, group.failed_before) == (1, [m.EndedRange(0, 1, m.FAILED)])


def test_nothing_open_is_said_too(rc, scripted):
    """A client with nothing to tell says so, so that nobody waits for it."""
    scripted.die()
    scripted.run()
    scripted.welcome()
    assert scripted.receive()[0] == m.Ack(0)
    wait_until(lambda: not rc.session.reconnecting)


def test_requests_are_asked_again(rc, scripted):
    """Open questions and harmless controls are asked anew; a signal is not sent twice."""
    status = rc.session.request(m.QueueStatus())
    clear = rc.session.control([0], m.ClearNamespace())
    signal = rc.session.control([0], m.SendSignal(2))
    scripted.receive(m.Request)
    scripted.die()
    scripted.run()
    scripted.welcome()
    assert scripted.receive()[0] == m.Ack(0)
    request, _ = scripted.receive(m.Request)
    control, _ = scripted.receive(m.Control)
    assert isinstance(control.action, m.ClearNamespace)
    with pytest.raises(KernelError, match="not known"):
        signal.result(5)
    scripted.send(m.Reply(request.request, b"x"))
    scripted.send(m.ControlReply(scripted.client[:16], control.request, 0))
    assert status.result(5)[0] == b"x"
    assert clear.result(5) is None


def test_cancelled_tasks_are_cancelled_again(rc, scripted):
    """A controller that has forgotten that tasks were aborted is told again, after the groups."""
    result = rc[0].apply_async(abs, -1)
    result.abort()
    scripted.receive(m.Cancel)
    scripted.die()
    scripted.run()
    scripted.welcome()
    kinds = [type(scripted.receive()[0]) for _ in range(3)]
    assert kinds == [m.Submit, m.Ack, m.Cancel]


def test_blocking_calls_go_on_waiting(rc, scripted):
    """A wait survives the controller's death; one with a limit ends in time meanwhile."""
    got = []
    result = rc[0].apply_async(abs, -1)
    thread = threading.Thread(target=lambda: got.append(result.get(20)))
    thread.start()
    scripted.receive(m.Submit)
    scripted.die()
    wait_until(lambda: rc.session.reconnecting)
    with pytest.raises(TimeoutError):
        rc[0].apply_async(abs, -2).get(0.05)
    scripted.run()
    scripted.welcome()
    while scripted.receive()[0] != m.Ack(0):
        assert thread.is_alive()
    scripted.finish(0, [1, 2])
    thread.join(10)
    assert got == [1]


def test_what_comes_before_the_welcome_is_dropped(rc, scripted):
    """Results that reach a new connection too early are not counted; they come again."""
    result = rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    same = scripted.incarnation
    scripted.die()
    scripted.run(same)
    hello, _ = scripted.receive(m.Hello)
    scripted.finish(0, [-7])
    scripted.answer(hello)
    scripted.finish(0, [1])
    assert result.get(5) == 1
    assert rc.session.wire.continuity.received.count == 1


def test_an_answer_to_an_earlier_greeting_counts_for_nothing(rc, scripted):
    """Where one connection followed the other quickly the controller answers both Hellos over the
    second: what follows the first answer comes again, and what the client has sent does not.
    """
    result = rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    same = scripted.incarnation
    hellos = []
    for _ in range(2):
        scripted.die()
        scripted.run(same)
        hellos.append(scripted.receive(m.Hello)[0])
    for hello in hellos:
        # As if the Submit was lost.
        scripted.answer(hello, received=0)
        scripted.send(m.EnginesChanged())
    scripted.finish(0, [1])
    assert result.get(5) == 1
    assert rc.session.wire.continuity.received.count == 2
    rc.session.request(m.QueueStatus())
    came = []
    while m.Request not in came:
        came.append(type(scripted.receive()[0]))
    assert came.count(m.Submit) == 1


def test_acknowledgements(rc, scripted):
    """Many messages are acknowledged at once, few after a second, and then there is silence."""
    result = rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    for _ in range(ACK_MESSAGES + 3):
        scripted.send(m.EnginesChanged())
    assert scripted.receive(m.Ack)[0].received == ACK_MESSAGES
    assert scripted.receive(m.Ack)[0].received == ACK_MESSAGES + 3
    scripted.finish(0, [1])
    assert result.get(5) == 1
    assert scripted.receive(m.Ack)[0].received == ACK_MESSAGES + 4
    with pytest.raises(TimeoutError):
        scripted.receive(timeout_s=1.5)


def test_acknowledged_messages_are_let_go(rc, scripted):
    """What the controller says it has is not kept any longer."""
    rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    sent = rc.session.wire.continuity.sent
    assert len(sent) == 1
    scripted.send(m.Ack(1))
    wait_until(lambda: len(sent) == 0)
    assert sent.n_bytes == 0


def test_many_submissions_while_away(rc, scripted):
    """More than a socket's queue holds may be submitted while there is no connection."""
    scripted.die()
    wait_until(lambda: rc.session.reconnecting)
    count = 1500
    results = []
    for k in range(count):
        results.append(rc[0].apply_async(abs, -k))
        rc.session.submit.flush()
    same = scripted.incarnation
    scripted.run(same)
    scripted.welcome()
    seen = []
    while len(seen) < count:
        message, _ = scripted.receive(m.Submit)
        seen += [group.first + k for group in message.groups for k in range(group.count)]
    assert seen == list(range(count))
    scripted.finish(0, list(range(count)))
    assert [result.get(5) for result in results] == list(range(count))


def test_large_arguments_survive(rc, scripted):
    """A buffer that travels by itself is there in the second submission, too."""
    data = bytes(range(250)) * 400
    rc[0].apply_async(len, data)
    scripted.receive(m.Submit)
    scripted.die()
    scripted.run()
    scripted.welcome()
    _, frames = scripted.receive(m.Submit)
    assert data in frames


def test_a_message_that_was_cut_in_two_comes_again_whole(rc, scripted):
    """A connection that breaks while a message leaves lets its sender go; then it is sent anew."""
    size = 20_000_000
    results = []
    thread = threading.Thread(target=lambda: results.append(rc[0].apply_async(len, bytes(size))))
    thread.start()
    wait_until(scripted.end.has_news)
    same = scripted.incarnation
    scripted.die()
    thread.join(5)
    assert not thread.is_alive()
    scripted.run(same)
    scripted.welcome()
    message, frames = scripted.receive(m.Submit)
    assert groups(message) == [(0, 1, b"")]
    assert sum(map(len, frames)) > size
    scripted.finish(0, [size])
    assert results[0].get(5) == size


def test_a_controller_that_does_not_come_back(scripted):
    """After the limit everything outstanding fails, and every call says why."""
    with contextlib.closing(connect(scripted, reconnect_timeout=0.3)) as rc:
        result = rc[0].apply_async(abs, -1)
        request = rc.session.request(m.QueueStatus())
        scripted.receive(m.Request)
        scripted.die()
        with pytest.raises(KernelError, match=r"connection to the controller .* is lost"):
            result.get(10)
        with pytest.raises(KernelError, match="is lost"):
            request.result(5)
        with pytest.raises(ClientClosed, match="make a new Client"):
            rc[0].apply_async(abs, -1)
        assert rc.closed


# Over a network another host could take its place.
@pytest.mark.parametrize("make_end", ["local"], indirect=True)
def test_a_dead_controller_that_nobody_restarts(scripted):
    """Where nobody promised to start it again, the death of the controller is an error at once."""
    scripted.info.recover_s = 0.0
    with contextlib.closing(connect(scripted)) as rc:
        result = rc[0].apply_async(abs, -1)
        scripted.receive(m.Submit)
        rc.session.info.pid_start = 1.0
        scripted.die()
        with pytest.raises(KernelError, match="has died"):
            result.get(10)


def test_closing_is_never_waited_for(rc, scripted):
    """A controller that says that it closes is not expected back."""
    result = rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    scripted.send(m.Closing("enough"))
    with pytest.raises(KernelError, match="enough"):
        result.get(5)
    scripted.die()
    assert rc.closed
    assert not rc.session.reconnecting


def test_a_refusal_ends_the_wait(rc, scripted):
    """A controller that does not want the client back ends its session."""
    result = rc[0].apply_async(abs, -1)
    scripted.receive(m.Submit)
    scripted.die()
    scripted.run()
    scripted.receive(m.Hello)
    scripted.send(m.Refused("not you"))
    with pytest.raises(KernelError, match="not you"):
        result.get(5)


def test_closing_a_client_that_waits(rc, scripted):
    """A client can be closed while its controller is away, at once."""
    scripted.die()
    wait_until(lambda: rc.session.reconnecting)
    started = time.monotonic()
    rc.close()
    assert time.monotonic() - started < 3
