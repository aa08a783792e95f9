"""The session's state, its ledger and its stores, without any I/O."""

import gc
import math
import weakref

import pytest

from ipyfleet_client import link as link_module
from ipyfleet_client.ledger import Ledger
from ipyfleet_client.link import ClientLink, CloseSession, FinishWork, Joined, RefuseSession
from ipyfleet_client.pending import PENDING, Work
from ipyfleet_protocol import messages as m
from ipyfleet_protocol import table
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import PayloadWriter, float64_column, uint32_column
from ipyfleet_protocol.errors import ProtocolError, TaskAborted
from ipyfleet_protocol.serialize import pack

INSTANCE = bytes(16)
NOW = 1000.0


def results(first, values, *, status=None, outputs=b"", engine=0):
    """A Results message with one slice."""
    writer = PayloadWriter()
    for value in values:
        writer.append(value if isinstance(value, bytes) else pack(value).pickle)
    columns, frames = writer.finish()
    count = len(values)
    piece = m.ResultSlice(
        first,
        count,
        0,
        first,
        status or bytes(count),
        float64_column([NOW - 2] * count),
        float64_column([NOW - 1] * count),
        outputs,
        columns,
    )
    return m.Results(bytes(16), engine, [piece]), frames


def outstanding(link, first, count):
    """A work whose tasks have been sent with these seqs."""
    work = Work(count, method="apply", name="f", submitted=NOW - 3)
    link.ledger.add(first, count, work, 0)
    work.sent(0, first, count)
    return work


@pytest.fixture
def link():
    """A link that has joined."""
    link = ClientLink(INSTANCE)
    engine = m.EngineInfo(3, bytes(16), "host", "name", 1)
    (joined,) = link.handle(m.Welcome(INSTANCE, engines=[engine], host="host"), (), NOW)
    assert isinstance(joined, Joined)
    return link


def test_welcome_tells_the_engines(link):
    """A Welcome brings the list of engines; one of another cluster is an error."""
    assert link.joined
    assert link.engines.ids == (3,)
    with pytest.raises(ProtocolError):
        ClientLink(INSTANCE).handle(m.Welcome(b"x" * 16), (), NOW)


def test_every_message_to_clients_is_handled(link):
    """The link takes every message that the table says a client receives, and no other."""
    samples = {
        m.Welcome: m.Welcome(INSTANCE),
        m.Refused: m.Refused("no"),
        m.Probe: m.Probe(),
        m.Ack: m.Ack(0),
        m.Closing: m.Closing(),
        m.Results: m.Results(bytes(16), 0, []),
        m.Output: m.Output(bytes(16), 0, []),
        m.EnginesChanged: m.EnginesChanged(),
        m.ControlReply: m.ControlReply(bytes(16), 1, 0),
        m.Reply: m.Reply(1),
    }
    received = {entry.message for entry in table.TABLE if "client" in entry.receivers}
    assert set(samples) == received
    for sample in samples.values():
        link.handle(sample, (), NOW)
    with pytest.raises(ProtocolError, match="Submit"):
        link.handle(m.Submit([]), (), NOW)


def test_refusal_and_closing_are_effects(link):
    """A refusal tells whether the session had begun; closing carries its reason."""
    assert link.handle(m.Refused("no"), (), NOW) == (RefuseSession("no", True),)
    assert link.handle(m.Closing("bye"), (), NOW) == (CloseSession("bye"),)


def test_a_slice_may_span_many_works(link):
    """One slice of results ends single calls and parts of maps alike."""
    singles = [outstanding(link, seq, 1) for seq in range(3)]
    many = outstanding(link, 3, 4)
    effects = link.handle(*results(0, [0, 10, 20, 30, 40]), NOW)
    assert effects == [FinishWork(work) for work in singles]
    assert [work.value(0) for work in singles] == [0, 10, 20]
    assert (many.value(0), many.value(1), many.status[2]) == (30, 40, PENDING)
    assert link.ledger.outstanding == 2
    assert link.handle(*results(5, [50, 60]), NOW) == [FinishWork(many)]
    assert many.values() == [30, 40, 50, 60]
    assert link.ledger.outstanding == 0


def test_a_repeated_result_changes_nothing(link):
    """The first result of a task counts; a later one is dropped."""
    work = outstanding(link, 0, 3)
    link.handle(*results(1, ["first"]), NOW)
    link.handle(*results(0, ["a", "second", "c"]), NOW)
    assert work.values() == ["a", "first", "c"]
    assert link.handle(*results(0, ["x", "y", "z"]), NOW) == []
    assert link.ledger.outstanding == 0


def test_failures_are_counted_and_told(link):
    """A task that ended without a value has an exception in its place."""
    work = outstanding(link, 0, 2)
    info = encode_part(m.ErrorInfo("TaskAborted", "cancelled", [], own=True))
    link.handle(*results(0, [1, info], status=bytes((m.OK, m.ABORTED)), engine=-1), NOW)
    assert work.failures == 1
    assert isinstance(work.values()[1], TaskAborted)


def test_late_output_is_awaited(link):
    """A work that is done knows that output of it is still on its way."""
    work = outstanding(link, 0, 2)
    link.handle(*results(0, [1, 2], outputs=uint32_column([0, 2])), NOW)
    assert work.uncounted_outputs == 1
    for index in range(2):
        item = m.OutputItem(1, index, "stdout", b"x")
        link.handle(m.Output(bytes(16), 0, [item]), (), NOW)
    assert work.uncounted_outputs == 0
    assert not link.late
    assert work.outputs[1].text("stdout") == "xx"


