"""Who receives while whom waits; Ctrl-C."""

import _thread
import asyncio
import operator
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent import futures

import pytest

from ipyfleet_client import Client, interrupts
from ipyfleet_client.poller import PlainPoller, make_poller
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.connection import save_connection_file
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_testing.interrupts import interrupt_when
from ipyfleet_testing.waiting import wait_until


@pytest.fixture(params=["local", "tcp"])
def make_end(request, ends):
    """What the controller listens with."""
    return ends[request.param]


@pytest.fixture(params=["leader", "plain"])
def anyhow(request, controller, monkeypatch):
    """A client with either kind of poller."""
    if request.param == "plain":
        monkeypatch.setattr("ipyfleet_client.io.make_poller", PlainPoller)
    client = Client(controller.info, timeout=5)
    yield client
    client.close()


def test_calls_work_with_either_poller(anyhow, controller):
    """Everything works where no user thread can receive by itself, too."""
    view = anyhow.load_balanced_view()
    assert view.apply_sync(operator.add, 1, 2) == 3
    assert view.map_sync(abs, range(500)) == list(range(500))
    ars = [view.apply_async(abs, -k) for k in range(300)]
    assert [ar.get(5) for ar in ars] == list(range(300))


def test_ctrl_c_ends_a_wait_at_once(anyhow, controller):
    """Ctrl-C in a blocking call raises, the result stays reachable, the client usable."""
    controller.paused.set()
    waiting = lambda: bool(anyhow.session.wire._waiters)  # noqa: E731
    thread = interrupt_when(waiting)
    with pytest.raises(KeyboardInterrupt):
        anyhow[0].apply_sync(abs, -7)
    thread.join(5)
    msg_id = anyhow.history[-1]
    controller.paused.clear()
    assert anyhow[0].apply_sync(abs, -1) == 1
    assert anyhow.get_result(msg_id).get(5) == 7


def test_ctrl_c_while_another_thread_leads(anyhow, controller):
    """Ctrl-C ends the wait of a thread that only follows."""
    controller.paused.set()
    values = []
    ar = anyhow[0].apply_async(abs, -1)
    leader = threading.Thread(target=lambda: values.append(ar.get(10)))
    leader.start()
    wire = anyhow.session.wire
    assert anyhow.session.link is not None
    thread = interrupt_when(lambda: len(wire._waiters) == 2)
    with pytest.raises(KeyboardInterrupt):
        anyhow[1].apply_sync(abs, -2)
    thread.join(5)
    controller.paused.clear()
    leader.join(5)
    assert values == [1]


def test_follower_becomes_leader(rc, controller):
    """When the thread that receives has what it wants, another one goes on."""
    controller.paused.set()
    first, second = rc[0].apply_async(abs, -1), rc[1].apply_async(abs, -2)
    values = []
    threads = [
        threading.Thread(target=lambda a=ar: values.append(a.get(10))) for ar in (first, second)
    ]
    for thread in threads:
        thread.start()
    assert rc.session.wire is not None
    controller.paused.clear()
    for thread in threads:
        thread.join(10)
    assert sorted(values) == [1, 2]


def test_results_arrive_while_nobody_waits(rc):
    """The I/O thread receives when no user thread does."""
    ar = rc[0].apply_async(abs, -1)
    arrived = threading.Event()
    ar.add_done_callback(lambda a: arrived.set())
    assert arrived.wait(5)


def test_io_thread_takes_over_after_a_wait(rc):
    """After a wait the I/O thread receives again."""
    for _ in range(20):
        rc[0].apply_sync(abs, -1)
        test_results_arrive_while_nobody_waits(rc)


