"""%px and %%px in a real kernel, as a notebook has them: what is shown, and in which order."""

from __future__ import annotations

import os
import re
import signal
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel
from jupyter_core.utils import ensure_event_loop

from ipyfleet_testing.waiting import wait_until

# Made once for all by the first blocking call of a kernel client, and kept: not a test's leak.
ensure_event_loop()

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_OF_ENGINE = re.compile(r"(?:\[(?:stdout|stderr|output):|Out\[)(\d+)")
TIMEOUT_S = 60.0
TRIES = 20
"""How often what engines say together may fail to arrive together on a busy machine."""


class Cell:
    """What a cell has shown: its outputs as a notebook keeps them, updates applied.

    Attributes:
        outputs: Jupyter outputs in the order of the page.
        events: the messages that built them: seconds since the start, kind, text.
        seconds: how long the cell took.
        status: "ok" or "error".
    """

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.events: list[tuple[float, str, str]] = []
        self.seconds = 0.0
        self.status = ""

    def add(self, at: float, kind: str, content: dict[str, Any]) -> None:
        """Take one message."""
        self.events.append((at, kind, _text_of(content)))
        display_id = content.get("transient", {}).get("display_id")
        if kind == "update_display_data":
            for output in self.outputs:
                if display_id and output.get("transient", {}).get("display_id") == display_id:
                    output["data"] = content["data"]
        elif kind == "stream" and self.outputs and self.outputs[-1].get("name") == content["name"]:
            self.outputs[-1]["text"] += content["text"]
        else:
            self.outputs.append(dict(content, kind=kind))

    @property
    def text(self) -> str:
        """All text on the page, colours removed, one output per line."""
        return _ANSI.sub("", "\n".join(_text_of(output).rstrip("\n") for output in self.outputs))

    @property
    def lines(self) -> list[str]:
        """The lines on the page in the order of the engines, values last.

        On a busy machine engines may be further apart than they are waited for, and are shown as
        they come. That each engine's own is in its order is checked.
        """
        blocks: list[tuple[tuple[bool, int], list[str]]] = []
        for line in self.text.splitlines():
            if found := _OF_ENGINE.match(line):
                blocks.append(((line.startswith("Out"), int(found[1])), [line]))
            elif blocks:
                blocks[-1][1].append(line)
            else:
                blocks.append(((False, -1), [line]))
        ordered = sorted(blocks, key=lambda block: block[0])
        for number in {engine for (_, engine), _ in blocks}:
            own = [[block for block in some if block[0][1] == number] for some in (blocks, ordered)]
            assert own[0] == own[1], self.text
        return [line for _, lines in ordered for line in lines]

    def of_type(self, mime: str) -> list[Any]:
        """The data of a MIME type, in order."""
        return [out["data"][mime] for out in self.outputs if mime in out.get("data", {})]


def _text_of(content: dict[str, Any]) -> str:
    if "text" in content:
        return str(content["text"])
    if "traceback" in content:
        return "\n".join(content["traceback"])
    return str(content.get("data", {}).get("text/plain", ""))


