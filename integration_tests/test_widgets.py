"""Widgets of engines in a client's notebook: what they show, and what using them does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient

# Made once for all by the first blocking call of a kernel client, and kept: not a test's leak.
ensure_event_loop()

TIMEOUT_S = 60
_SHOWN = ("stream", "display_data", "update_display_data")

pytest.importorskip("ipywidgets", reason="needs ipywidgets")


class Notebook:
    """A notebook with a cluster of two engines, and the widgets on its page.

    Attributes:
        client: runs the cells, and keeps the state of all widgets as a front end does.
    """

    def __init__(self, client: NotebookClient, listener: Any) -> None:
        self.client = client
        self._listener = listener
        self._sources: dict[str, str] = {}

    def run(self, source: str) -> str:
        """Run a cell; return the text that it shows."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        shown = []
        for output in cell.outputs:
            shown.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
        return "\n".join(shown)

    def widgets(self, model: str) -> list[str]:
        """The ids of the widgets of a model that are on the page, in the order of their birth."""
        state = self.client.widget_state
        return [comm for comm, found in state.items() if found.get("_model_name") == model]

    def state(self, comm: str) -> dict[str, Any]:
        """What the page knows of a widget."""
        found: dict[str, Any] = self.client.widget_state[comm]
        return found

    def move(self, comm: str, **state: Any) -> None:
        """Change a widget's value as a user does."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        self._say("comm_msg", {"comm_id": comm, "data": data})

    def close(self, comm: str) -> None:
        """Close a widget as a front end does."""
        self._say("comm_close", {"comm_id": comm, "data": {}})

    def _say(self, kind: str, content: dict[str, Any]) -> None:
        kc: Any = self.client.kc
        kc.shell_channel.send(kc.session.msg(kind, content))

    def wait_for(self, text: str) -> tuple[str, str]:
        """Wait until the kernel publishes a text; return the source of the cell to which it says
        that belongs, and all of the text.

        JupyterLab goes by that; what runs the cells here takes what its own cell publishes alone.
        """
        while True:
            message = self._listener.get_iopub_msg(timeout=TIMEOUT_S)
            content, kind = message["content"], message["header"]["msg_type"]
            parent = message["parent_header"].get("msg_id", "")
            if kind == "execute_input":
                self._sources[parent] = content["code"]
            shown = content.get("text") or content.get("data", {}).get("text/plain", "")
            if kind in _SHOWN and text in str(shown):
                return self._sources[parent], str(shown)

    def next_state(self, comm: str) -> dict[str, Any]:
        """Wait until the kernel says something of a widget's outputs; return its state."""
        while True:
            content = self._listener.get_iopub_msg(timeout=TIMEOUT_S)["content"]
            state: dict[str, Any] = content.get("data", {}).get("state", {})
            if content.get("comm_id") == comm and "outputs" in state:
                return state

    def run_until(self, source: str, condition: Callable[[str], bool]) -> str:
        """Run a cell again and again until it shows what it should, which others have to do."""
        for _ in range(100):
            text = self.run(source)
            if condition(text):
                return text
        pytest.fail(f"{source!r} still shows {text!r}")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """Start a kernel and, from it, two engines."""
    folder = tmp_path_factory.mktemp("widgets")
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=TIMEOUT_S, kernel_name="python3")
    os.environ["IPYTHONDIR"], before = os.fspath(folder), os.environ.get("IPYTHONDIR")
    try:
        with client.setup_kernel(cwd=os.fspath(folder)):
            listener = BlockingKernelClient(connection_file=client.km.connection_file)
            listener.load_connection_file()
            listener.start_channels()
            notebook = Notebook(client, listener)
            notebook.run(
                "import ipyfleet as ipf\n"
                "cluster = ipf.Cluster(n=2)\n"
                "rc = cluster.start_and_connect_sync(activate=True)\n"
                "mirrors = rc.session.comms"
            )
            yield notebook
            notebook.run("rc.close(); cluster.stop_cluster_sync()")
            listener.stop_channels()
    finally:
        if before is None:
            del os.environ["IPYTHONDIR"]
        else:
            os.environ["IPYTHONDIR"] = before


SLIDER = """%%px
import ipywidgets
slider = ipywidgets.IntSlider(value=3, description='engine')
def say(change):
    print('moved to', change['new'])
slider.observe(say, 'value')
slider
"""


def shown_by(state: dict[str, Any]) -> list[str]:
    """The texts that an Output widget shows."""
    return [
        str(o.get("text") or "".join(o.get("traceback", ())) or o["data"]["text/plain"])
        for o in state["outputs"]
    ]


LATE = """
def run():
    for word in ('one', 'two'):
        while not os.path.exists(f'{word}{engine}'):
            time.sleep(0.01)
        print('late', word)
engine = get_ipython().kernel.int_id
thread = threading.Thread(target=run)
thread.start()
"""


def test_a_slider_of_an_engine_follows_the_user(notebook: Notebook) -> None:
    """The page has each engine's own; moving one changes that engine's and calls its observers."""
    cell = len(notebook.client.nb.cells)
    notebook.run(SLIDER)
    outputs = notebook.client.nb.cells[cell].outputs
    views = [o["data"].get("application/vnd.jupyter.widget-view+json") for o in outputs]
    first, second = (view["model_id"] for view in views if view)
    assert notebook.state(first)["value"] == notebook.state(second)["value"] == 3
    assert notebook.state(first)["description"] == "engine"
    notebook.move(second, value=42)
    assert notebook.run("rc[:].apply_sync(lambda: slider.value)") == "[3, 42]"
    assert notebook.wait_for("moved to 42") == (SLIDER, "[stdout:1] moved to 42")


