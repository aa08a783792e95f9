"""Comms of engines, as the client keeps and mirrors them."""

import gc
import sys
import types
import weakref
from typing import ClassVar

import msgspec
import pytest

from ipyfleet_client import comms
from ipyfleet_client.comms import CommRelay, RelayComm
from ipyfleet_client.link import ClientLink, LoseEngines, ShowOutput
from ipyfleet_client.pending import Work
from ipyfleet_protocol import messages as m

INSTANCE = bytes(16)


def item(index, kind, content=None, seq=5, buffers=0):
    """An item of a task's output."""
    packed = content if isinstance(content, bytes) else msgspec.msgpack.encode(content or {})
    return m.OutputItem(seq, index, kind, packed, buffers)


def output(*items, engine=3):
    """What an engine sends."""
    return m.Output(bytes(16), engine, list(items))


@pytest.fixture
def link():
    """A link with an outstanding task, 5."""
    link = ClientLink(INSTANCE)
    work = Work(1, method="execute", name="f", submitted=0.0)
    link.ledger.add(5, 1, work, 0)
    work.sent(0, 5, 1)
    link.work = work
    return link


def relayed(effects):
    """What of the effects is to be handed on."""
    return [(e.kind, e.content) for e in effects if isinstance(e, RelayComm)]


def test_comms_are_handed_on_in_order_and_not_kept(link):
    """Over whichever channel the items come; the output keeps their place alone."""
    big = {"comm_id": "a", "data": {"x": "y" * 1000}}
    assert relayed(link.handle(output(item(1, "comm_msg", big)), (), 0.0)) == []
    effects = link.handle(output(item(0, "comm_open", {"comm_id": "a"})), (), 0.0)
    assert relayed(effects) == [("comm_open", {"comm_id": "a"}), ("comm_msg", big)]
    kept = link.work.outputs[0]
    assert kept.received == 2 and kept.items == [("comm_msg", {})] * 2


def test_buffers_are_handed_on(link):
    """They belong to the item that announces them."""
    opened = item(0, "comm_open", {"comm_id": "a"}, buffers=1)
    (effect,) = link.handle(output(opened), [memoryview(b"xyz")], 0.0)
    assert bytes(effect.content["buffers"][0]) == b"xyz"


def test_output_of_a_task_with_a_comm_is_taken_when_its_result_is_gone(link):
    """Until the comm is closed; then the client keeps nothing of it."""
    seen = []
    link.work.sinks = [lambda index, output: seen.append(index)]
    link.handle(output(item(0, "comm_open", {"comm_id": "a"})), (), 0.0)
    reference = weakref.ref(link.work)
    link.ledger.ended(5, 1, link.work)
    del link.work
    effects = link.handle(output(item(1, "stdout", b"later")), (), 0.0)
    assert [e.output.text("stdout") for e in effects if isinstance(e, ShowOutput)] == ["later"]
    del effects
    effects = link.handle(output(item(2, "comm_close", {"comm_id": "a"})), (), 0.0)
    assert relayed(effects) == [("comm_close", {"comm_id": "a"})]
    del effects
    gc.collect()
    assert reference() is None and len(link.comms) == 0
    assert link.handle(output(item(3, "stdout", b"too late")), (), 0.0) == []


def test_comms_go_on_when_a_break_has_cost_output(link):
    """What was on its way is lost; what comes afterwards does not wait for it."""
    link.handle(output(item(0, "comm_open", {"comm_id": "a"})), (), 0.0)
    link.handle(output(item(2, "comm_msg", {"comm_id": "a", "data": 2})), (), 0.0)
    link.forget_output(6)
    effects = link.handle(output(item(5, "comm_msg", {"comm_id": "a", "data": 5})), (), 0.0)
    assert [content["data"] for _, content in relayed(effects)] == [2, 5]
    effects = link.handle(output(item(6, "comm_msg", {"comm_id": "a", "data": 6})), (), 0.0)
    assert [content["data"] for _, content in relayed(effects)] == [6]


def test_lost_engines_lose_their_comms(link):
    """Those of others stay."""
    link.handle(output(item(0, "comm_open", {"comm_id": "a"})), (), 0.0)
    link.handle(output(item(0, "comm_open", {"comm_id": "b"}), engine=4), (), 0.0)
    effects = link.handle(m.EnginesChanged(lost=[m.EngineLost(3, "gone")]), (), 0.0)
    assert effects == [LoseEngines([3])] and len(link.comms) == 1