class Kernel:
    """A kernel with a cluster of two engines in it."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        os.kill(self._manager.provisioner.pid, signal.SIGINT)

    def run(
        self,
        source: str,
        shown: Sequence[str] = (),
        then: Callable[[], object] = lambda: None,
    ) -> Cell:
        """Run a cell to its end; do something when all of some texts have been shown."""
        cell = Cell()
        start = time.monotonic()
        is_done = not shown

        def take(message: dict[str, Any]) -> None:
            nonlocal is_done
            kind = message["header"]["msg_type"]
            if kind in ("stream", "display_data", "update_display_data", "execute_result", "error"):
                cell.add(time.monotonic() - start, kind, message["content"])
                if not is_done and all(text in cell.text for text in shown):
                    is_done = True
                    then()

        reply = self._client.execute_interactive(
            textwrap.dedent(source).strip("\n"),
            timeout=TIMEOUT_S,
            output_hook=take,
            store_history=True,
            allow_stdin=False,
        )
        cell.status = reply["content"]["status"]
        cell.seconds = time.monotonic() - start
        return cell

    def run_until(self, source: str, is_right: Callable[[Cell], bool]) -> Cell:
        """Run a cell again until it shows what it should, or has had its chances."""
        for _ in range(TRIES):
            cell = self.run(source)
            if is_right(cell):
                break
        return cell


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """Start a kernel, and in it a cluster of two engines."""
    folder = tmp_path_factory.mktemp("kernel")
    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(folder))
    try:
        made = Kernel(manager, client)
        setup = made.run(
            """
            import ipyfleet as ipf
            cluster = ipf.Cluster(n=2)
            rc = cluster.start_and_connect_sync()
            rc.ids
            """
        )
        assert setup.status == "ok", setup.text
        assert "[0, 1]" in setup.text
        yield made
        assert made.run("rc.close(); cluster.stop_cluster_sync()").status == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.fixture(autouse=True)
def _settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the magics back to how they begin."""
    yield
    if "kernel" in request.fixturenames:
        kernel = request.getfixturevalue("kernel")
        kernel.run("%pxconfig --block --targets all --no-verbose --stream")


def test_first_client_activates_the_magics(kernel: Kernel):
    """After the first Client %px works without any further call."""
    cell = kernel.run("%px print('hi')")
    assert cell.lines == ["[stdout:0] hi", "[stdout:1] hi"]
    assert cell.status == "ok"


def test_streams_and_values(kernel: Kernel):
    """stdout and stderr of each engine behind their prefixes, in engine order, then the values."""
    cell = kernel.run(
        """
        %%px
        import sys
        print("out")
        print("err", file=sys.stderr)
        40 + 2
        """
    )
    lines = cell.lines
    assert lines[:4] == ["[stdout:0] out", "[stderr:0] err", "[stdout:1] out", "[stderr:1] err"]
    assert [re.sub(r":\d+\]", ":n]", line) for line in lines[4:]] == [
        "Out[0:n]: 42",
        "Out[1:n]: 42",
    ]


def test_output_of_all_engines_in_engine_order(kernel: Kernel):
    """What engines say at the same moment is in engine order, also when the last is first."""
    kernel.run("rc[:].scatter('rank', [0, 1], flatten=True, block=True)")
    expected = ["[stdout:0] now", "[stdout:1] now"]
    cell = kernel.run_until(
        "%%px\nimport time\ntime.sleep(0.01 * (1 - rank))\nprint('now')",
        lambda cell: cell.text.splitlines() == expected,
    )
    assert cell.text.splitlines() == expected


WAIT = """
import os, time
while not os.path.exists({!r}):
    time.sleep(0.002)
"""


def test_output_is_live(kernel: Kernel, tmp_path: Path):
    """A line shows while the cell runs, not when it ends; each engine keeps one area."""
    gate = tmp_path / "gate"
    cell = kernel.run(
        f"%%px\nprint('first', flush=True){WAIT.format(str(gate))}print('second')",
        shown=("[stdout:0] first", "[stdout:1] first"),
        then=gate.touch,
    )
    assert cell.lines == ["[stdout:0] first", "second", "[stdout:1] first", "second"]
    assert len(cell.outputs) == 2


def test_many_lines_make_no_flood(kernel: Kernel):
    """Thousands of lines arrive complete and in order, in few outputs and few messages."""
    cell = kernel.run(
        """
        %%px
        for i in range(5000):
            print("line", i)
        """
    )
    for engine in (0, 1):
        prefix = f"[stdout:{engine}] "
        areas = [text for text in cell.of_type("text/plain") if text.startswith(prefix)]
        lines = "\n".join(area.removeprefix(prefix) for area in areas).splitlines()
        assert lines == [f"line {i}" for i in range(5000)]
    assert len(cell.outputs) <= 8
    # Ten updates a second for each of two areas, which a slow machine has more time for.
    assert len(cell.events) <= 20 + 25 * cell.seconds


