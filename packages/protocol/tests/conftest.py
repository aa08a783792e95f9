"""One valid example, or more, of every message, for all tests that walk the messages."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import PayloadWriter, float64_column, uint32_column
from ipyfleet_protocol.ids import new_peer_id

CLIENT, ENGINE, AGENT = new_peer_id(), new_peer_id(), new_peer_id()
DIGEST = bytes(range(16))
BLOB = encode_part(m.BlobHandle(f"{CLIENT.hex()}-7", 1 << 20))
ERROR = m.ErrorInfo("ValueError", "no ä", ["line", "line"], 2, ENGINE.hex(), "apply", b"pickle")
ERROR_BYTES = encode_part(ERROR)


class Sample(NamedTuple):
    """A message as it is sent."""

    message: m.Message
    frames: list[bytes]
    name: str


def _payloads(*payloads: tuple[bytes, list[tuple[bytes, bool]]]) -> tuple[m.Columns, list[bytes]]:
    writer = PayloadWriter()
    for pickle, buffers in payloads:
        writer.append(pickle, buffers)
    columns, frames = writer.finish()
    return columns, [bytes(frame) for frame in frames]


SMALL, SMALL_FRAMES = _payloads((b"abc", []), (b"", []), (b"defgh", []))
LARGE, LARGE_FRAMES = _payloads(
    (b"ab", [(b"x" * 300, False), (BLOB, True)]), (b"", []), (b"cde", [(b"", False)])
)
ONE, ONE_FRAMES = _payloads((b"one", []))
CODE, CODE_FRAMES = _payloads((b"print(1)", []))

NEW = m.Function(DIGEST, "f", True, "f", 2)
KNOWN = m.Function(DIGEST)
FUNCTION_FRAMES = [b"pickle of f", b"buffer of f"]

DIRECT = m.Options("map", "direct", [0, 3, 2], label="mine", host="h" * 32)
SHARED = m.Options("execute", "direct", [0, 1, 2, 3], shared=True, silent=True)
BALANCED = m.Options(retries=3, targets=[1, 2])
FAILED_BEFORE = [m.EndedRange(0, 2, m.FAILED), m.EndedRange(4, 1, m.ABORTED)]
AGAIN_OF = m.Options(resubmits=m.TaskRange(CLIENT, 4, 1))
WAITING = m.Options(
    after=m.Dependency([m.TaskRange(CLIENT, 0, 4), m.TaskRange(AGENT, 7, 1)], failure=True),
    follow=m.Dependency([m.TaskRange(CLIENT, 3, 1)], all=False),
    timeout_s=2.5,
    priority=-3,
    resources={"gpu": 1.0},
)


def _result(status: bytes, columns: m.Columns, outputs: bytes = b"") -> m.ResultSlice:
    count = len(status)
    times = float64_column([1.5] * count)
    return m.ResultSlice(5, count, 1, 40, status, times, times, outputs, columns)


FAILED, FAILED_FRAMES = _payloads((b"pickled value", []), (ERROR_BYTES, []), (ERROR_BYTES, []))
RUN = m.TaskSlice(CLIENT, 5, 3, 0, 7, "apply", False, False, "h", NEW, SMALL)
HELLO = m.Hello(1, "engine", ENGINE, b"i" * 16, "h", "farm7", 4711, "3.11", "0.1.0", AGENT, 3)
AGAIN = m.Hello(
    *msgspec.structs.astuple(HELLO)[:11],
    resources={"gpu": 1.0},
    packages={"numpy": "2.1.0"},
    incarnation=b"r" * 8,
    received=17,
    held=[m.HeldTasks(CLIENT, 5, 3, 40, 1)],
    next_ordinal=43,
)
JOINED = m.EngineInfo(3, ENGINE, "h", "farm7", 4711)
QUESTIONS: list[m.Question] = [
    m.QueueStatus([0, 1], True),
    m.FetchResults([f"{CLIENT.hex()}_1"], True),
    m.AwaitResults([f"{CLIENT.hex()}_1"]),
    m.FetchRequests([f"{CLIENT.hex()}_1"]),
    m.TaskHistory(),
    m.FindRecords(b"\x80", ["msg_id"]),
    m.PurgeRecords(None, [2]),
    m.ShutdownCluster([1], True),
    m.OnEngineStart(m.StartCall("f", [b"pickle", b"buffer"])),
    m.DetachClient(),
    m.ExplainTasks([f"{CLIENT.hex()}_1"]),
    m.Metrics(),
]
ACTIONS: list[m.ControlAction] = [
    m.ClearNamespace(),
    m.SendSignal(2),
    m.StopEngine(),
    m.PingEngine(),
    m.DumpStacks(True),
]

_PLAIN: list[m.Message] = [
    HELLO,
    AGAIN,
    m.Attach(1, b"i" * 16),
    m.Attach(1, b"i" * 16, b"r" * 8, 9),
    m.Attached(b"r" * 8, 9),
    m.Ack(1000),
    m.ResultsTaken(CLIENT, 12),
    m.CommMessage(3, CLIENT, "comm_msg", b"\x80"),
    m.Welcome(b"i" * 16, 3, [JOINED], "h", "/dev/shm/x", [m.StartCall("f", [b"p"])]),
    m.Welcome(b"i" * 16, incarnation=b"r" * 8, received=9, warnings=["numpy differs"]),
    m.Refused("wrong instance"),
    m.Goodbye("bye"),
    m.Probe(),
    m.Closing("stopped"),
    m.Recall(3, 9),
    m.Recalled(9, 3),
    m.Cancel([m.SeqRange(0, 5), m.SeqRange(9, 1)]),
    m.Cancel([m.SeqRange(0, 5)], True, True, 2.5),
    m.DropTasks(CLIENT, [m.PlacedRange(0, 5, 7, 1)], True),
    m.KillRunning(ENGINE, [m.PlacedRange(0, 5, 7)]),
    m.EnginesChanged([JOINED], [m.EngineLost(2, "killed by signal 9")], ["numpy differs"]),
    m.EngineExited(ENGINE, -9, "killed by signal 9"),
    m.SignalEngines([ENGINE, AGENT], 2),
    *[m.Control(7, [0, 1], action) for action in ACTIONS],
    *[m.EngineControl(CLIENT, 7, action) for action in ACTIONS],
    m.ControlReply(CLIENT, 7, 3, ERROR),
    m.ControlReply(CLIENT, 7, 3),
    m.EngineControl(CLIENT, 7, m.DumpStacks(True), ENGINE, 3),
    m.ControlReply(CLIENT, 7, 3, None, b"stacks"),
    *[m.Request(8, question) for question in QUESTIONS],
    m.Reply(8, b"\x80"),
    m.Reply(8, b"", ERROR),
]

_FRAMED: list[tuple[m.Message, list[bytes]]] = [
    (m.Submit([m.Group(5, 3, DIRECT, NEW, SMALL)]), FUNCTION_FRAMES + SMALL_FRAMES),
    (m.Submit([m.Group(5, 4, SHARED, None, CODE)]), CODE_FRAMES),
    (
        m.Submit([m.Group(5, 3, WAITING, NEW, SMALL, b"\1\0\2", FAILED_BEFORE, 2500)]),
        FUNCTION_FRAMES + SMALL_FRAMES,
    ),
    (
        m.Submit(
            [m.Group(5, 3, BALANCED, NEW, LARGE), m.Group(8, 1, AGAIN_OF, KNOWN, ONE)],
        ),
        FUNCTION_FRAMES + LARGE_FRAMES + ONE_FRAMES,
    ),
    (m.RunTasks([RUN]), FUNCTION_FRAMES + SMALL_FRAMES),
    (
        m.RunTasks(
            [
                m.TaskSlice(CLIENT, 5, 3, 0, 7, "map", False, False, "h", KNOWN, LARGE, True),
                m.TaskSlice(CLIENT, 9, 1, 2, 10, "execute", True, True, "", None, CODE),
            ]
        ),
        LARGE_FRAMES + CODE_FRAMES,
    ),
    (
        m.Results(CLIENT, 3, [_result(b"\0\1\2", FAILED, uint32_column([0, 2, 0]))]),
        FAILED_FRAMES,
    ),
    (
        m.Results(CLIENT, -1, [_result(b"\0\0\0", LARGE), _result(b"\2", ONE)]),
        LARGE_FRAMES + ONE_FRAMES,
    ),
    (
        m.Output(
            CLIENT,
            3,
            [
                m.OutputItem(5, 0, "stdout", b"hello"),
                m.OutputItem(5, 1, "display_data", b"\x80", 2),
                m.OutputItem(6, 0, "data", b"", 1, dropped_bytes=7, attempt=2),
            ],
        ),
        [b"a", b"b", b"c"],
    ),
]

SAMPLES = [
    Sample(message, frames, f"{type(message).__name__}-{number}")
    for number, (message, frames) in enumerate([*[(p, []) for p in _PLAIN], *_FRAMED])
]


@pytest.fixture(params=SAMPLES, ids=[sample.name for sample in SAMPLES])
def sample(request: pytest.FixtureRequest) -> Sample:
    """Each sample in turn."""
    return request.param


@pytest.fixture
def samples() -> list[Sample]:
    """All samples."""
    return SAMPLES
