"""Kernel messages become output of tasks."""

from __future__ import annotations

import msgspec

from ipyfleet_engine.output import OutputCollector
from ipyfleet_engine.session import FleetSession


def make() -> tuple[FleetSession, OutputCollector]:
    """Return a session and where it publishes."""
    session = FleetSession()
    session.collector = OutputCollector()
    return session, session.collector


def test_messages_and_types_are_taken_alike() -> None:
    """Hooks of ipykernel send either a message or its type and content."""
    session, collector = make()
    task = collector.begin(b"c" * 16, 0)
    session.send(None, session.msg("display_data", {"data": {"a": "1"}}))
    session.send(None, "error", {"ename": "E"}, buffers=[b"x"])
    [batch] = collector.finish(task)
    assert [(i.kind, msgspec.msgpack.decode(i.content)) for i in batch.items] == [
        ("display_data", {"data": {"a": "1"}}),
        ("error", {"ename": "E"}),
    ]
    assert batch.frames == [b"x"]


def test_what_is_no_output_is_left_out() -> None:
    """Status messages and replies have no reader here."""
    session, collector = make()
    collector.begin(b"c" * 16, 0)
    sent = session.send(None, "status", {"execution_state": "busy"})
    assert sent["content"] == {"execution_state": "busy"} and not collector


def test_comm_metadata_travels_in_the_content() -> None:
    """The version of the widget protocol is in a comm_open's metadata."""
    session, collector = make()
    task = collector.begin(b"c" * 16, 0)
    session.send(None, "comm_open", {"comm_id": "1"}, metadata={"version": "2.1.0"})
    [batch] = collector.finish(task)
    content = msgspec.msgpack.decode(batch.items[0].content)
    assert content == {"comm_id": "1", "metadata": {"version": "2.1.0"}}


def test_content_that_msgpack_has_no_form_for_becomes_text() -> None:
    """A display hook may put anything into metadata."""
    session, collector = make()
    task = collector.begin(b"c" * 16, 0)
    session.send(None, "display_data", {"metadata": {"x": {1j}}})
    [batch] = collector.finish(task)
    assert "1j" in str(msgspec.msgpack.decode(batch.items[0].content))
