"""%px in JupyterLab, as a user sees it: a notebook opened, run and interrupted in a browser.

Needs Debian's ``chromium`` and ``chromium-driver`` (`make services`), and jupyterlab and selenium.
A picture of the notebook is left in ``build/jupyterlab.png``, one of widgets of engines in
``build/jupyterlab-widgets.png``.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytest.importorskip("jupyterlab", reason="needs jupyterlab")
pytest.importorskip("selenium", reason="needs selenium")
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PICTURE = Path(__file__).resolve().parents[1] / "build" / "jupyterlab.png"
TIMEOUT_S = 60
TOKEN = "a-test"

CELLS = [
    "import ipyfleet as ipf\nrc = ipf.Client()",
    "%px print('hi')",
    """%%px
%matplotlib inline
import matplotlib.pyplot as plt
import os
plt.figure(figsize=(2, 1))
plt.plot([1, 3, 2])
plt.show()
os.getpid()""",
    """%%px --targets 0,1
import time
for second in range(60):
    print('second', second, flush=True)
    time.sleep(1)""",
    "%px print('alive')",
    """%%px --targets 0,1
import ipywidgets
slider = ipywidgets.IntSlider(value=3)
slider.observe(lambda change: print('moved to', change['new']), 'value')
slider""",
    "rc[:2].apply_sync(lambda: slider.value)",
    "_ = rc[:2].execute('slider.value = 50')",
]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.skipif(DRIVER is None, reason="needs chromium-driver"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def lab(ipcluster: Path, tmp_path: Path) -> Iterator[str]:
    """Start JupyterLab with one notebook; yield the notebook's address."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "fleet.ipynb")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    environment = {
        **os.environ,
        "IPYTHONDIR": os.fspath(ipcluster),
        **{
            f"JUPYTER_{kind}_DIR": os.fspath(tmp_path / f"jupyter_{kind.lower()}")
            for kind in ("CONFIG", "DATA", "RUNTIME")
        },
        "JUPYTERLAB_SETTINGS_DIR": os.fspath(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": os.fspath(tmp_path / "workspaces"),
    }
    # Nothing is asked of the world outside.
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"checkForUpdates": false, "doNotDisturbMode": true, "fetchNews": "false"}'
    )
    log = tmp_path / "lab.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *(f"--port={port}", "--ServerApp.port_retries=0", "--ip=127.0.0.1"),
                *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"),
                "--LabApp.extension_manager=readonly",
            ],
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        _wait_for_server(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/fleet.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)
            raise


