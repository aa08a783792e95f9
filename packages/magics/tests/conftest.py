"""A real IPython shell, and a client, a view and results that record what they are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipyfleet_magics.activation import register


class Result:
    """What a recording view returns: done from the start unless `waits` says otherwise.

    `waits` has, for each wait to come, what it returns or raises.
    """

    def __init__(self, engines: list[int], code: str) -> None:
        self.code = code
        self.engine_id = engines
        self.status: list[str | None] = ["ok" for _ in engines]
        self.waits: list[bool | BaseException] = []
        self.calls: list[Any] = []
        self.error: BaseException | None = None

    def wait(self, timeout: float | None = -1) -> bool:
        self.calls.append(("wait", timeout))
        outcome = self.waits.pop(0) if self.waits else True
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome:
            self.status = ["ok" for _ in self.engine_id]
        return outcome

    def wait_interactive(self, timeout: float | None = -1) -> None:
        self.calls.append(("bar", timeout))
        self.wait(timeout)

    def ready(self) -> bool:
        return None not in self.status

    def successful(self) -> bool:
        return self.error is None

    def get(self) -> None:
        if self.error is not None:
            raise self.error

    @contextlib.contextmanager
    def stream_output(self, follow: bool = False) -> Iterator[None]:
        assert follow
        self.calls.append("stream")
        yield

    def display_outputs(self, groupby: str) -> None:
        self.calls.append(("display", groupby))

    def names(self) -> list[Any]:
        """The calls without the waits."""
        return [call for call in self.calls if call[0] not in ("wait", "bar")]


class Client:
    """Four engines that run nothing. Results of views are prepared by `prepare`."""

    def __init__(self) -> None:
        self.ids = [0, 1, 2, 3]
        self.executed: list[tuple[Any, str]] = []
        self.signals: list[Any] = []
        self.results: list[Result] = []
        self.prepare: Any = lambda result: None

    def __getitem__(self, key: int | slice | list[int]) -> View:
        if isinstance(key, list):
            return View(self, [self.ids[index] for index in key])
        return View(self, self.ids[key])

    def direct_view(self, targets: str) -> View:
        return View(self, targets)

    def send_signal(self, signum: int, targets: Any, block: bool) -> None:
        self.signals.append((signum, targets))


class View:
    """Records what it is to execute."""

    def __init__(self, client: Client, targets: Any, block: bool = True) -> None:
        self.client = client
        self.targets = targets
        self.block = block

    def execute(self, code: str, silent: bool, block: bool) -> Result:
        assert (silent, block) == (False, False)
        self.client.executed.append((self.targets, code))
        engines = self.client.ids if self.targets == "all" else self.targets
        result = Result(engines if isinstance(engines, list) else [engines], code)
        self.client.prepare(result)
        self.client.results.append(result)
        return result


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """Give a real shell, without history, with a directory of its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("IPP_NONINTERACTIVE", raising=False)
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config)
    yield made
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.fixture
def client() -> Client:
    """Give the recording client."""
    return Client()


@pytest.fixture
def view(shell: InteractiveShell, client: Client) -> View:
    """Give a view of all engines, active in the shell."""
    made = View(client, "all")
    register(shell, made)
    return made
