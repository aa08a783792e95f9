import contextvars
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ipyfleet_client import screens
from ipyfleet_client.outputs import TaskOutput
from ipyfleet_client.pending import PENDING
from ipyfleet_client.streaming import OutputStreamer
from ipyfleet_protocol.messages import FAILED, OK, ErrorInfo, OutputItem


class Session:
    """Time passes while it waits: what is planned happens, one thing at a time."""

    def __init__(self) -> None:
        self.plan: list[Any] = []

    def wait_until(self, predicate: Any, timeout_s: float | None = None) -> bool:
        while not predicate():
            if not self.plan:
                return False
            self.plan.pop(0)()
        return True


class TimedSession(Session):
    """The same with a clock: the plan says when things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def wait_until(self, predicate: Any, timeout_s: float | None = None) -> bool:
        end = self.now + (timeout_s or 0)
        while not predicate() and self.plan and self.plan[0][0] <= end:
            self.now, happen = self.plan.pop(0)
            happen()
        if not predicate():
            self.now = end
        return bool(predicate())


class Work:
    """What a streamer wants to know of the tasks of a call: task k runs on engine 10 + k."""

    def __init__(self, count: int = 2) -> None:
        self.outputs: dict[int, TaskOutput] = {}
        self.uncounted_outputs = 0
        self.done = False
        self.total = count
        self.status = bytearray([OK] * count)
        self.failures = 0
        self.errors: dict[int, ErrorInfo] = {}

    def engine(self, index: int) -> int:
        return 10 + index

    def locate(self, index: int) -> Any:
        return SimpleNamespace(error=lambda position: self.errors[position]), index

    def fail(self, index: int, name: str) -> None:
        self.status[index] = FAILED
        self.failures += 1
        self.errors[index] = ErrorInfo(name, "why", [], engine_id=10 + index)


class _Metadata(dict[str, Any]):
    def __init__(self) -> None:
        super().__init__(engine_id=10, execute_result={"data": {"text/plain": "42"}})


@pytest.fixture
def streamer(monkeypatch: pytest.MonkeyPatch) -> OutputStreamer:
    """Give a streamer for a terminal, over a call on engines 10 and 11."""
    monkeypatch.setattr(screens, "in_kernel", lambda: False)
    return OutputStreamer(Session(), Work(), single=False)  # type: ignore[arg-type]


def _emit(streamer: OutputStreamer, index: int, kind: Any, content: bytes) -> None:
    outputs: Any = streamer._work.outputs
    output = outputs.setdefault(index, TaskOutput())
    output.add(OutputItem(0, len(output.items), kind, content), [])
    streamer.note(index, output)


def test_what_arrives_together_is_in_engine_order(streamer, capsys):
    """Text of the second engine that is there first is shown after that of the first."""
    session = streamer._session
    session.plan = [
        lambda: _emit(streamer, 1, "stdout", b"one\n"),
        lambda: _emit(streamer, 0, "stdout", b"zero\n"),
    ]
    assert not streamer.wait(lambda: False, 0)
    assert capsys.readouterr().out == "[stdout:10] zero\n[stdout:11] one\n"


@pytest.mark.parametrize("begins_at", [0.002, 0.019, 0.028, 0.035, 1.0])
def test_what_arrives_at_the_edge_of_a_batch_is_in_engine_order(
    streamer, capsys, monkeypatch, begins_at
):
    """Displays that come within some milliseconds are in order whenever the first one comes."""
    session = streamer._session = TimedSession()
    monkeypatch.setattr("ipyfleet_client.streaming.time", session)
    monkeypatch.setattr(session, "monotonic", lambda: session.now, raising=False)
    contents = [msgspec.msgpack.encode({"data": {"text/plain": f"<{k}>"}}) for k in range(2)]
    session.plan = [
        (0.0, lambda: _emit(streamer, 1, "stdout", b"a")),
        (0.0, lambda: _emit(streamer, 0, "stdout", b"a")),
        (begins_at, lambda: _emit(streamer, 1, "display_data", contents[1])),
        (begins_at + 0.009, lambda: _emit(streamer, 0, "display_data", contents[0])),
    ]
    assert not streamer.wait(lambda: False, 2.0)
    assert [line for line in capsys.readouterr().out.splitlines() if "<" in line] == ["<0>", "<1>"]


def test_engines_that_never_are_silent_are_heard(streamer, capsys, monkeypatch):
    """Output is shown after a tenth of a second though more of it keeps coming."""
    session = streamer._session = TimedSession()
    monkeypatch.setattr("ipyfleet_client.streaming.time", session)
    monkeypatch.setattr(session, "monotonic", lambda: session.now, raising=False)
    shown = []
    streamer.around = lambda show: (show(), shown.append(session.now))
    session.plan = [
        (0.001 * k, lambda k=k: _emit(streamer, k % 2, "stdout", b"a\n")) for k in range(1000)
    ]
    assert not streamer.wait(lambda: False, 1.0)
    assert len(shown) >= 7


def test_one_prefix_for_a_run_of_lines(streamer, capsys):
    """A prefix stands where the stream or the engine changes, on a line of its own beginning."""
    for index, text in ((0, b"a\nb\n"), (0, b"c"), (1, b"d"), (0, b"e\n")):
        _emit(streamer, index, "stdout", text)
        streamer.flush()
    assert capsys.readouterr().out == "[stdout:10] a\nb\nc\n[stdout:11] d\n[stdout:10] e\n"


def test_streams_go_where_they_belong(streamer, capsys):
    """stdout of engines goes to stdout, stderr to stderr, each behind its own prefix."""
    _emit(streamer, 0, "stdout", b"out\n")
    _emit(streamer, 0, "stderr", b"err\n")
    streamer.flush()
    shown = capsys.readouterr()
    assert shown.out == "[stdout:10] out\n"
    assert shown.err == "[stderr:10] err\n"


def test_nothing_is_shown_twice(streamer, capsys):
    """Flushing again, or news without new items, shows nothing again."""
    _emit(streamer, 0, "stdout", b"once\n")
    streamer.flush()
    streamer.news.append(0)
    streamer.flush()
    assert capsys.readouterr().out.count("once") == 1


def test_output_that_lags_is_waited_for(streamer, capsys):
    """When the result is there before its output, the output is still shown within the wait."""
    work: Any = streamer._work
    work.uncounted_outputs = 1

    def arrive() -> None:
        _emit(streamer, 0, "stdout", b"late\n")
        work.uncounted_outputs = 0

    streamer._session.plan = [lambda: setattr(work, "done", True), arrive]
    assert streamer.wait(lambda: work.done, None)
    assert capsys.readouterr().out == "[stdout:10] late\n"


def test_errors_without_output_are_shown_at_the_end(streamer, capsys):
    """A task that could not publish its error, as its engine died, has it shown, once."""
    work: Any = streamer._work
    work.done = True
    work.fail(1, "EngineError")
    assert streamer.wait(lambda: True, None)
    streamer.finish()
    assert capsys.readouterr().err == "[11:execute] EngineError: why\n"


def test_many_errors_are_shortened(monkeypatch: pytest.MonkeyPatch, capsys):
    """The first four tracebacks are shown in full, the others as a line each."""
    monkeypatch.setattr(screens, "in_kernel", lambda: False)
    streamer = OutputStreamer(Session(), Work(6), single=False)  # type: ignore[arg-type]
    for index in range(6):
        content = {"ename": "E", "evalue": "v", "traceback": [f"lines of {index}"]}
        _emit(streamer, index, "error", msgspec.msgpack.encode(content))
    streamer.flush()
    assert capsys.readouterr().err == ""
    streamer.finish()
    shown = capsys.readouterr().err
    assert [f"lines of {index}" in shown for index in range(6)] == [True] * 4 + [False] * 2
    assert "[14:execute] E: v\n[15:execute] E: v\n" in shown


def test_same_errors_are_shown_once(streamer, capsys):
    """Of tracebacks that are the same one is shown, under the names of all its engines."""
    content = msgspec.msgpack.encode({"ename": "E", "evalue": "v", "traceback": ["the lines"]})
    for index in (1, 0):
        _emit(streamer, index, "error", content)
    streamer.finish()
    assert capsys.readouterr().err == "[10-11:execute]\nthe lines\n"


def test_error_of_a_running_call_is_not_held_for_long(streamer, capsys, monkeypatch):
    """While other engines are at work an error is shown soon, not at the very end."""
    monkeypatch.setattr("ipyfleet_client.streaming.ERRORS_S", 0.0)
    content = msgspec.msgpack.encode({"ename": "E", "evalue": "v", "traceback": ["the lines"]})
    streamer._session.plan = [lambda: _emit(streamer, 0, "error", content)]
    assert not streamer.wait(lambda: False, 0.05)
    assert capsys.readouterr().err == "[10:execute]\nthe lines\n"


def test_value_waits_for_the_end_of_its_task(streamer, capsys, monkeypatch):
    """While a task runs its value is held: plots come after it, but are shown before it."""
    monkeypatch.setattr("ipyfleet_client.streaming.VALUES_S", 0.0)
    monkeypatch.setattr("ipyfleet_client.streaming.metadata_of", lambda *_: _Metadata())
    work: Any = streamer._work
    work.status[0] = PENDING
    value = msgspec.msgpack.encode({"execution_count": 3, "data": {"text/plain": "42"}})
    plot = msgspec.msgpack.encode({"data": {"text/plain": "<plot>"}})
    streamer._session.plan = [
        lambda: _emit(streamer, 0, "execute_result", value),
        lambda: _emit(streamer, 0, "display_data", plot),
    ]
    assert not streamer.wait(lambda: False, 0.05)
    assert capsys.readouterr().out == "[output:10]\n<plot>\n"
    work.status[0] = OK
    assert not streamer.wait(lambda: False, 0.05)
    assert capsys.readouterr().out == "Out[10:3]: 42\n"


def test_wait_that_ends_early_breaks_no_line(streamer, capsys):
    """Waiting in short pieces, as a progress bar does, does not cut the lines of an engine."""
    for text in (b"a", b"b", b"c\n"):
        _emit(streamer, 0, "stdout", text)
        assert not streamer.wait(lambda: False, 0)
    assert capsys.readouterr().out == "[stdout:10] abc\n"


def test_room_is_made_for_a_batch(streamer, capsys):
    """What is around the output, such as a progress bar, is told when a batch is shown."""
    calls = []

    def around(show):
        calls.append("before")
        show()

    streamer.around = around
    streamer.flush()
    assert calls == []
    _emit(streamer, 0, "stdout", b"text\n")
    streamer.flush()
    assert calls == ["before"]
    assert capsys.readouterr().out == "[stdout:10] text\n"


def test_display_of_an_earlier_cell_is_updated(monkeypatch):
    """An update finds the display that the same engine made in an earlier cell."""
    monkeypatch.setattr(screens, "in_kernel", lambda: True)
    published: list[Any] = []
    monkeypatch.setattr(
        screens, "_publish", lambda data, metadata=None, **more: published.append(more)
    )
    session: Any = Session()
    shown = {"data": {"text/plain": "1"}, "transient": {"display_id": "bar"}}
    for kind in ("display_data", "update_display_data"):
        streamer = OutputStreamer(session, Work(), single=False)  # type: ignore[arg-type]
        _emit(streamer, 0, kind, msgspec.msgpack.encode(shown))
        streamer.finish()
    first, second = published[-2:]
    assert second["update"]
    assert first["transient"] == second["transient"]


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have streamers show in a notebook; return what is put into places of the page."""
    shown: list[str] = []
    monkeypatch.setattr(screens, "in_kernel", lambda: True)
    monkeypatch.setattr(
        screens, "_publish", lambda data, *args, **kwargs: shown.append(data["text/plain"])
    )
    return shown