@pytest.mark.parametrize("content", [{}, {"comm_id": 1}, []])
def test_a_comm_without_id_is_ignored(link, content):
    """Engines run anybody's code."""
    assert relayed(link.handle(output(item(0, "comm_open", content)), (), 0.0)) == []


class Mirror:
    """A comm of a kernel, as the package `comm` has it."""

    made: ClassVar = []

    def __init__(self, **kwargs):
        self.opened = kwargs
        self.said = []
        Mirror.made.append(self)

    def send(self, **parts):
        self.said.append(parts["data"])

    def close(self, **parts):
        self.said.append("closed")

    def on_msg(self, callback):
        self.hear = callback

    def on_close(self, callback):
        self.hear_close = callback


@pytest.fixture
def relay(monkeypatch):
    """A relay in a kernel; `sent` and `forgotten` are what it has told."""
    module = types.ModuleType("comm")
    module.create_comm = Mirror
    monkeypatch.setitem(sys.modules, "comm", module)
    monkeypatch.setattr(comms, "in_kernel", lambda: True)
    monkeypatch.setattr(Mirror, "made", [])
    sent, forgotten = [], []
    relay = CommRelay(
        lambda message, frames: sent.append((message, list(frames))), forgotten.append
    )
    relay.sent, relay.forgotten = sent, forgotten
    return relay


def told(relay):
    """What engines were told: engine, kind, content, buffers."""
    decode = msgspec.msgpack.decode
    return [(s.engine, s.kind, decode(s.content), frames) for s, frames in relay.sent]


OPEN = {"comm_id": "a", "target_name": "jupyter.widget", "data": {"v": 1}, "metadata": {"v": 2}}


def test_both_sides_hear_each_other(relay):
    """The mirror has the id, the target, the data of the engine's comm; both ways with buffers."""
    relay.handle(RelayComm(3, "comm_open", OPEN))
    (mirror,) = Mirror.made
    assert mirror.opened == {**OPEN, "target_module": None, "buffers": None}
    relay.handle(RelayComm(3, "comm_msg", {"comm_id": "a", "data": {"w": 2}}))
    assert mirror.said == [{"w": 2}]
    mirror.hear({"content": {"comm_id": "a", "data": {"x": 3}}, "buffers": [memoryview(b"b")]})
    assert told(relay) == [(3, "comm_msg", {"comm_id": "a", "data": {"x": 3}}, [b"b"])]


def test_closing_from_either_side(relay):
    """The engine's word closes the mirror; the page's goes to the engine, and is the last."""
    for comm_id in ("a", "b"):
        relay.handle(RelayComm(3, "comm_open", {**OPEN, "comm_id": comm_id}))
    first, second = Mirror.made
    relay.handle(RelayComm(3, "comm_close", {"comm_id": "a"}))
    assert first.said == ["closed"] and len(relay) == 1 and relay.sent == []
    second.hear_close({"content": {"comm_id": "b", "data": {}}})
    assert [entry[:2] for entry in told(relay)] == [(3, "comm_close")]
    assert relay.forgotten == ["b"] and len(relay) == 0 and second.said == []


def test_mirrors_of_lost_engines_close(relay):
    """Nobody is told: there is no engine."""
    for engine, comm_id in ((3, "a"), (4, "b")):
        relay.handle(RelayComm(engine, "comm_open", {**OPEN, "comm_id": comm_id}))
    relay.lose([3])
    assert [mirror.said for mirror in Mirror.made] == [["closed"], []]
    assert len(relay) == 1 and relay.sent == []


def test_a_client_that_closes_says_so_to_both(relay):
    """The engines need not keep widgets that nobody can see."""
    relay.handle(RelayComm(3, "comm_open", OPEN))
    relay.close()
    assert Mirror.made[0].said == ["closed"]
    assert [entry[:2] for entry in told(relay)] == [(3, "comm_close")]


def test_messages_of_unknown_comms_are_ignored(relay):
    """The page may have closed one while the engine was talking."""
    relay.handle(RelayComm(3, "comm_msg", {"comm_id": "z"}))
    relay.handle(RelayComm(3, "comm_close", {"comm_id": "z"}))
    assert relay.sent == [] and Mirror.made == []


def test_without_a_kernel_there_is_no_mirror(relay, monkeypatch):
    """Nobody could see it."""
    monkeypatch.setattr(comms, "in_kernel", lambda: False)
    relay.handle(RelayComm(3, "comm_open", OPEN))
    assert Mirror.made == [] and len(relay) == 0
