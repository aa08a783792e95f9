"""What the codec promises a receiver: each contradiction in a message is refused."""

from __future__ import annotations

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.checks import MAX_SEQ
from ipyfleet_protocol.codec import decode, decode_part, encode, encode_part, split
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.errors import ProtocolError

PEER = bytes(16)
FUNCTION = m.Function(PEER)
COLUMNS = m.Columns(uint32_column([1, 2]))
GROUP = m.Group(0, 2, m.Options(), FUNCTION, COLUMNS)
RUN = m.TaskSlice(PEER, 0, 2, 0, 0, "apply", False, False, "", FUNCTION, COLUMNS)
TIMES = float64_column([0, 0])
RESULT = m.ResultSlice(0, 2, 0, 0, b"\0\1", TIMES, TIMES, b"", COLUMNS)
HELLO = m.Hello(1, "client", PEER, PEER, "h", "farm7", 1, "3.11", "0.1.0")
ITEM = m.OutputItem(0, 0, "stdout", b"")


def change(struct: msgspec.Struct, **changes: object) -> msgspec.Struct:
    """Return a copy with other values; those of ``part__field`` in the part."""
    for name, value in changes.items():
        part, _, field = name.partition("__")
        inner = change(getattr(struct, part), **{field: value}) if field else value
        struct = msgspec.structs.replace(struct, **{part: inner})
    return struct


