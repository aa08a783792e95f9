import time
from types import SimpleNamespace
from typing import Any

import pytest

from ipyfleet_client import streaming
from ipyfleet_client.outputs import TaskOutput
from ipyfleet_client.streaming import Area, NotebookScreen, OutputStreamer, TextScreen
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


class Work:
    """What a streamer wants to know of the tasks of a call: task k runs on engine 10 + k."""

    def __init__(self, count: int = 2) -> None:
        self.outputs: dict[int, TaskOutput] = {}
        self.uncounted_outputs = 0
        self.done = False
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


@pytest.fixture
def streamer(monkeypatch: pytest.MonkeyPatch) -> OutputStreamer:
    """Give a streamer for a terminal, over a call on engines 10 and 11."""
    monkeypatch.setattr(streaming, "in_kernel", lambda: False)
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
    import msgspec

    monkeypatch.setattr(streaming, "in_kernel", lambda: False)
    streamer = OutputStreamer(Session(), Work(6), single=False)  # type: ignore[arg-type]
    for index in range(6):
        content = {"ename": "E", "evalue": "v", "traceback": [f"lines of {index}"]}
        _emit(streamer, index, "error", msgspec.msgpack.encode(content))
    streamer.flush()
    shown = capsys.readouterr().err
    assert [f"lines of {index}" in shown for index in range(6)] == [True] * 4 + [False] * 2
    assert "[14:execute] E: v\n[15:execute] E: v\n" in shown


def test_single_engine_has_no_prefix(capsys):
    """With one engine text is shown as it comes, unfinished lines included."""
    screen = TextScreen(single=True)
    screen.write(10, "stdout", "a")
    screen.write(10, "stdout", "b\n")
    screen.refresh(None)
    assert capsys.readouterr().out == "ab\n"


class _Pages:
    """What a frontend has been told to show: texts by display id, and how many messages it took."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.messages = 0

    def publish(
        self, data: Any, metadata: Any = None, *, transient: Any = None, update: bool = False
    ) -> None:
        self.messages += 1
        key = (transient or {}).get("display_id") or f"message {self.messages}"
        assert update == (key in self.texts)
        self.texts[key] = data.get("text/plain", str(sorted(data)))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> _Pages:
    """Record what is published in place of IPython's publisher."""
    made = _Pages()
    monkeypatch.setattr(streaming, "_publish", made.publish)
    return made


def test_notebook_keeps_an_area_for_each_stream(pages):
    """Engines that talk in turn fill one area each, in place."""
    screen = NotebookScreen()
    for number in range(3):
        for engine in (0, 1):
            screen.write(engine, "stdout", f"line {number}\n")
    screen.refresh(None)
    screen.write(0, "stdout", "more\n")
    screen.refresh(None)
    assert list(pages.texts.values()) == [
        "[stdout:0] line 0\nline 1\nline 2\nmore",
        "[stdout:1] line 0\nline 1\nline 2",
    ]
    assert pages.messages == 3


def test_notebook_is_not_updated_too_often(pages):
    """The first text is shown at once; more of it waits until an update is due."""
    screen = NotebookScreen()
    screen.write(0, "stdout", "a\n")
    now = time.monotonic()
    assert screen.refresh(now) is None
    screen.write(0, "stdout", "b\n")
    due = screen.refresh(now)
    assert due is not None
    assert pages.messages == 1
    assert screen.refresh(due) is None
    assert list(pages.texts.values()) == ["[stdout:0] a\nb"]


def test_long_output_is_cut_between_lines(pages):
    """Long output goes to several areas, cut between lines, complete and in order."""
    screen = NotebookScreen()
    text = "".join(f"line {number}\n" for number in range(20_000))
    for start in range(0, len(text), 1000):
        screen.write(0, "stdout", text[start : start + 1000])
    screen.refresh(None)
    areas = [area.removeprefix("[stdout:0] ") for area in pages.texts.values()]
    assert len(areas) > 3
    assert "\n".join(areas) + "\n" == text


def test_display_stands_between_the_texts_around_it(pages):
    """What an engine displays is placed after what it printed before and before what comes then."""
    screen = NotebookScreen()
    screen.write(0, "stdout", "before\n")
    screen.display(0, "display_data", {"data": {"image/png": "…"}})
    screen.write(0, "stdout", "after\n")
    screen.refresh(None)
    assert list(pages.texts.values()) == [
        "[stdout:0] before",
        "[output:0]",
        "['image/png']",
        "[stdout:0] after",
    ]


def test_update_of_a_display(pages):
    """An update of a display that was shown replaces it; of another one it is ignored."""
    screen = NotebookScreen()
    shown = {"data": {"text/plain": "50 %"}, "transient": {"display_id": "bar"}}
    screen.display(0, "update_display_data", shown)
    assert pages.messages == 0
    screen.display(0, "display_data", shown)
    screen.display(0, "update_display_data", dict(shown, data={"text/plain": "100 %"}))
    assert list(pages.texts.values()) == ["[output:0]", "100 %"]


def test_line_that_is_redrawn(pages):
    """Of a line that is drawn again and again with carriage returns the last drawing is shown."""
    area = Area("[stderr:0]")
    for percent in range(0, 101, 10):
        area.add(f"\r{percent:3d} %")
        area.show()
    assert list(pages.texts.values()) == ["[stderr:0] 100 %"]
    area.add("\ndone\n")
    area.show()
    assert list(pages.texts.values()) == ["[stderr:0] 100 %\ndone"]