def test_interrupts_do_no_harm(controller, directory):
    """Hundreds of Ctrl-C at arbitrary moments lose no result and break no message."""
    path = directory / "client.json"
    save_connection_file(path, controller.info)
    code = f"""
import signal, operator
from ipyfleet_client import Client
rc = Client({str(path)!r})
view = rc.load_balanced_view()
# The first call imports; importlib itself loses an interrupt that hits its bookkeeping.
view.apply_sync(operator.add, 1, 1)
signal.signal(signal.SIGALRM, lambda *a: signal.raise_signal(signal.SIGINT))
done = interrupted = 0
pending = []
def work():
    global done
    while True:
        assert view.apply_sync(operator.add, done, 1) == done + 1
        done += 1
        pending.append(view.apply_async(abs, -done))
for interrupted in range(150):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003 + 0.00001 * interrupted)
        work()
    except KeyboardInterrupt:
        pass
assert rc.wait(timeout=20), rc.outstanding
assert [ar.get(5) > 0 for ar in pending] == [True] * len(pending)
assert view.map_sync(abs, range(300)) == list(range(300))
assert rc.session.malformed == 0
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stdout == "fine\n", done.stderr


def test_held_interrupts_come_afterwards():
    """SIGINT inside `hold_interrupts` is noted, wakes, and raises at the end of the block."""
    woken = []
    reached = []

    def hold():
        with interrupts.hold_interrupts(lambda: woken.append(1)) as outer:
            with interrupts.hold_interrupts() as inner:
                signal.raise_signal(signal.SIGINT)
            reached.append(outer.noted and inner is outer)

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert reached == [True]
    assert woken == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_hold_nothing():
    """In another thread `hold_interrupts` changes nothing."""
    handlers = []

    def run():
        with interrupts.hold_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("make", [make_poller, PlainPoller])
def test_poller_wakes(make):
    """A poller returns when woken, also if that was before, and tells when the socket has news."""
    read, write = os.pipe()
    poller = make()
    poller.replace((read,))
    try:
        poller.wake()
        assert poller.wait(5) is False
        assert poller.wait(0) is False
        os.write(write, b"x")
        assert poller.wait(5) is True
    finally:
        poller.close()
        os.close(read)
        os.close(write)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")
def test_poller_hands_the_socket_over():
    """While a leader has the socket the I/O thread's wait does not see it."""
    read, write = os.pipe()
    poller = make_poller()
    poller.replace((read,))
    try:
        poller.take()
        os.write(write, b"x")
        assert poller.wait(0) is False
        poller.lead(5)
        poller.give_back()
        assert poller.wait(5) is True
        poller.wake_leader()
    finally:
        poller.close()
        os.close(read)
        os.close(write)
    poller.wake()


def test_main_thread_is_known():
    """The module knows which thread gets signals."""
    assert interrupts._main_thread == threading.main_thread().ident
    assert _thread.get_ident() == interrupts._main_thread


def test_what_is_buffered_while_another_thread_sends_is_sent(rc, controller):
    """The I/O thread goes on trying to send a call, however long another thread is at it."""
    controller.paused.set()
    wire, submit = rc.session.wire, rc.session.submit
    first = rc[0].apply_async(abs, -1)
    flush, outcomes = wire._flush, []

    def noting_flush(wait):
        outcomes.append(flush(wait))
        return outcomes[-1]

    wire._flush = noting_flush
    with submit._lock:
        second = rc[0].apply_async(abs, -2)
        wait_until(lambda: outcomes.count(False) >= 5)
    wait_until(lambda: True in outcomes)
    controller.paused.clear()
    assert [first.get(30), second.get(30)] == [1, 2]


def test_ctrl_c_right_before_a_wait_leaves_no_trace(rc):
    """A wait that Ctrl-C ends before it has begun is forgotten."""

    class Interrupted(list):
        def append(self, value):
            super().append(value)
            raise KeyboardInterrupt

    wire = rc.session.wire
    wire._waiters = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        wire.wait_until(lambda: False)
    assert not wire._waiters
    wire._waiters = []


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs a thread that leads")
def test_calls_made_while_the_session_ends_end(rc, controller):
    """Calls that are buffered when the controller closes fail, without a close of the client."""
    controller.paused.set()
    wire = rc.session.wire
    waiting, go_on = threading.Event(), threading.Event()
    first = rc[0].apply_async(abs, -1)
    with futures.ThreadPoolExecutor() as threads:
        told = threads.submit(first.exception, 60)  # this thread receives
        wait_until(lambda: wire._leader_thread)
        wire.call_soon(lambda: (waiting.set(), go_on.wait(60)))
        try:
            assert waiting.wait(30)
            second = rc[0].apply_async(abs, -2)
            controller.send_all(m.Closing("maintenance"))
            assert "maintenance" in str(told.result(30))
            assert not second.done()
            with pytest.raises(ClientClosed):
                rc[0].apply_async(abs, -3)
        finally:
            go_on.set()
    futures.wait([second], 30)
    assert second.done() and "maintenance" in str(second.exception())


def test_a_loop_that_is_closed_is_not_told(rc):
    """News for a coroutine whose event loop has just been closed harm no thread that receives."""
    wire, taken = rc.session.wire, []

    def take():
        """Take hold of what waits, as a thread does that receives."""
        taken.extend(wire._notices)

    loop = asyncio.new_event_loop()
    with pytest.raises(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(rc.session.until(take), 0.01))
    loop.close()
    assert not wire._notices
    taken[0].callback()
