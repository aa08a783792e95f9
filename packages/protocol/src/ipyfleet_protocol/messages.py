"""Every message that crosses a socket, as a typed struct.

What lives here: the structs, and nothing that sends, receives or decides. `table.py` says of each
message who sends it, who handles it and what it means; `codec.py` turns messages into frames and
back and checks what a type alone cannot say; `columns.py` reads and builds the packed columns.

Theory of operation
-------------------
A message on the wire is one **header** frame, the msgpack of one of the structs below, followed by
the **payload** frames that the header announces. Only headers are decoded on the way; payload
frames are forwarded as received and unpickled by nobody but the engine and the client.

Work travels in **groups**. What one call submits (a `map` of n items, one `apply`, one `execute` on
n engines) is a group: one function, one set of options, `count` tasks with contiguous sequence
numbers. Long maps are submitted as several groups, so that work starts while the rest is pickled;
separate calls that share function and options may be submitted as one group. The frames of a
group, of a slice of tasks on its way to an engine, and of a slice of results are laid out alike:

    [function frames]          `Function.frames` of them; only where the header has a function body
    [packed]                   the small pickles of all tasks, one after the other (may be empty)
    [buffer] [buffer] …        the large buffers of the first task, of the second, …

`Columns` says where one task's part starts and ends. A buffer from `blobs.BLOB_MIN_BYTES` on may be
in shared memory instead: its frame is then a `BlobHandle`. A message with several slices has their
frames one slice after the other, in the order of the header.

What the payload of a task is depends on `Options.method`:

    apply     pickle of ``(args, kwargs)`` (`serialize.pack_call`); the result is the pickled value
    map       the same, but ``args`` are sequences: the result is the pickled
              ``list(map(f, *args))``, the work of one engine's part of a direct map
    execute   the code as UTF-8; no function; the result is the msgpack of an `ExecuteInfo`

A failed task's payload is the msgpack of an `ErrorInfo`, whatever the method, so that the
controller can make one itself and read none.

**Ordinals.** The controller numbers the tasks that it places at one engine 0, 1, 2, … in the order
sent; an engine runs them in this order. A result names its ordinal, so it belongs to one attempt at
one engine without doubt; a recall is a range of ordinals.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .parts import ABORTED as ABORTED
from .parts import FAILED as FAILED
from .parts import OK as OK
from .parts import UNMET as UNMET
from .parts import BlobHandle as BlobHandle
from .parts import Columns as Columns
from .parts import CommKind as CommKind
from .parts import Dependency as Dependency
from .parts import EndedRange as EndedRange
from .parts import EngineInfo as EngineInfo
from .parts import EngineLost as EngineLost
from .parts import ErrorInfo as ErrorInfo
from .parts import ExecuteInfo as ExecuteInfo
from .parts import Function as Function
from .parts import Group as Group
from .parts import HeldTasks as HeldTasks
from .parts import Method as Method
from .parts import Options as Options
from .parts import OutputItem as OutputItem
from .parts import OutputKind as OutputKind
from .parts import PlacedRange as PlacedRange
from .parts import Placement as Placement
from .parts import ResultSlice as ResultSlice
from .parts import Role as Role
from .parts import SeqRange as SeqRange
from .parts import TaskRange as TaskRange
from .parts import TaskSlice as TaskSlice
from .questions import AwaitResults as AwaitResults
from .questions import DetachClient as DetachClient
from .questions import ExplainTasks as ExplainTasks
from .questions import FetchRequests as FetchRequests
from .questions import FetchResults as FetchResults
from .questions import FindRecords as FindRecords
from .questions import Metrics as Metrics
from .questions import OnEngineStart as OnEngineStart
from .questions import PurgeRecords as PurgeRecords
from .questions import Question as Question
from .questions import QueueStatus as QueueStatus
from .questions import ShutdownCluster as ShutdownCluster
from .questions import StartCall as StartCall
from .questions import TaskHistory as TaskHistory
from .structs import Message as Message
from .structs import Part as Part

PROTOCOL_VERSION = 3
"""Raised whenever a peer of the version before would misread a message."""

# -- session ----------------------------------------------------------------------------------


class Hello(Message, tag="Hello"):
    """The first message on a channel. A controller answers `Welcome` or `Refused`.

    Attributes:
        version: the sender's `PROTOCOL_VERSION`.
        role, peer: what the peer is, and its id.
        instance: the cluster instance (16 bytes) that the sender believes it talks to; from its
            connection file.
        host, hostname, pid: where it runs.
        python: e.g. "3.11"; release: the sender's ipyfleet version.
        agent: for an engine: the peer id of the agent that forked it, or empty.
        wanted_id: for an engine: the engine id it would like (an MPI rank), or that it had, or -1.
        resources: for an engine: what it has, such as ``{"gpu": 1}``.
        packages: versions of what both sides unpickle with, such as ``{"numpy": "2.1.0"}``.
        incarnation: the run of the controller that this peer was welcomed by last; empty for a
            peer that was never welcomed.
        received: counted messages (see `Ack`) received over this channel from that run.
        held: for an engine that was welcomed before: its tasks.
        next_ordinal: for such an engine: the ordinal after the last one that it has seen.
        greeting: a number that this peer has not used before over this channel; the answer has it,
            too. So one that was meant for an earlier connection, and what follows it, is known.
    """

    version: int
    role: Role
    peer: bytes
    instance: bytes
    host: str
    hostname: str
    pid: int
    python: str
    release: str
    agent: bytes = b""
    wanted_id: int = -1
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    packages: dict[str, str] = msgspec.field(default_factory=dict)
    incarnation: bytes = b""
    received: int = 0
    held: list[HeldTasks] = msgspec.field(default_factory=list)
    next_ordinal: int = 0
    greeting: int = 0


class Attach(Message, tag="Attach"):
    """An engine's TASK or OUTPUT channel is connected. Hello goes over CONTROL.

    Answered, with `Attached`, where `incarnation` is not empty.

    Attributes:
        incarnation, received, greeting: as in `Hello`.
    """

    version: int
    instance: bytes
    incarnation: bytes = b""
    received: int = 0
    greeting: int = 0


class Attached(Message, tag="Attached"):
    """A TASK or OUTPUT channel goes on after a break; fields as in `Welcome`."""

    incarnation: bytes
    received: int
    greeting: int = 0


class Ack(Message, tag="Ack"):
    """The sender has received so many counted messages over this channel.

    All messages are counted but those that make the session: Hello, Attach, Attached, Welcome,
    Refused, Goodbye, Probe, Closing and Ack itself. Each side keeps what it sent until the other
    has acknowledged it, and sends it again after a break.
    """

    received: int


class Welcome(Message, tag="Welcome"):
    """The peer is registered. An engine learns its id; a client the engines and where blobs are.

    Attributes:
        start_calls: for an engine: what it is to call before its first task (`OnEngineStart`).
        incarnation: names this run of the controller. A peer that sees another one than before
            knows that the controller has lost its memory, and says what it holds.
        received: counted messages (see `Ack`) that this run has received over this channel.
        warnings: what may go wrong because the two sides' versions differ, for people.
        greeting: that of the `Hello` which this answers.
    """

    instance: bytes
    engine_id: int = -1
    engines: list[EngineInfo] = msgspec.field(default_factory=list)
    host: str = ""
    blob_dir: str = ""
    start_calls: list[StartCall] = msgspec.field(default_factory=list)
    incarnation: bytes = b""
    received: int = 0
    warnings: list[str] = msgspec.field(default_factory=list)
    greeting: int = 0


class Refused(Message, tag="Refused"):
    """The peer may not join, or what it sent was refused; `reason` is for people."""

    reason: str


class Goodbye(Message, tag="Goodbye"):
    """A peer leaves on purpose. `reason` is for people."""

    reason: str = ""


class Probe(Message, tag="Probe"):
    """Controller to any peer: nothing to do; all it asks is whether it can be sent."""


class Closing(Message, tag="Closing"):
    """The controller is going away for good; agents and engines exit, clients close."""

    reason: str = ""


# -- work -------------------------------------------------------------------------------------


class Submit(Message, tag="Submit"):
    """A client submits groups. Frames: those of each group in turn."""

    groups: list[Group]


class RunTasks(Message, tag="RunTasks"):
    """The controller places tasks at an engine, over TASK. Frames: those of each slice in turn."""

    slices: list[TaskSlice]


class Results(Message, tag="Results"):
    """How tasks of one client ended. Frames: those of each slice in turn.

    From an engine (over TASK, or over CONTROL while user code runs) to the controller, which
    forwards header and frames to the client as they are. The controller makes such a message itself
    for tasks that end without an engine (`engine` -1).

    Attributes:
        number: from an engine: 1 for its first such message, and so on; 0 from the controller.
    """

    client: bytes
    engine: int
    slices: list[ResultSlice]
    number: int = 0


class ResultsTaken(Message, tag="ResultsTaken"):
    """The controller to an engine, over CONTROL: `client` has all its results up to `number`.

    Until then the engine keeps them, since a controller that dies loses what it was forwarding.
    """

    client: bytes
    number: int


class Recall(Message, tag="Recall"):
    """The controller wants back the tasks in ``first … last`` (ordinals) that have not started."""

    first: int
    last: int


class Recalled(Message, tag="Recalled"):
    """An engine gives back tasks ``first … last`` (ordinals): it will not run them.

    The answer to every `Recall`; ``first > last`` for "none".
    """

    first: int
    last: int


class Cancel(Message, tag="Cancel"):
    """A client takes back tasks: those that have not started end as `ABORTED`.

    Attributes:
        ranges: which.
        interrupt: one that runs gets KeyboardInterrupt; if it ends by an error then, it ends as
            `ABORTED` too.
        force: the engine of one that still runs `grace_s` later is killed and replaced by its
            agent; the task ends as `ABORTED`.
        grace_s: seconds.
    """

    ranges: list[SeqRange]
    interrupt: bool = False
    force: bool = False
    grace_s: float = 1.0


class DropTasks(Message, tag="DropTasks"):
    """Controller to engine, over CONTROL: tasks of `ranges` shall not start, and end `ABORTED`.

    The engine answers for those at once. With `interrupt` one that runs gets KeyboardInterrupt.
    """

    client: bytes
    ranges: list[PlacedRange]
    interrupt: bool = False


class KillRunning(Message, tag="KillRunning"):
    """Kill an engine if it still runs one of these tasks, and start another in its place.

    From the controller to the engine's agent; where there is none, over CONTROL to the engine
    itself, which then dies and is not replaced.
    """

    peer: bytes
    ranges: list[PlacedRange]


class Output(Message, tag="Output"):
    """Output of tasks of one client. Frames: the buffers of each item in turn.

    From an engine over OUTPUT, or over TASK right before the results that it belongs to. Forwarded
    to the client as it is.
    """

    client: bytes
    engine: int
    items: list[OutputItem]


class CommMessage(Message, tag="CommMessage"):
    """A Jupyter comm message for an engine, as a widget's front end sends it.

    From a client to the controller, which forwards it over the engine's CONTROL. What the engine's
    handlers print and send back is output of the task that opened the comm.

    Attributes:
        engine: the engine's id.
        client: peer id of the client; the controller fills it in.
        kind: `comm_open`, `comm_msg` or `comm_close`.
        content: the msgpack of the message's content, with ``metadata`` as in an `OutputItem`.
    """

    engine: int
    client: bytes
    kind: CommKind
    content: bytes


# -- engines come and go ----------------------------------------------------------------------


class EnginesChanged(Message, tag="EnginesChanged"):
    """The controller to every client: engines joined, engines lost.

    Attributes:
        joined, lost: the engines.
        warnings: as in `Welcome`, about those that joined.
    """

    joined: list[EngineInfo] = msgspec.field(default_factory=list)
    lost: list[EngineLost] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)


class EngineExited(Message, tag="EngineExited"):
    """An agent's report of the death of an engine that it forked.

    Attributes:
        peer: the engine's peer id.
        status: exit code, or minus the signal's number.
        reason: plain words: the signal's name or exit code, memory, last lines of its log.
        running: ordinal of the task that it ran when it died, -1 where the agent cannot tell. With
            it the error goes to the task that was at fault and not to one whose result was unsent.
    """

    peer: bytes
    status: int
    reason: str
    running: int = -1


class SignalEngines(Message, tag="SignalEngines"):
    """The controller asks an agent to send a signal to engines that it forked."""

    peers: list[bytes]
    signum: int


# -- requests ---------------------------------------------------------------------------------


class ClearNamespace(Part, tag="clear"):
    """Reset the engine's namespace."""