def test_threads_print_into_their_cell(notebook: Notebook) -> None:
    """What comes after the end of a cell is shown live below that cell, whatever runs meanwhile."""
    source = "%%px\nimport os, threading, time\nprint('cell')\n" + LATE
    notebook.run(source)
    for word, before in (("one", ""), ("two", "late one\n")):
        for engine in (0, 1):
            notebook.run(f"%px print('{word}')\nopen('{word}{engine}', 'w').close()")
            found, shown = notebook.wait_for(f"late {word}")
            # Where the machine is busy the cell's own output may come in one piece with it.
            shown = shown.replace("] cell\n", "] ", 1)
            assert (found, shown) == (source, f"[stdout:{engine}] {before}late {word}")


def test_what_an_engine_changes_is_on_the_page(notebook: Notebook) -> None:
    """A later cell, and apply, change the widget that is there."""
    notebook.run(SLIDER)
    first, second = notebook.widgets("IntSliderModel")[-2:]
    notebook.run("%px slider.value = 7")
    assert notebook.state(first)["value"] == notebook.state(second)["value"] == 7
    notebook.run("rc[0].apply_sync(lambda: setattr(slider, 'max', 1000))")
    notebook.run_until("1", lambda _: 1000 in (notebook.state(c)["max"] for c in (first, second)))


def test_a_busy_engine_answers_when_it_is_idle(notebook: Notebook) -> None:
    """What the user does meanwhile waits for the running task, and comes in its order."""
    notebook.run(SLIDER)
    comm = notebook.widgets("IntSliderModel")[-1]
    notebook.run(
        "def work():\n"
        "    while not os.path.exists('go'):\n"
        "        time.sleep(0.01)\n"
        "    return slider.value\n"
        "%px import os, time\n"
        "busy = rc[:].apply_async(work)"
    )
    for value in (10, 20, 30):
        notebook.move(comm, value=value)
    assert notebook.run("open('go', 'w').close(); busy.get(timeout=30)") == "[3, 3]"
    assert sorted(eval(notebook.run("rc[:].apply_sync(lambda: slider.value)"))) == [3, 30]
    notebook.run("import os; os.unlink('go')")


def test_closing_frees_both_ends(notebook: Notebook) -> None:
    """Whoever closes, both forget it; an engine's death closes its own."""
    count = int(notebook.run("print(len(mirrors))"))
    notebook.run(SLIDER)
    opened = int(notebook.run("print(len(mirrors))"))
    assert opened == count + 6
    comms = "rc[:].apply_sync(lambda: len(get_ipython().kernel.comm_manager.comms))"
    before = eval(notebook.run(comms))
    notebook.close(notebook.widgets("IntSliderModel")[-1])
    assert int(notebook.run("print(len(mirrors))")) == opened - 1
    assert sum(eval(notebook.run(comms))) == sum(before) - 1
    notebook.run("%px slider.close()")
    assert int(notebook.run("print(len(mirrors))")) == opened - 2
    notebook.run("%px import os\nrc[1].apply_async(os._exit, 1).wait(30)")
    notebook.run_until("print(len(rc))", lambda text: text == "1\n")
    left = int(notebook.run("print(sum(engine == 1 for engine, _ in mirrors._mirrors.values()))"))
    assert left == 0


def test_interact_shows_inside_its_widget(notebook: Notebook) -> None:
    """What the function prints and displays is the Output widget's, and changes with the slider."""
    before = set(notebook.widgets("OutputModel"))
    cell = len(notebook.client.nb.cells)
    notebook.run(
        "%%px --targets 0\n"
        "from ipywidgets import interact, IntSlider\n"
        "print('outside')\n"
        "@interact(x=IntSlider(value=2))\n"
        "def square(x):\n"
        "    print('the square of', x)\n"
        "    return x * x\n"
    )
    [output] = set(notebook.widgets("OutputModel")) - before
    assert shown_by(notebook.state(output)) == ["the square of 2\n", "4"]
    texts = [str(o.get("data", o).get("text", "")) for o in notebook.client.nb.cells[cell].outputs]
    assert "outside\n" in texts and not any("square" in text for text in texts)
    notebook.move(notebook.widgets("IntSliderModel")[-1], value=5)
    while shown_by(notebook.next_state(output)) != ["the square of 5\n", "25"]:
        continue


def test_output_widgets_take_errors_and_are_cleared(notebook: Notebook) -> None:
    """As in a notebook: the block ends, and what comes after it is the cell's again."""
    notebook.run("%%px --targets 0\nimport ipywidgets\nout = ipywidgets.Output()")
    comm = notebook.widgets("OutputModel")[-1]
    source = "with out:\n    print('inside')\n    1 / 0\nprint('after')"
    assert notebook.run(f"%%px --targets 0\n{source}") == "after\n"
    printed, error = shown_by(notebook.state(comm))
    assert printed == "inside\n" and "ZeroDivisionError" in error
    notebook.run("%%px --targets 0\nout.clear_output(wait=True)")
    assert len(shown_by(notebook.state(comm))) == 2
    notebook.run("%%px --targets 0\nwith out: print('anew')")
    assert shown_by(notebook.state(comm)) == ["anew\n"]
