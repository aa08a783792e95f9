"""Comms of an engine: whose output they are, and what a front end says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from ipyfleet_engine import comms
from ipyfleet_engine.comms import CommDesk, CommOwners
from ipyfleet_engine.kernel import FleetKernel
from ipyfleet_engine.output import OutputBatch, OutputCollector, TaskOutput
from ipyfleet_engine.session import FleetSession
from ipyfleet_protocol.messages import CommMessage

CLIENT, OTHER = b"c" * 16, b"o" * 16


def make_session() -> tuple[FleetSession, OutputCollector]:
    """Return a session that knows which task opened which comm, and where it publishes."""
    session = FleetSession()
    session.collector = OutputCollector()
    session.owners = CommOwners()
    return session, session.collector


def kinds(batches: list[OutputBatch]) -> list[tuple[bytes, int, int, str]]:
    """Return client, task, index and kind of each item."""
    return [(b.client, i.seq, i.index, i.kind) for b in batches for i in b.items]


def test_a_comm_belongs_to_the_task_that_opened_it() -> None:
    """Whoever says something over it later: it is that task's output, its indices go on."""
    session, collector = make_session()
    opener = collector.begin(CLIENT, 0)
    session.send(None, "comm_open", {"comm_id": "a"})
    assert kinds(collector.finish(opener)) == [(CLIENT, 0, 0, "comm_open")]
    collector.begin(OTHER, 0)
    session.send(None, "comm_msg", {"comm_id": "a"})
    session.send(None, "comm_close", {"comm_id": "a"})
    session.send(None, "comm_msg", {"comm_id": "a"})
    assert kinds(collector.drain(1 << 20)) == [
        (CLIENT, 0, 1, "comm_msg"),
        (CLIENT, 0, 2, "comm_close"),
        (OTHER, 0, 0, "comm_msg"),
    ]
    assert session.owners is not None and len(session.owners) == 0


def test_widgets_are_up_to_date_when_the_task_that_changed_them_ends() -> None:
    """What a task says over an older comm of its client leaves with its own output."""
    session, collector = make_session()
    opener = collector.begin(CLIENT, 0)
    session.send(None, "comm_open", {"comm_id": "a"})
    collector.finish(opener)
    later = collector.begin(CLIENT, 1)
    session.send(None, "comm_msg", {"comm_id": "a"})
    session.send(None, "display_data", {})
    assert kinds(collector.finish(later)) == [
        (CLIENT, 0, 1, "comm_msg"),
        (CLIENT, 1, 0, "display_data"),
    ]


class Visits:
    """Takes visits, and makes them when asked to: the runner of an idle engine."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def make(self) -> None:
        """Make all visits."""
        while self.waiting:
            asyncio.run(self.waiting.pop(0)())


@pytest.fixture
def desk(kernel: FleetKernel) -> tuple[CommDesk, Visits]:
    """A desk of the kernel."""
    visits = Visits()
    return CommDesk(kernel, visits.waiting.append), visits


def say(kind: Any, comm_id: str, **data: Any) -> CommMessage:
    """Return what a front end says."""
    content = {"comm_id": comm_id, "data": data, "metadata": {"version": "2"}}
    return CommMessage(0, CLIENT, kind, msgspec.msgpack.encode(content))


def open_comm(kernel: FleetKernel, comm_id: str) -> tuple[Any, TaskOutput]:
    """Open a comm in a task; return both."""
    from comm import create_comm

    task = kernel.collector.begin(CLIENT, 7)
    comm = create_comm(target_name="test", comm_id=comm_id)
    kernel.collector.finish(task)
    return comm, task


def test_a_message_reaches_the_comm_with_its_buffers(
    kernel: FleetKernel, desk: tuple[CommDesk, Visits]
) -> None:
    """Not before the main thread has time; what the handler prints is the opening task's."""
    comm, task = open_comm(kernel, "reaches")
    heard: list[Any] = []

    def hear(message: Any) -> None:
        heard.append((message["content"]["data"], message["metadata"], message["buffers"]))
        kernel.collector.write("stdout", "heard")
        comm.send({"answer": 1})

    comm.on_msg(hear)
    desk[0].receive(say("comm_msg", "reaches", x=1), [memoryview(b"buffer")])
    assert heard == []
    kernel.collector.begin(OTHER, 0)
    desk[1].make()
    assert heard == [({"x": 1}, {"version": "2"}, [b"buffer"])]
    assert kinds(kernel.collector.drain(1 << 20)) == [
        (CLIENT, 7, 1, "stdout"),
        (CLIENT, 7, 2, "comm_msg"),
    ]
    comm.close()
    kernel.collector.finish(task)


def test_the_front_end_closes(kernel: FleetKernel, desk: tuple[CommDesk, Visits]) -> None:
    """The kernel and the list of owners forget a comm that the front end has closed."""
    _, task = open_comm(kernel, "closes")
    before = len(kernel.comm_owners)
    desk[0].receive(say("comm_close", "closes"), [])
    desk[1].make()
    assert "closes" not in kernel.comm_manager.comms
    assert len(kernel.comm_owners) == before - 1
    assert kernel.collector.finish(task) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_handler_that_fails_harms_nobody(
    kernel: FleetKernel, desk: tuple[CommDesk, Visits], error: type[BaseException]
) -> None:
    """The next message is handled."""
    comm, _ = open_comm(kernel, "fails")
    heard: list[int] = []

    def hear(message: Any) -> None:
        heard.append(1)
        raise error

    comm.on_msg(hear)
    for _ in range(2):
        desk[0].receive(say("comm_msg", "fails"), [])
    desk[1].make()
    assert heard == [1, 1]
    comm.close()
    kernel.collector.drain(1 << 20)


@pytest.mark.parametrize("content", [b"", b"\x01", msgspec.msgpack.encode({"data": 1})])
def test_nonsense_is_dropped(
    kernel: FleetKernel, desk: tuple[CommDesk, Visits], content: bytes
) -> None:
    """Clients may say anything."""
    desk[0].receive(CommMessage(0, CLIENT, "comm_msg", content), [])
    desk[1].make()
    assert not kernel.collector


def test_what_waits_is_bounded(
    kernel: FleetKernel, desk: tuple[CommDesk, Visits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that runs for hours lets messages wait up to a number of bytes."""
    monkeypatch.setattr(comms, "WAITING_MAX_BYTES", 2000)
    for _ in range(10):
        desk[0].receive(say("comm_msg", "none"), [])
    assert 0 < len(desk[1].waiting) < 4
    desk[1].make()
    desk[0].receive(say("comm_msg", "none"), [])
    assert len(desk[1].waiting) == 1
    desk[1].make()