class SendSignal(Part, tag="signal"):
    """Send a signal to the engine's process; works whatever its main thread does."""

    signum: int


class StopEngine(Part, tag="stop"):
    """Leave the cluster and exit."""


class PingEngine(Part, tag="ping"):
    """Answer, to show that the second thread lives."""


class DumpStacks(Part, tag="stacks"):
    """Tell the Python stacks of all threads; the answer's content is UTF-8 text.

    Attributes:
        native: have the agent make the engine's process write them in a signal handler, which
            works while C code holds the GIL.
    """

    native: bool = False


ControlAction: TypeAlias = ClearNamespace | SendSignal | StopEngine | PingEngine | DumpStacks


class Control(Message, tag="Control"):
    """A client asks something of engines that must work while they are busy.

    The controller sends an `EngineControl` to each of the targets and forwards each answer. An
    unknown engine is answered by the controller.
    """

    request: int
    targets: list[int]
    action: ControlAction


class EngineControl(Message, tag="EngineControl"):
    """One engine's part of a `Control`, over CONTROL; or for its agent, over AGENT.

    Attributes:
        peer, engine: for an agent: which engine is meant.
    """

    client: bytes
    request: int
    action: ControlAction
    peer: bytes = b""
    engine: int = -1


class ControlReply(Message, tag="ControlReply"):
    """One engine's answer. `error` is None where it worked. Forwarded to the client as it is."""

    client: bytes
    request: int
    engine: int
    error: ErrorInfo | None = None
    content: bytes = b""


class Request(Message, tag="Request"):
    """A client asks the hub."""

    request: int
    question: Question


class Reply(Message, tag="Reply"):
    """The hub's answer: msgpack in `content`, or an error. Frames: as the question says."""

    request: int
    content: bytes = b""
    error: ErrorInfo | None = None


AnyMessage: TypeAlias = (
    Hello
    | Attach
    | Attached
    | Ack
    | Welcome
    | Refused
    | Goodbye
    | Probe
    | Closing
    | Submit
    | RunTasks
    | Results
    | ResultsTaken
    | Recall
    | Recalled
    | Cancel
    | DropTasks
    | KillRunning
    | Output
    | CommMessage
    | EnginesChanged
    | EngineExited
    | SignalEngines
    | Control
    | EngineControl
    | ControlReply
    | Request
    | Reply
)
