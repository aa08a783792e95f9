import time
from typing import Any

import pytest

from ipyfleet_client import screens
from ipyfleet_client.screens import Area, NotebookScreen, Place, TextScreen


def test_single_engine_has_no_prefix(capsys):
    """With one engine text is shown as it comes, unfinished lines included."""
    screen = TextScreen(single=True)
    screen.write(10, "stdout", "a")
    screen.write(10, "stdout", "b\n")
    screen.refresh(None)
    assert capsys.readouterr().out == "ab\n"


def test_redrawn_line_keeps_its_prefix(capsys):
    """In a terminal a carriage return does not overwrite the prefix of the line."""
    screen = TextScreen(single=False)
    screen.write(0, "stdout", "\r10 %")
    screen.write(0, "stdout", "\r20 %\r30 %")
    screen.write(0, "stdout", "\r40 %\ndone\r\n")
    screen.write(0, "stderr", "e")
    screen.refresh(None)
    shown = capsys.readouterr()
    assert shown.out == "[stdout:0] 10 %\r[stdout:0] 30 %\r[stdout:0] 40 %\ndone\n"
    assert shown.err == "[stderr:0] e\n"


def test_terminal_shows_displays_as_text(capsys):
    """A display is printed below its prefix; what updates or clears it does nothing there."""
    screen = TextScreen(single=False)
    screen.write(3, "stdout", "a")
    screen.display(3, "display_data", {"data": {"text/plain": "<Figure>"}})
    screen.display(3, "update_display_data", {"data": {"text/plain": "no"}})
    screen.clear(3, wait=False)
    screen.show_error("the lines")
    shown = capsys.readouterr()
    assert shown.out == "[stdout:3] a\n[output:3]\n<Figure>\n"
    assert shown.err == "the lines\n"


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
    monkeypatch.setattr(screens, "_publish", made.publish)
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
    area = Area("[stderr:0]", Place())
    for percent in range(0, 101, 10):
        area.add(f"\r{percent:3d} %")
        area.show()
    assert list(pages.texts.values()) == ["[stderr:0] 100 %"]
    area.add("\ndone\n")
    area.show()
    assert list(pages.texts.values()) == ["[stderr:0] 100 %\ndone"]


def test_cleared_output_is_replaced_in_place(pages):
    """After a clear the engine's places on the page are used again; the rest becomes empty."""
    screen = NotebookScreen()
    screen.write(0, "stdout", "old\n")
    screen.write(1, "stdout", "other\n")
    screen.display(0, "display_data", {"data": {"text/plain": "old plot"}})
    screen.clear(0, wait=False)
    screen.write(0, "stdout", "new\n")
    screen.refresh(None)
    assert list(pages.texts.values()) == ["[stdout:0] new", "[stdout:1] other", "", ""]
    screen.display(0, "display_data", {"data": {"text/plain": "new plot"}})
    screen.refresh(None)
    assert list(pages.texts.values())[4:] == ["[output:0]", "new plot"]


def test_what_is_cleared_before_it_was_shown_leaves_no_trace(pages):
    """Text that is cleared at once never comes to the page; what follows does."""
    screen = NotebookScreen()
    screen.write(0, "stdout", "gone\n")
    screen.clear(0, wait=False)
    screen.write(0, "stdout", "stays\n")
    screen.refresh(None)
    assert list(pages.texts.values()) == ["[stdout:0] stays"]


def test_clear_may_wait_for_what_comes_next(pages):
    """With wait nothing changes until the engine shows something, which then takes the place."""
    screen = NotebookScreen()
    for frame in ("one", "two", "three"):
        screen.clear(0, wait=True)
        screen.refresh(None)
        screen.display(0, "display_data", {"data": {"text/plain": frame}})
        screen.refresh(None)
        assert list(pages.texts.values()) == ["[output:0]", frame]
    screen.clear(0, wait=True)
    screen.refresh(None)
    assert list(pages.texts.values()) == ["[output:0]", "three"]


def test_text_before_a_waiting_clear_is_seen(pages):
    """Text that an engine has printed before it clears with wait stays until the next text."""
    screen = NotebookScreen()
    screen.write(0, "stdout", "first\n")
    screen.clear(0, wait=True)
    screen.refresh(None)
    assert list(pages.texts.values()) == ["[stdout:0] first"]
    screen.write(0, "stdout", "second\n")
    screen.refresh(None)
    assert list(pages.texts.values()) == ["[stdout:0] second"]


def test_single_engine_in_a_notebook(pages, capsys):
    """With one engine text goes to the cell's own stream, and displays have no prefix."""
    screen = NotebookScreen(single=True)
    screen.write(0, "stdout", "10 %\r20 %")
    shown = {"data": {"text/plain": "plot"}, "transient": {"display_id": "p"}}
    screen.display(0, "display_data", shown)
    screen.display(0, "update_display_data", dict(shown, data={"text/plain": "plot 2"}))
    screen.refresh(None)
    assert capsys.readouterr().out == "10 %\r20 %"
    assert list(pages.texts.values()) == ["plot 2"]