def test_single_target_needs_no_prefix(kernel: Kernel):
    """With one engine as target, its text is shown as it is."""
    cell = kernel.run("%%px --targets 1\nprint('I am number 1')")
    assert cell.text.splitlines() == ["I am number 1"]


def test_images_and_html(kernel: Kernel):
    """What engines display is displayed here, in engine order, behind [output:n]."""
    cell = kernel.run(
        """
        %%px
        from IPython.display import HTML, display
        print("before")
        display(HTML("<b>bold</b>"))
        print("after")
        """
    )
    assert cell.of_type("text/html") == ["<b>bold</b>"] * 2
    lines = cell.text.splitlines()
    assert lines.index("[stdout:0] before") < lines.index("[output:0]")
    assert lines.index("[output:0]") < lines.index("[stdout:0] after")
    assert "[output:1]" in lines


def test_inline_plots(kernel: Kernel):
    """A plot of each engine is shown as an image; the value of the last call comes after."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert kernel.run("%px %matplotlib inline").status == "ok"
    cell = kernel.run("%%px\nimport matplotlib.pyplot as plt\nplt.plot([1, 2, 3])")
    assert cell.status == "ok", cell.text
    assert len(cell.of_type("image/png")) == 2
    assert cell.text.count("matplotlib.lines.Line2D") == 2


def test_errors_are_shown_once(kernel: Kernel):
    """A traceback that engines share is shown once; the cell's own exception adds none."""
    cell = kernel.run_until(
        "%%px\nprint('before')\nundefined_name", lambda cell: "[0-1:execute]" in cell.text
    )
    assert cell.status == "error"
    assert cell.text.count("NameError: name 'undefined_name' is not defined") == 1
    assert "[0-1:execute]" in cell.text
    assert cell.text.count("[stdout:0] before") == 1
    (error,) = [output for output in cell.outputs if output["kind"] == "error"]
    assert error["ename"] == "AlreadyDisplayedError"
    assert error["traceback"] == ["2 errors"]


def test_composite_error_of_a_view(kernel: Kernel):
    """Errors of rc[:].apply show the remote tracebacks in the cell's error output."""
    cell = kernel.run("rc[:].apply_sync(lambda: 1 / 0)")
    (error,) = [output for output in cell.outputs if output["kind"] == "error"]
    assert error["ename"] == "CompositeError"
    text = _ANSI.sub("", "\n".join(error["traceback"]))
    assert "[0-1:apply]" in text
    assert text.count("ZeroDivisionError: division by zero") == 1
    assert "Exception Group" not in text


@pytest.mark.parametrize("grouping", ["engine", "type", "order"])
def test_grouped_output(kernel: Kernel, grouping: str):
    """Grouped output is complete and grouped as asked."""
    cell = kernel.run(f"%%px --group-outputs={grouping}\nprint('out')\n'value'")
    kinds = [line.split(":")[0].lstrip("[") for line in cell.text.splitlines()]
    if grouping == "engine":
        assert kinds == ["stdout", "Out[0", "stdout", "Out[1"]
    else:
        assert kinds == ["stdout", "stdout", "Out[0", "Out[1"]


def test_noblock_and_pxresult(kernel: Kernel, tmp_path: Path):
    """--noblock returns at once with an AsyncResult; %pxresult shows what came of it."""
    gate = tmp_path / "gate"
    cell = kernel.run(f"%%px --noblock{WAIT.format(str(gate))}print('done')\n6 * 7")
    assert "<AsyncResult: execute>" in cell.text
    assert "done" not in cell.text
    gate.touch()
    shown = kernel.run("%pxresult").lines
    assert shown[:2] == ["[stdout:0] done", "[stdout:1] done"]
    assert [line.endswith(": 42") for line in shown[2:]] == [True, True]


