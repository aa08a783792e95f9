import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ipyfleet_client.progressbar import ProgressBar, wait_with_bar


class Result:
    """Three items, of which each wait brings one."""

    def __init__(self) -> None:
        self._work = SimpleNamespace(total=3, name="work")
        self._streamer: Any = SimpleNamespace(around=None)
        self.progress = 0
        self.elapsed = 0.0
        self._n_items = 3

    def ready(self) -> bool:
        return self.progress == 3

    def wait(self, timeout: float) -> bool:
        self.progress += 1
        if self._streamer.around is not None:
            self._streamer.around(lambda: print("output"))
        return self.ready()


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show bars, though nobody looks on."""
    monkeypatch.delenv("IPP_NONINTERACTIVE", raising=False)


def test_bar_counts_items(capsys):
    """The bar shows how many items are there, and makes room for output."""
    result: Any = Result()
    wait_with_bar(result, 0.01, None, None)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out == "output\n" * 3
    assert result._streamer.around is None


def test_missing_tqdm_is_no_failure(monkeypatch):
    """Where no bar can be made the wait goes on without one, with a warning."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    result: Any = Result()
    with pytest.warns(UserWarning, match="no progress bar"):
        wait_with_bar(result, 0.01, None, None)
    assert result.ready()


def test_bar_that_breaks_is_dropped(monkeypatch, capsys):
    """A bar that raises is shown no more; output is still written."""
    bar = ProgressBar(3, "work", "tasks", widget=False)
    monkeypatch.setattr(bar._bar, "refresh", lambda: 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        bar.step_aside(lambda: print("output"))
    bar.show(2)
    bar.step_aside(lambda: print("more"))
    bar.close()
    assert capsys.readouterr().out == "output\nmore\n"


def test_broken_widget_becomes_text(monkeypatch, capsys):
    """Where a widget was meant but cannot be shown, there is a bar of text."""
    monkeypatch.setattr("ipyfleet_client.progressbar.in_ipython", lambda: True)
    monkeypatch.setattr("ipyfleet_client.progressbar._in_kernel", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.warns(UserWarning, match="no progress bar"):
        bar = ProgressBar(3, "work", "tasks", widget=None)
    bar.show(1)
    bar.close()
    assert "1/3" in capsys.readouterr().err


def test_remaining_time_counts_from_the_call(capsys):
    """What was done before one began to wait counts for the rate, with the time that it took."""
    bar = ProgressBar(100, "work", "tasks", widget=False)
    bar.started(50.0)
    bar.show(50)
    assert 49 < bar._bar.format_dict["elapsed"] < 51
    assert bar._bar.format_dict["rate"] is None or bar._bar.format_dict["rate"] < 2
    bar.close()
    assert "00:50<00:50" in capsys.readouterr().err