BAD_GROUPS = {
    "negative seq": {"first": -1},
    "seq too large": {"first": MAX_SEQ},
    "end too large": {"first": MAX_SEQ - 1},
    "no task": {"count": 0},
    "fewer tasks than sizes": {"count": 1},
    "more tasks than sizes": {"count": 3},
    "half a size": {"columns__sizes": bytes(9)},
    "counts of the wrong length": {"columns__buffer_counts": bytes(4)},
    "flags without buffers": {"columns__blobs": b"\0"},
    "flags of the wrong number": {
        "columns__buffer_counts": uint32_column([1, 1]),
        "columns__blobs": b"\0",
    },
    "an unknown flag": {
        "columns__buffer_counts": uint32_column([1, 0]),
        "columns__blobs": b"\2",
    },
    "no function": {"function": None},
    "a function to execute": {"options__method": "execute"},
    "a short digest": {"function__digest": b"short"},
    "negative function frames": {"function__frames": -1},
    "too many function frames": {"function__frames": 1 << 40},
    "direct without targets": {"options__placement": "direct"},
    "direct with too few targets": {"options__placement": "direct", "options__targets": [1]},
    "an empty list of targets": {"options__targets": []},
    "a negative target": {"options__targets": [-1]},
    "a target out of range": {"options__targets": [1 << 31]},
    "negative retries": {"options__retries": -1},
    "shared but not direct": {"options__shared": True},
    "a dependency on nothing": {"options__after": m.Dependency([])},
    "a dependency that nothing meets": {
        "options__follow": m.Dependency([m.TaskRange(PEER, 0, 1)], success=False)
    },
    "a dependency on a stranger's task": {"options__after": m.Dependency([m.TaskRange(b"", 0, 1)])},
    "a dependency on no task": {"options__after": m.Dependency([m.TaskRange(PEER, 0, 0)])},
    "a negative timeout": {"options__timeout_s": -1.0},
    "a priority out of range": {"options__priority": 1 << 40},
    "a negative resource": {"options__resources": {"gpu": -1.0}},
    "a nameless resource": {"options__resources": {"": 1.0}},
    "several tasks again": {"options__resubmits": m.TaskRange(PEER, 0, 2)},
    "a stranger's task again": {"options__resubmits": m.TaskRange(b"", 0, 1)},
    "ended of the wrong length": {"ended": b"\0"},
    "neither ended nor not": {"ended": b"\0\4"},
    "failed before nothing": {"failed_before": [m.EndedRange(0, 0, m.FAILED)]},
    "failed before, and later": {"failed_before": [m.EndedRange(0, 100, m.FAILED)]},
    "failed with a value": {"failed_before": [m.EndedRange(0, 1, m.OK)]},
    "negative waiting": {"waited_ms": -1},
}
BAD_RUNS = {
    "a stranger's id": {"client": b"short"},
    "negative seq": {"first": -1},
    "negative ordinal": {"ordinal": -1},
    "negative attempt": {"attempt": -1},
    "no function": {"function": None},
    "more tasks than sizes": {"count": 3},
    "endless tasks for one payload": {
        "shared": True,
        "count": 1 << 40,
        "columns": m.Columns(bytes(4)),
    },
}
BAD_RESULTS = {
    "negative seq": {"first": -1},
    "ordinal below none": {"ordinal": -2},
    "short status": {"status": b"\0"},
    "an unknown status": {"status": b"\0\4"},
    "short start times": {"started": bytes(8)},
    "short end times": {"completed": bytes(15)},
    "outputs of the wrong length": {"outputs": bytes(4)},
    "more tasks than sizes": {"columns": m.Columns(bytes(4))},
}
BAD = {
    **{f"Submit: {k}": m.Submit([GROUP, change(GROUP, **v)]) for k, v in BAD_GROUPS.items()},
    **{f"RunTasks: {k}": m.RunTasks([RUN, change(RUN, **v)]) for k, v in BAD_RUNS.items()},
    **{
        f"Results: {k}": m.Results(PEER, 0, [RESULT, change(RESULT, **v)])
        for k, v in BAD_RESULTS.items()
    },
    "Results: peer": m.Results(b"", 0, [RESULT]),
    "Results: engine": m.Results(PEER, -2, [RESULT]),
    "Results: number": m.Results(PEER, 0, [RESULT], -1),
    "ResultsTaken: peer": m.ResultsTaken(b"", 1),
    "ResultsTaken: number": m.ResultsTaken(PEER, -1),
    "Ack: received": m.Ack(-1),
    "Attach: incarnation": m.Attach(1, PEER, b"short"),
    "Attached: received": m.Attached(bytes(8), -1),
    "CommMessage: client": m.CommMessage(0, b"short", "comm_msg", b""),
    "CommMessage: engine": m.CommMessage(-1, PEER, "comm_msg", b""),
    "Hello: peer": change(HELLO, peer=b"short"),
    "Hello: agent": change(HELLO, agent=b"short"),
    "Hello: wanted id": change(HELLO, wanted_id=1 << 40),
    "Hello: pid": change(HELLO, pid=-1),
    "Hello: incarnation": change(HELLO, incarnation=b"short"),
    "Hello: received": change(HELLO, received=-1),
    "Hello: resources": change(HELLO, resources={"gpu": -1.0}),
    "Hello: held": change(HELLO, held=[m.HeldTasks(b"short", 0, 1, 0)]),
    "Hello: held count": change(HELLO, held=[m.HeldTasks(PEER, 0, 0, 0)]),
    "Hello: held ordinal": change(HELLO, held=[m.HeldTasks(PEER, 0, 1, -1)]),
    "Hello: held attempt": change(HELLO, held=[m.HeldTasks(PEER, 0, 1, 0, -1)]),
    "Hello: next ordinal": change(HELLO, next_ordinal=-1),
    "Welcome: incarnation": m.Welcome(PEER, incarnation=b"short"),
    "Welcome: peer": m.Welcome(PEER, engines=[m.EngineInfo(0, b"", "h", "n", 1)]),
    "EnginesChanged: peer": m.EnginesChanged([m.EngineInfo(0, b"", "h", "n", 1)]),
    "EnginesChanged: id": m.EnginesChanged([m.EngineInfo(-1, PEER, "h", "n", 1)]),
    "EngineExited: peer": m.EngineExited(b"", 0, ""),
    "EngineExited: status": m.EngineExited(PEER, 1 << 40, ""),
    "EngineExited: ordinal": m.EngineExited(PEER, 0, "", -2),
    "SignalEngines: peer": m.SignalEngines([PEER, b""], 2),
    "SignalEngines: signal": m.SignalEngines([PEER], 1 << 40),
    "Recall: last": m.Recall(0, MAX_SEQ),
    "Recalled: first": m.Recalled(-2, 0),
    "Cancel: count": m.Cancel([m.SeqRange(0, 0)]),
    "DropTasks: peer": m.DropTasks(b"", []),
    "Cancel: grace": m.Cancel([m.SeqRange(0, 1)], grace_s=-1.0),
    "DropTasks: first": m.DropTasks(PEER, [m.PlacedRange(-1, 1, 0)]),
    "DropTasks: ordinal": m.DropTasks(PEER, [m.PlacedRange(0, 1, -1)]),
    "KillRunning: peer": m.KillRunning(b"", []),
    "KillRunning: attempt": m.KillRunning(PEER, [m.PlacedRange(0, 1, 0, -1)]),
    "EngineControl: engine": m.EngineControl(PEER, 0, m.DumpStacks(), b"short"),
    "Output: peer": m.Output(b"", 0, []),
    "Output: seq": m.Output(PEER, 0, [change(ITEM, seq=-1)]),
    "Output: index": m.Output(PEER, 0, [change(ITEM, index=-1)]),
    "Output: buffers": m.Output(PEER, 0, [change(ITEM, buffers=-1)]),
    "Output: dropped": m.Output(PEER, 0, [change(ITEM, dropped_bytes=-1)]),
    "Control: request": m.Control(-1, [0], m.PingEngine()),
    "Control: target": m.Control(0, [-1], m.PingEngine()),
    "Control: signal": m.Control(0, [0], m.SendSignal(65)),
    "EngineControl: peer": m.EngineControl(b"", 0, m.PingEngine()),
    "ControlReply: peer": m.ControlReply(b"", 0, 0),
    "Request: number": m.Request(MAX_SEQ, m.TaskHistory()),
    "Reply: number": m.Reply(-1),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_contradiction(message: m.Message) -> None:
    """A message whose fields contradict one another, or are out of range, is refused."""
    with pytest.raises(ProtocolError):
        decode(encode(message))


@pytest.mark.parametrize(
    "message", [m.Submit([GROUP]), m.RunTasks([RUN]), m.Results(PEER, 0, [RESULT]), HELLO]
)
def test_the_good_ones_are_good(message: m.Message) -> None:
    """What the bad examples are made from is accepted, so each is refused for its one fault."""
    assert decode(encode(message)) == message


@pytest.mark.parametrize("packed", [b"", b"ab", b"abcd"])
def test_packed_frame_of_another_size(packed: bytes) -> None:
    """A packed frame that is not as long as its columns say is refused."""
    message = m.Submit([GROUP])
    assert [part.payload for part in split(message, [b"abc"])] == [[b"abc"]]
    with pytest.raises(ProtocolError, match="3 are announced"):
        split(message, [packed])


def test_parts() -> None:
    """A struct inside a payload comes back, and as another struct it is refused by name."""
    data = encode_part(m.BlobHandle("x", 5))
    assert decode_part(data, m.BlobHandle) == m.BlobHandle("x", 5)
    with pytest.raises(ProtocolError, match="not a ErrorInfo"):
        decode_part(data, m.ErrorInfo)
