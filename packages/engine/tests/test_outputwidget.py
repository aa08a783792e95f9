"""Output widgets: what is printed in their block becomes their state."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipyfleet_engine import outputwidget
from ipyfleet_engine.comms import CommOwners
from ipyfleet_engine.output import OutputCollector, TaskOutput
from ipyfleet_engine.outputwidget import OutputWidgets
from ipyfleet_engine.session import FleetSession

CLIENT = b"c" * 16


class Engine:
    """A session with an Output widget, `w`, that a task has opened."""

    def __init__(self) -> None:
        self.session = FleetSession()
        self.collector = self.session.collector = OutputCollector()
        self.session.owners = CommOwners()
        self.session.output_widgets = OutputWidgets(self.session.say_state)
        self.task = self.collector.begin(CLIENT, 0)
        self.open("w")
        self.items()

    def open(self, comm: str) -> None:
        data = {"state": {"_model_name": "OutputModel"}}
        self.session.send(None, "comm_open", {"comm_id": comm, "data": data})

    def block(self, comm: str, msg_id: str) -> None:
        """What the widget says at the beginning and, with no id, at the end of a block."""
        self.session.say_state(comm, {"msg_id": msg_id})

    def items(self) -> list[tuple[int, str, Any]]:
        """Task, kind and content of what would be sent; text and states instead of content."""
        found = []
        for batch in self.collector.drain(1 << 30):
            for item in batch.items:
                if item.kind in ("stdout", "stderr"):
                    content: Any = item.content.decode()
                else:
                    content = msgspec.msgpack.decode(item.content)
                    content = content.get("data", {}).get("state", content)
                found.append((item.seq, item.kind, content))
        return found


@pytest.fixture
def engine() -> Engine:
    """An engine that runs the task that has opened the widget."""
    return Engine()


def test_a_block_is_told_at_its_end(engine: Engine) -> None:
    """Before and after it text is the task's; the page need not know the ids of our requests."""
    engine.collector.write("stdout", "before")
    engine.block("w", "request")
    engine.collector.write("stdout", "in")
    engine.collector.write("stdout", "side")
    engine.collector.write("stderr", "e")
    engine.session.send(None, "display_data", {"data": {"text/plain": "d"}, "metadata": {}})
    engine.block("w", "")
    engine.collector.write("stdout", "after")
    shown = [
        {"output_type": "stream", "name": "stdout", "text": "inside"},
        {"output_type": "stream", "name": "stderr", "text": "e"},
        {"output_type": "display_data", "data": {"text/plain": "d"}, "metadata": {}},
    ]
    assert engine.items() == [
        (0, "stdout", "before"),
        (0, "comm_msg", {"outputs": shown}),
        (0, "stdout", "after"),
    ]
    assert engine.collector.task is engine.task


def test_a_later_task_writes_into_the_widget_of_the_first(engine: Engine) -> None:
    """The widget's state goes where the widget is."""
    engine.collector.begin(CLIENT, 1)
    engine.block("w", "request")
    engine.collector.write("stdout", "x")
    engine.block("w", "")
    assert [(seq, kind) for seq, kind, _ in engine.items()] == [(0, "comm_msg")]


def test_clearing_may_wait_over_blocks(engine: Engine) -> None:
    """Until something is shown in its place."""
    for text, wait in (("old", True), ("new", False)):
        engine.block("w", "request")
        engine.collector.write("stdout", text)
        engine.session.send(None, "clear_output", {"wait": wait})
        engine.block("w", "")
    states = [state["outputs"] for _, _, state in engine.items()]
    assert [[o["text"] for o in outputs] for outputs in states] == [["old"], []]


def test_displays_are_updated_in_place(engine: Engine) -> None:
    """By their display id."""
    engine.block("w", "request")
    content = {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "d"}}
    engine.session.send(None, "display_data", content)
    engine.session.send(None, "update_display_data", {**content, "data": {"text/plain": "2"}})
    engine.block("w", "")
    [(_, _, state)] = engine.items()
    assert [o["data"] for o in state["outputs"]] == [{"text/plain": "2"}]


def test_blocks_in_blocks(engine: Engine) -> None:
    """The inner one takes its own; comms and data are nobody's text."""
    engine.open("inner")
    engine.block("w", "request")
    engine.collector.write("stdout", "1")
    engine.block("inner", "request")
    engine.collector.write("stdout", "2")
    engine.session.send(None, "comm_open", {"comm_id": "other", "data": {}})
    engine.collector.publish("data", {"a": 1})
    engine.block("inner", "")
    engine.collector.write("stdout", "3")
    engine.block("w", "")
    items = engine.items()
    assert {seq for seq, _, _ in items} == {0}
    texts = [c["outputs"][0]["text"] for _, _, c in items if "outputs" in c]
    assert [kind for _, kind, _ in items[1:3]] == ["comm_open", "data"] and texts == ["2", "13"]


def test_long_blocks_are_told_now_and_then(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a widget keeps the end of what is printed without end."""
    monkeypatch.setattr(outputwidget, "UPDATE_S", 0.0)
    monkeypatch.setattr(outputwidget, "OUTPUTS_MAX_CHARS", 5)
    engine.block("w", "request")
    for text in ("abc", "defg"):
        engine.collector.write("stdout", text)
    states = [state["outputs"][0]["text"] for _, _, state in engine.items()]
    assert states == ["abc", "cdefg"]


def test_other_widgets_and_frontends_are_left_alone(engine: Engine) -> None:
    """A widget of another model may have such a state; a bound kernel's page knows our requests."""
    engine.session.say_state("slider", {"msg_id": "request"})
    assert engine.collector.task is engine.task

    class Request(TaskOutput):
        seen: list[str] = []  # noqa: RUF012
        sink = property(lambda self: self)  # type: ignore[assignment]

        def publish(self, kind: str, *args: Any) -> None:
            self.seen.append(kind)

    engine.collector.task = request = Request(b"", -1)
    engine.open("theirs")
    engine.block("theirs", "request")
    assert engine.collector.task is request and request.seen == ["comm_open", "comm_msg"]
