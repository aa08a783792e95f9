"""Code that runs in an engine before its first task.

What lives here: `run_startup_code`. What must not: tasks.

The traits are those of IPython's `InteractiveShellApp`, read from the profile's
``ipengine_config.py``: ``exec_lines``, ``exec_files``, ``extensions``, ``matplotlib``, … A profile
may say them of `IPKernelApp`, too, as for any kernel. The profile's ``startup`` directory and
``PYTHONSTARTUP`` are run as well. An error is logged with its traceback and the rest goes on: an
engine without its start-up code can be asked what was wrong, one that is gone cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from IPython.core.shellapp import InteractiveShellApp
from traitlets import Any as AnyTrait
from traitlets.config import Config

log = logging.getLogger("ipyfleet.engine")


class StartupCode(InteractiveShellApp):
    """IPython's own start-up steps, for the shell of an engine.

    Attributes:
        shell: the engine's shell.
        profile_dir: of the engine's profile.
        log: the engine's logger.
        ipython_dir, extra_args: what `InteractiveShellApp` asks of the application it is part of.
    """

    profile_dir = AnyTrait()
    log = AnyTrait()

    def __init__(self, shell: Any, profile_path: Path, config: Config) -> None:
        merged = Config(config)
        for section in ("IPKernelApp", "IPEngineApp"):
            merged.InteractiveShellApp.merge(_own_traits(config, section))
        super().__init__(config=merged, shell=shell)
        self.log = log
        # Not IPython's `ProfileDir`, which would create files in the profile.
        self.profile_dir = SimpleNamespace(
            location=str(profile_path), startup_dir=str(profile_path / "startup")
        )
        self.ipython_dir = str(profile_path.parent)
        self.extra_args: list[str] = [""]

    def exit(self, exit_status: int = 0) -> None:
        """Go on: the engine does not end with its start-up code."""


def _own_traits(config: Config, section: str) -> Config:
    """Return what a section of the configuration says of `InteractiveShellApp`'s traits."""
    known = InteractiveShellApp.class_trait_names(config=True)
    values = config.get(section, {})
    return Config({name: value for name, value in values.items() if name in known})


def run_startup_code(
    shell: Any, profile_path: Path, config: Config, *, script: str = "", command: str = ""
) -> None:
    """Run all start-up code of an engine, in the order of IPython, then that of the command line.

    Outside of a running event loop, so that the code may have top-level await.

    Args:
        shell: the engine's shell.
        profile_path: the directory of its profile.
        config: the engine's configuration.
        script: a file to run, or "".
        command: code to run, or "".
    """
    app = StartupCode(shell, profile_path, config)
    _logged("GUI event loop or matplotlib", app.init_gui_pylab)
    _logged("extensions", app.init_extensions)
    _logged("start-up code of the profile", app.init_code)
    if script:
        _logged(f"start-up script {script}", lambda: _run_script(shell, script))
    if command:
        _logged("start-up command", lambda: _run_cell(shell, command))


def _logged(what: str, run: Callable[[], Any]) -> None:
    """Run a step; what it raises goes to the log and no further."""
    try:
        run()
    except (Exception, SystemExit):
        log.exception("%s failed", what)


def _run_script(shell: Any, script: str) -> None:
    path = Path(script).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no start-up script {path}")
    if path.suffix in (".ipy", ".ipynb"):
        shell.safe_execfile_ipy(str(path))
    else:
        shell.user_ns["__file__"] = str(path)
        try:
            _run_cell(shell, path.read_text(encoding="utf-8"))
        finally:
            shell.user_ns.pop("__file__", None)


def _run_cell(shell: Any, code: str) -> None:
    # Errors are shown by the shell, which logs them while no task runs.
    shell.run_cell(code, store_history=False)