def test_line_expands_and_cell_does_not(kernel: Kernel):
    """%px cd {os.getcwd()} takes the engines here; braces in a cell are the engines'."""
    kernel.run("import os\nhere = os.getcwd()")
    assert kernel.run("%px cd {os.path.dirname(here)}").status == "ok"
    moved = kernel.run("%px import os; print(os.getcwd() == os.path.dirname(os.getcwd()))")
    assert moved.status == "ok"
    cell = kernel.run("%%px\nhere = 'the engine'\nprint(f'{here}')")
    assert cell.lines == ["[stdout:0] the engine", "[stdout:1] the engine"]


def test_magics_run_on_engines(kernel: Kernel):
    """Magics after %%px, line and cell, are the engines' own."""
    cell = kernel.run("%%px\n%%timeit -n 1 -r 1\npass")
    assert cell.text.count("per loop") == 2
    assert kernel.run("%px %config InlineBackend").status == "ok"
    cell = kernel.run("%%px\n%%bash\necho shell")
    assert cell.lines == ["[stdout:0] shell", "[stdout:1] shell"]


def test_pxconfig_and_suffix(kernel: Kernel):
    """%pxconfig holds until changed; a second view has magics of its own."""
    kernel.run("%pxconfig --targets ::2 --verbose")
    cell = kernel.run("%px print('even')")
    assert cell.text.splitlines() == [
        "Parallel execution on engine(s): [0]",
        "[stdout:0] even",
    ]
    kernel.run("odd = rc[1::2]\nodd.block = True\nodd.activate('_odd')")
    assert "[stdout:1] odd" in kernel.run("%px_odd print('odd')").text


def test_autopx(kernel: Kernel):
    """Between two %autopx cells run on the engines and not here."""
    assert "enabled" in kernel.run("%autopx").text
    kernel.run("only_there = 5")
    assert kernel.run("print(only_there)").lines == ["[stdout:0] 5", "[stdout:1] 5"]
    assert "disabled" in kernel.run("%autopx").text
    assert "NameError" in kernel.run("only_there").text


def test_async_cell(kernel: Kernel):
    """A cell with top-level await runs on the engines."""
    cell = kernel.run("%%px\nimport asyncio\nawait asyncio.sleep(0)\nprint('awaited')")
    assert cell.lines == ["[stdout:0] awaited", "[stdout:1] awaited"]


def test_ctrl_c_interrupts_the_engines(kernel: Kernel):
    """Ctrl-C in a blocking cell interrupts the engines at once, says so, and they stay usable."""
    cell = kernel.run(
        """
        %%px
        import time
        print("begun", flush=True)
        time.sleep(600)
        """,
        shown=("[stdout:0] begun", "[stdout:1] begun"),
        then=kernel.interrupt,
    )
    assert "sending SIGINT to engine(s) [0, 1]" in cell.text
    assert "KeyboardInterrupt" in cell.text
    assert kernel.run("%px print('alive')").lines == [
        "[stdout:0] alive",
        "[stdout:1] alive",
    ]


def test_output_stays_in_its_cell(kernel: Kernel, tmp_path: Path):
    """Output of a cell that was not waited for does not land in the cell after it."""
    gate = str(tmp_path / "gate")
    kernel.run(f"%%px --noblock -o background{WAIT.format(gate)}print('late')")
    cell = kernel.run(
        f"open({gate!r}, 'w').close()\n"
        "_ = background.get(), background.wait_for_output()\n"
        "print('mine')"
    )
    assert cell.text.splitlines() == ["mine"]
    assert "late" in kernel.run("background.display_outputs()").text


def test_kernel_leaves_nothing(tmp_path: Path):
    """When a kernel is killed, the cluster that a notebook started in it goes with it."""
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    manager, client = start_new_kernel(kernel_name="python3", env=environment)
    try:
        made = Kernel(manager, client)
        cell = made.run(
            """
            import os
            import ipyfleet as ipf
            rc = ipf.Cluster(n=2).start_and_connect_sync()
            print(rc[:].apply_sync(os.getpid), rc.cluster is not None)
            """
        )
        assert cell.status == "ok", cell.text
        pids = [int(pid) for pid in re.findall(r"\d+", cell.text.split("[")[-1])]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