def _wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_there(_: object) -> bool:
        assert server.poll() is None, log.read_text(errors="replace")
        try:
            with opener.open(address, timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    WebDriverWait(None, TIMEOUT_S, poll_frequency=0.2).until(is_there)  # type: ignore[type-var]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Start Chromium without a window."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--window-size=1200,2000",
        f"--user-data-dir={tmp_path / 'chromium'}",
    ):
        options.add_argument(argument)
    # What it keeps for its user stays here, too.
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    environment = {**os.environ, "HOME": os.fspath(tmp_path), "XDG_RUNTIME_DIR": os.fspath(runtime)}
    service = Service(str(DRIVER), env=environment)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The notebook in the browser."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def wait_until(self, condition: Any, what: str) -> None:
        """Wait for something to be on the page."""
        try:
            WebDriverWait(self._browser, TIMEOUT_S, poll_frequency=0.2).until(lambda _: condition())
        except TimeoutException:
            self.take_picture(PICTURE.with_name("jupyterlab-failed.png"))
            shown = [self.output(cell) for cell in range(len(CELLS))]
            pytest.fail(f"waited in vain for: {what}; the outputs are:\n{shown}")

    def output(self, cell: int) -> str:
        """All text that a cell shows."""
        script = """
            const cells = document.querySelectorAll(".jp-Notebook .jp-CodeCell");
            if (cells.length <= arguments[0]) return "";
            const outputs = cells[arguments[0]].querySelectorAll(".jp-OutputArea-output");
            return Array.from(outputs).map(output => output.innerText.trimEnd()).join("\\n");
        """
        return str(self._browser.execute_script(script, cell))

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return len(self._browser.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        """Click the first element."""
        self._browser.find_element(By.CSS_SELECTOR, selector).click()

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements."""
        return [e.text for e in self._browser.find_elements(By.CSS_SELECTOR, selector)]

    def press(self, selector: str, position: int, key: str) -> None:
        """Press a key on one of the elements."""
        element = self._browser.find_elements(By.CSS_SELECTOR, selector)[position]
        element.click()
        element.send_keys(key)

    def select(self, cell: int) -> None:
        """Make a cell the one that runs next."""
        self.click(f".jp-Notebook .jp-CodeCell:nth-of-type({cell + 1}) .cm-content")

    def run_next(self) -> None:
        """Press Shift+Enter."""
        webdriver.ActionChains(self._browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
            Keys.SHIFT
        ).perform()

    def take_picture(self, path: Path) -> None:
        """Save what the browser shows."""
        path.parent.mkdir(exist_ok=True)
        self._browser.save_screenshot(os.fspath(path))


def test_notebook_in_jupyterlab(lab: str, browser: Any) -> None:
    """Cells on engines show text, plots and values; the stop button interrupts the engines."""
    browser.get(lab)
    page = Page(browser)
    page.wait_until(lambda: page.count(".jp-Notebook .jp-CodeCell") == len(CELLS), "the notebook")
    idle = ".jp-NotebookPanel-toolbar [data-status='idle']"
    page.wait_until(lambda: page.count(idle) > 0, "the kernel")
    page.click(".jp-Notebook .jp-CodeCell .cm-content")
    page.run_next()
    page.run_next()
    said = [f"[stdout:{engine}] hi" for engine in range(4)]
    page.wait_until(lambda: sorted(page.output(1).split("\n")) == said, "the text of %px")
    page.run_next()
    page.wait_until(lambda: "Out[3:" in page.output(2), "the values")
    images = ".jp-CodeCell:nth-of-type(3) .jp-OutputArea-output img"
    page.wait_until(lambda: page.count(images) == 4, "the plots")
    assert sorted(re.findall(r"\[output:(\d)\]", page.output(2))) == ["0", "1", "2", "3"]
    page.run_next()
    # It is shown while the cell runs, each engine in an area of its own.
    page.wait_until(lambda: len(re.findall(r"second 1\b", page.output(3))) == 2, "live output")
    assert page.output(3).count("[stdout:") == 2
    page.click("[data-command='notebook:interrupt-kernel']")
    page.wait_until(lambda: "2 errors" in page.output(3), "the end of the interrupted cell")
    assert "sending SIGINT to engine(s) [0, 1]" in page.output(3)
    assert page.output(3).count("KeyboardInterrupt") >= 1
    page.run_next()
    page.wait_until(lambda: page.output(4).count("] alive") == 4, "the engines after it")
    page.take_picture(PICTURE)
    page.run_next()
    sliders = ".jp-CodeCell:nth-of-type(6) .widget-slider"
    page.wait_until(lambda: page.count(sliders) == 2, "the sliders of two engines")
    page.press(".jp-CodeCell:nth-of-type(6) .noUi-handle", 1, Keys.ARROW_RIGHT)
    page.wait_until(lambda: "[stdout:1] moved to 4" in page.output(5), "what the observer prints")
    assert "[stdout:0]" not in page.output(5)
    page.select(6)
    page.run_next()
    page.wait_until(lambda: page.output(6) == "[3, 4]", "the values on the engines")
    page.run_next()
    values = ".jp-CodeCell:nth-of-type(6) .widget-readout"
    page.wait_until(lambda: page.texts(values) == ["50", "50"], "the values that engines have set")
    page.take_picture(PICTURE.with_name("jupyterlab-widgets.png"))
