"""`bind_kernel`: make an engine a kernel that Jupyter's frontends can connect to.

What lives here: `bind_kernel`; `Binding`, which opens the ports and keeps the connection file; the
magics ``%connect_info`` and ``%qtconsole``. What must not: messages (`ports`, `frontends`).
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from jupyter_client.connect import write_connection_file
from jupyter_core.paths import jupyter_runtime_dir

from .frontends import Frontends, Visit
from .ipykernel_hooks import present_as_kernel_app
from .mark import RunningMark
from .ports import HOST, PORT_NAMES, KernelPorts

if TYPE_CHECKING:
    from .kernel import FleetKernel

log = logging.getLogger("ipyfleet.engine")

_OFF_ENGINE = (
    "bind_kernel() works on engines only: run it there, with "
    "`%px from ipyfleet import bind_kernel; bind_kernel()` or view.apply(bind_kernel)"
)

# Closing a window does the engine no harm, so there is nothing to ask; and when the engine leaves,
# its windows close by themselves.
_QTCONSOLE = [sys.executable, "-m", "qtconsole", "--no-confirm-exit"]


class Binding:
    """What an engine has to do with Jupyter's frontends, from its start to its end.

    Attributes:
        path: the connection file, once the kernel is bound.
    """

    def __init__(self, kernel: FleetKernel, mark: RunningMark) -> None:
        """Make one; nothing is opened before `bind`.

        Args:
            kernel: who answers.
            mark: where the agent is told of the file, to remove it if the engine is killed.
        """
        self.path: Path | None = None
        self._kernel = kernel
        self._mark = mark
        self._frontends = Frontends(kernel)
        self._ports: KernelPorts | None = None
        self._lock = threading.Lock()
        self._consoles: list[subprocess.Popen[bytes]] = []
        self._log: TextIO | None = None

    def install(self, log: TextIO) -> None:
        """Make `bind_kernel` and the magics work in this process.

        Args:
            log: the engine's log file, which gets what consoles write.
        """
        global _binding
        _binding = self
        self._log = log
        shell: Any = self._kernel.shell
        shell.register_magics(BindingMagics(shell=shell))

    def attach_runner(self, visit: Visit) -> None:
        """Take the way into the main thread."""
        self._frontends.attach_runner(visit)

    def bind(self, connection_file: str = "", **ports: int) -> Path:
        """Open the ports and write the connection file, unless that has been done.

        Args:
            connection_file: its name or path; by default ``kernel-<pid>.json`` in Jupyter's
                runtime directory.
            ports: wanted port numbers, as ``shell_port=…``; 0 for any.

        Returns:
            The connection file.

        Raises:
            OSError: if the file cannot be written or a port cannot be had; nothing is left open
                then.
        """
        with self._lock:
            if self.path is not None:
                return self.path
            # Relative to that directory; an absolute path stays what it is.
            path = Path(jupyter_runtime_dir()) / (connection_file or f"kernel-{os.getpid()}.json")
            ports_ = KernelPorts(f"kernel.{self._kernel.ident}", self._frontends.handle)
            self._frontends.attach_ports(ports_)
            ports_.open({name: ports.get(f"{name}_port", 0) for name in PORT_NAMES})
            try:
                self._write_file(path, ports_)
            except BaseException:
                ports_.close()
                raise
            self._ports = ports_
            self.path = path
            present_as_kernel_app(self._kernel, path)
            log.info("the kernel is bound; its connection file is %s", path)
            return path

    def _write_file(self, path: Path, ports: KernelPorts) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before there is a file: the engine may be killed at any moment.
        self._mark.note_file(path)
        numbers = ports.numbers
        write_connection_file(
            str(path),
            shell_port=numbers["shell"],
            iopub_port=numbers["iopub"],
            stdin_port=numbers["stdin"],
            hb_port=numbers["hb"],
            control_port=numbers["control"],
            ip=HOST,
            key=ports.key,
        )

    def start_qtconsole(self, arguments: list[str]) -> None:
        """Start a qtconsole on this host, connected to this engine; bind the kernel first.

        It ends when its window is closed or the engine leaves.

        Raises:
            UsageError: if that cannot be.
        """
        if find_spec("qtconsole") is None:
            raise UsageError("qtconsole is not installed where this engine runs")
        displays = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
            raise UsageError("this engine has no display: DISPLAY was not set when it started")
        path = self.bind()
        self._consoles = [console for console in self._consoles if console.poll() is None]
        # In a session of its own: what interrupts the engine must not end the window. Its messages
        # go to the engine's log.
        console = subprocess.Popen(
            [*_QTCONSOLE, "--existing", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._consoles.append(console)
        print(f"started a qtconsole as process {console.pid}")

    def remove_file(self) -> None:
        """Remove the connection file; from any thread."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Be no engine any more, in a process that user code has forked: touch nothing."""
        global _binding
        _binding = None
        self.path = None
        self._ports = None

    def close(self) -> None:
        """Remove the file, tell the frontends, close the ports."""
        global _binding
        with self._lock:
            _binding = None
            self.remove_file()
            if self._ports is not None:
                self._ports.close()
                self._ports = None


_binding: Binding | None = None
"""This process's, if it is an engine."""


def bind_kernel(
    *,
    connection_file: str = "",
    shell_port: int = 0,
    iopub_port: int = 0,
    stdin_port: int = 0,
    control_port: int = 0,
    hb_port: int = 0,
) -> None:
    """Let Jupyter's frontends connect to this engine; run it there.

    Opens the ports of a Jupyter kernel beside the engine's link, on 127.0.0.1 only, and writes a
    connection file that ``jupyter console --existing`` and ``jupyter qtconsole --existing`` find.
    Requests of frontends run in the engine's namespace, in turn with its tasks. A second call does
    nothing.

    Args:
        connection_file: the file's name or path; default ``kernel-<pid>.json`` in Jupyter's
            runtime directory.
        shell_port, iopub_port, stdin_port, control_port, hb_port: port numbers; default any.

    Raises:
        RuntimeError: if this process is not an engine.
        OSError: if the file cannot be written or a port cannot be had.
    """
    current_binding().bind(
        connection_file,
        shell_port=shell_port,
        iopub_port=iopub_port,
        stdin_port=stdin_port,
        control_port=control_port,
        hb_port=hb_port,
    )


def current_binding() -> Binding:
    """Return this engine's binding.

    Raises:
        RuntimeError: if this process is not an engine.
    """
    if _binding is None:
        raise RuntimeError(_OFF_ENGINE)
    return _binding


@magics_class
class BindingMagics(Magics):
    """``%connect_info`` and ``%qtconsole`` on an engine, in place of ipykernel's."""

    @line_magic
    def connect_info(self, line: str) -> None:
        """Print what other frontends need to connect to this engine."""
        path = current_binding().path
        if path is None:
            raise UsageError("the engine's kernel is not bound; call ipyfleet.bind_kernel() first")
        name = path.name if path.parent == Path(jupyter_runtime_dir()) else path
        print(
            f"{path.read_text()}\n\n"
            "Paste the above JSON into a file, and connect with:\n"
            "    $> jupyter <app> --existing <file>\n"
            "or, if you are local, you can connect with just:\n"
            f"    $> jupyter <app> --existing {name}\n"
            "or even just:\n"
            "    $> jupyter <app> --existing\n"
            "if this is the most recent Jupyter kernel you have started."
        )

    @line_magic
    def qtconsole(self, line: str) -> None:
        """Start a qtconsole that is connected to this engine."""
        current_binding().start_qtconsole(shlex.split(line))