def test_all_of_a_short_cell_is_printed_at_once(in_notebook, capsys):
    """Text of tasks that have ended needs no area; the engines are in order, lines are ended."""
    streamer = OutputStreamer(Session(), Work(), single=False)
    streamer._work.done = True
    for index, text in ((1, b"one\rONE"), (0, b"zero\n"), (1, b"!\n")):
        _emit(streamer, index, "stdout", text)
    streamer.finish()
    assert capsys.readouterr().out == "[stdout:10] zero\n[stdout:11] ONE!\n"
    assert in_notebook == []


@pytest.mark.parametrize(
    "items",
    [
        [(0, "stdout", b"a"), (1, "stderr", b"b")],
        [(0, "stdout", b"a"), (0, "clear_output", msgspec.msgpack.encode({"wait": True}))],
        [(0, "stdout", b"a" * 40_000)],
    ],
)
def test_what_is_more_than_a_few_lines_gets_areas(in_notebook, capsys, items):
    """So does what could be told apart or has to be updated."""
    streamer = OutputStreamer(Session(), Work(), single=False)
    streamer._work.done = True
    for index, kind, content in items:
        _emit(streamer, index, kind, content)
    streamer.finish()
    assert capsys.readouterr().out == "" and in_notebook


def test_what_follows_the_end_is_shown_in_its_context(in_notebook):
    """Threads go on printing; the context tells a kernel which cell that belongs to."""
    place: contextvars.ContextVar[str] = contextvars.ContextVar("place")
    place.set("the first cell")
    streamer = OutputStreamer(Session(), Work(), single=False)
    streamer._work.done = True
    streamer.finish()
    _emit(streamer, 0, "stdout", b"between\n")
    assert in_notebook == []
    streamer.follow()
    seen = []
    streamer.around = lambda show: (seen.append(place.get()), show())
    place.set("another cell")
    _emit(streamer, 0, "stdout", b"late\n")
    _emit(streamer, 0, "error", msgspec.msgpack.encode({"ename": "E", "traceback": ["why"]}))
    assert in_notebook[:2] == ["[stdout:10] between", "[stdout:10] between\nlate"]
    assert "why" in in_notebook[-1] and seen == ["the first cell"] * 2


def test_late_output_that_cannot_be_shown_harms_nobody(in_notebook, caplog):
    """The receiving thread goes on."""
    streamer = OutputStreamer(Session(), Work(), single=False)
    streamer.follow()
    streamer.around = lambda show: 1 / 0
    _emit(streamer, 0, "stdout", b"late\n")
    assert "late output cannot be shown" in caplog.text


class GrowingList(list[Any]):
    """Grows once while it is read."""

    grow: Any = None

    def __getitem__(self, key: Any) -> Any:
        grow, self.grow = self.grow, None
        if grow is not None:
            grow()
        return super().__getitem__(key)


def test_what_arrives_while_a_batch_is_taken_is_in_the_next(streamer, capsys):
    """Text that the receiving thread adds meanwhile is neither lost nor shown twice."""
    _emit(streamer, 0, "stdout", b"one\n")
    output = streamer._work.outputs[0]
    output.items = GrowingList(output.items)
    output.items.grow = lambda: _emit(streamer, 0, "stdout", b"two\n")
    streamer.flush()
    streamer.flush()
    assert capsys.readouterr().out.replace("[stdout:10] ", "") == "one\ntwo\n"
