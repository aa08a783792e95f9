"""The engine's kernel: a full `IPythonKernel` that has no sockets of its own.

What lives here: `FleetKernel` and `make_kernel`. What must not: tasks, the link to the
controller, and anything undocumented of ipykernel (`ipykernel_hooks` is for that).
"""

from __future__ import annotations

import logging
import types
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from IPython.core.error import StdinNotImplementedError
from traitlets import Type
from traitlets.config import Config

from ipyfleet_protocol.ids import PeerId, format_msg_id

from .comms import CommOwners
from .frontends import FrontendRequest
from .ipykernel_hooks import (
    FleetShell,
    MainThreadOnly,
    leave_out_advice,
    publish_pages,
    refuse_input,
    remember_signatures,
    without_debugger,
)
from .output import OutputCollector
from .outputwidget import OutputWidgets
from .session import FleetSession


class FleetKernel(IPythonKernel):
    """An IPython kernel whose requests come from the controller.

    Attributes:
        collector: where its output goes.
        comm_owners: which task opened which comm.
    """

    shell_class = Type(FleetShell)
    collector: OutputCollector

    def __init__(self, **kwargs: Any) -> None:
        self.comm_owners = CommOwners()
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.shell_channel_thread = MainThreadOnly()

    @property
    def namespace(self) -> dict[str, Any]:
        """The user's namespace."""
        shell: Any = self.shell
        namespace: dict[str, Any] = shell.user_ns
        return namespace

    def get_parent(self, channel: str | None = None) -> dict[str, Any]:
        """Return a Jupyter message that stands for the running task: the parent of its output."""
        task = self.collector.task
        if task is None:
            return {}
        task = task.behind or task
        if isinstance(task, FrontendRequest):
            return task.message
        header = {
            "msg_id": format_msg_id(PeerId(task.client), task.seq),
            "msg_type": "execute_request",
            "session": task.client.hex(),
            "username": "",
        }
        return {"header": header, "parent_header": {}, "metadata": {}, "content": {}}

    def raw_input(self, prompt: str = "") -> str:
        """Ask the frontend whose request is answered; refuse the `input()` of a task.

        Raises:
            StdinNotImplementedError: in a task.
        """
        task = self.collector.task
        if isinstance(task, FrontendRequest):
            return task.ask(str(prompt), password=False)
        raise StdinNotImplementedError(
            "input() was called on an engine, which has nobody to ask; pass the value as an "
            "argument, or push it into the namespace first: view['name'] = value"
        )

    def getpass(self, prompt: str = "", stream: Any = None, **kwargs: Any) -> str:
        """The same for `getpass.getpass()`.

        Raises:
            StdinNotImplementedError: in a task.
        """
        task = self.collector.task
        if isinstance(task, FrontendRequest):
            return task.ask(prompt, password=True)
        raise StdinNotImplementedError(
            "getpass() was called on an engine, which has nobody to ask; pass the value as an "
            "argument"
        )

    async def run_code(self, code: str, *, silent: bool) -> dict[str, Any]:
        """Execute code as a notebook cell.

        Args:
            code: the code; magics and top-level await included.
            silent: publish neither input nor result and keep no history.

        Returns:
            The content of an ``execute_reply``; after an error the exception is under
            ``exception``.
        """
        shell: Any = self.shell
        parent = self.get_parent()
        self.set_parent([], parent)  # type: ignore[no-untyped-call]
        shell.last_shown = None
        execute: Any = self.do_execute
        try:
            with shell.working_out_once(code):
                reply: dict[str, Any] = await execute(code, silent, store_history=not silent)
        except Exception:
            # `do_execute` fails at an exception whose text cannot be had: that is the cell's error.
            shown, shell.last_shown = shell.last_shown, None
            if shown is None:
                raise
            raise shown from None
        publish_pages(self, reply)
        if reply["status"] == "error":
            reply["exception"] = shell.last_shown
            shell.last_shown = None
        return reply

    def start_engine(self, ident: str) -> None:
        """Take up the work in the process that is going to be the engine.

        Args:
            ident: the engine's peer id, in hex.
        """
        from tornado.ioloop import IOLoop

        self.ident = ident
        self.io_loop = IOLoop.current()
        refuse_input(self)


def make_kernel(collector: OutputCollector, config: Config | None = None) -> FleetKernel:
    """Return the process's kernel.

    It starts no thread, opens no socket and no file, so that an agent can make it once and fork
    engines that have it. Its namespace becomes that of the module ``__main__``.
    """
    kernel_config = Config() if config is None else Config(config)
    # History is kept in memory for the engine's life; a database would need a thread.
    kernel_config.HistoryManager.enabled = False
    main = types.ModuleType("__main__", "The namespace of an engine.")
    session = FleetSession()
    session.collector = collector
    with without_debugger():
        kernel = FleetKernel.instance(
            session=session,
            user_module=main,
            user_ns=main.__dict__,
            config=kernel_config,
            log=logging.getLogger("ipyfleet.kernel"),
        )
    kernel.collector = collector
    remember_signatures()
    leave_out_advice()
    session.owners = kernel.comm_owners
    session.output_widgets = OutputWidgets(session.say_state)
    return kernel