def test_output_after_the_end_is_kept(link):
    """What a thread prints after its task has ended is added while somebody holds the result."""
    work = outstanding(link, 0, 2)
    link.handle(*results(0, [1, 2]), NOW)
    assert work.done
    link.handle(m.Output(bytes(16), 0, [m.OutputItem(1, 0, "stdout", b"after")]), (), NOW)
    assert work.outputs[1].text("stdout") == "after"


def test_results_that_nobody_holds_are_not_kept_for_late_output(link):
    """A link refers weakly to works that are done."""
    work = weakref.ref(outstanding(link, 0, 1))
    link.handle(*results(0, [1]), NOW)
    assert work() is None
    item = m.OutputItem(0, 0, "stdout", b"after")
    assert link.handle(m.Output(bytes(16), 0, [item]), (), NOW) == []


def test_output_for_nobody_is_dropped(link):
    """Output of a task that nobody knows is ignored."""
    assert link.handle(m.Output(bytes(16), 0, [m.OutputItem(9, 0, "stdout", b"")]), (), NOW) == []


def test_a_message_that_contradicts_itself(link):
    """Frames that are not as announced are a ProtocolError."""
    outstanding(link, 0, 1)
    message, frames = results(0, [1])
    with pytest.raises(ProtocolError):
        link.handle(message, [*frames, b"more"], NOW)


def test_times_of_tasks_that_never_ran(link):
    """NaN on the wire is None."""
    work = outstanding(link, 0, 1)
    message, frames = results(0, [1])
    message.slices[0].started = float64_column([math.nan])
    link.handle(message, frames, NOW)
    segment, position = work.locate(0)
    assert segment.times(position) == (None, NOW - 1)


def test_blobs_that_cannot_be_mapped_fail_one_value():
    """What a blob's mapping raises is raised for its value only."""

    def map_blob(handle):
        raise OSError("gone")

    link = ClientLink(INSTANCE, map_blob)
    work = outstanding(link, 0, 2)
    writer = PayloadWriter()
    writer.append(pack(1).pickle, [(encode_part(m.BlobHandle("x", 1)), True)])
    writer.append(pack(2).pickle)
    columns, frames = writer.finish()
    stamps = float64_column([NOW] * 2)
    piece = m.ResultSlice(0, 2, 0, 0, bytes(2), stamps, stamps, b"", columns)
    link.handle(m.Results(bytes(16), 0, [piece]), frames, NOW)
    with pytest.raises(OSError, match="gone"):
        work.value(0)
    assert work.value(1) == 2


def test_engines_come_and_go(link):
    """EnginesChanged is applied; what is known of a lost engine stays."""
    link.handle(m.EnginesChanged(joined=[m.EngineInfo(5, bytes(16), "h", "n", 2)]), (), NOW)
    assert link.engines.ids == (3, 5)
    link.handle(m.EnginesChanged(lost=[m.EngineLost(3, "killed")]), (), NOW)
    assert link.engines.ids == (5,)
    assert link.engines.uuid(3) == "00" * 16
    with pytest.raises(IndexError, match="killed"):
        link.engines.choose(3)


def test_ledger_finds_and_forgets():
    """The ledger finds tasks of single calls and of ranges, and keeps nothing of done works."""
    ledger = Ledger()
    works = []
    seq = 0
    for count in (1, 5, 1, 3):
        work = Work(count, method="apply", name="f", submitted=0)
        ledger.add(seq, count, work, 0)
        work.sent(0, seq, count)
        works.append(work)
        seq += count
    assert ledger.find(4) == (works[1], 3, 2)
    assert ledger.find(6) == (works[2], 0, 1)
    assert ledger.find(10) is None
    assert sorted(work.total for work in ledger.works()) == [1, 1, 3, 5]
    ledger.forget(works[1])
    assert ledger.find(4) is None
    assert ledger.find(8) == (works[3], 1, 2)


def test_works_that_are_followed_are_found_though_nobody_holds_them(link, monkeypatch):
    """So that their threads' text is shown; the last ones, up to a number of bytes of output."""
    monkeypatch.setattr(link_module, "FOLLOWED_BYTES", 2000)
    for seq in range(5):
        work = outstanding(link, seq, 1)
        text = m.OutputItem(seq, 0, "stdout", b"x" * 900)
        link.handle(m.Output(bytes(16), 0, [text]), [], NOW)
        link.handle(*results(seq, [b"\x80\x05N."], outputs=uint32_column([1])), NOW)
        link.follow(work)
        del work
    gc.collect()
    late = [m.OutputItem(seq, 1, "stdout", b"late") for seq in range(5)]
    assert [link._find_recent(seq) is not None for seq in range(5)] == [False] * 3 + [True] * 2
    link.handle(m.Output(bytes(16), 0, late), [], NOW)
    found = link._find_recent(4)
    assert found[0].outputs[found[1]].text("stdout").endswith("late")
    big = outstanding(link, 5, 1)
    link.handle(m.Output(bytes(16), 0, [m.OutputItem(5, 0, "stdout", b"x" * 9000)]), [], NOW)
    link.handle(*results(5, [b"\x80\x05N."], outputs=uint32_column([1])), NOW)
    link.follow(big)
    del big, found
    gc.collect()
    assert link._find_recent(5) is not None and link._find_recent(4) is None
