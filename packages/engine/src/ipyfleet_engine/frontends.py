"""What Jupyter frontends ask of an engine whose kernel is bound.

What lives here: `Frontends`, which answers requests, and `FrontendRequest`, which output of one
belongs to. What must not: sockets (`ports`), tasks.

Theory of operation
-------------------
A request waits until the main thread is between two tasks, is answered there, and no task begins
before that is done: to the runner it is a visit. While it is answered it stands where the running
task stands otherwise (`OutputCollector.task`), so that all output finds its way to the frontends
alone. Two kinds need no main thread and are answered at once: those that ask who we are, and those
of the control port.

A frontend cannot end the engine: ``shutdown_request`` is refused. Whoever closes a console's
window must not take the tasks, the namespace and the other users of the engine along.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from IPython.core.error import StdinNotImplementedError

from .interrupts import interruptible
from .ipykernel_hooks import describe_kernel
from .output import TaskOutput
from .ports import Address, KernelPorts, Message

if TYPE_CHECKING:
    from .kernel import FleetKernel

log = logging.getLogger("ipyfleet.engine")

REFUSED = (
    "this kernel is an engine of a cluster, which a frontend cannot shut down or restart; "
    "from a client: rc.shutdown(targets=[...]), or rc[i].clear() for a fresh namespace"
)

Visit = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""`TaskRunner.visit`."""


class FrontendRequest(TaskOutput):
    """A request; to the `OutputCollector`, what output belongs to while it is answered.

    Attributes:
        address: the request and where it came from.
        aborted: a cell before it, of the same frontend, has failed.
        sink: itself.
    """

    __slots__ = ("_ports", "aborted", "address", "sink")

    def __init__(self, address: Address, ports: KernelPorts) -> None:
        super().__init__(b"", -1)
        self.address = address
        self.aborted = False
        self.sink = self
        self._ports = ports

    @property
    def message(self) -> Message:
        """The Jupyter message."""
        return self.address.message

    @property
    def kind(self) -> str:
        """The type of the message."""
        return str(self.message["header"]["msg_type"])

    @property
    def content(self) -> Message:
        """The content of the message."""
        content: Message = self.message["content"]
        return content

    # -- output -------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """Send text to the frontends."""
        self._ports.write(self.message, name, text)

    def publish(
        self,
        kind: str,
        content: Message,
        metadata: Message | None = None,
        buffers: Sequence[Any] = (),
    ) -> None:
        """Send a message to the frontends."""
        self._ports.publish(self.message, kind, content, metadata, buffers)

    def status(self, state: str) -> None:
        """Send the kernel's state to the frontends: busy or idle."""
        self.publish("status", {"execution_state": state})

    def reply(self, content: Message) -> None:
        """Answer the request."""
        self._ports.reply(self.address, content, {"status": content.get("status", "ok")})

    def ask(self, prompt: str, *, password: bool) -> str:
        """Ask the frontend's user for a line.

        Raises:
            StdinNotImplementedError: if the frontend cannot.
        """
        if not self.content.get("allow_stdin", False):
            raise StdinNotImplementedError("this frontend does not support requests for input")
        return self._ports.ask(self.address, prompt, password=password)


class Frontends:
    """Answers the requests of all frontends; see the module docstring."""

    def __init__(self, kernel: FleetKernel) -> None:
        self._kernel = kernel
        self._ports: KernelPorts
        self._visit: Visit | None = None
        self._waiting: deque[FrontendRequest] = deque()
        self._handlers: dict[str, Callable[[FrontendRequest], Awaitable[Message | None]]] = {
            "execute_request": self._execute,
            "complete_request": self._complete,
            "inspect_request": self._inspect,
            "history_request": self._history,
            "is_complete_request": self._is_complete,
            "comm_info_request": self._comm_info,
            "comm_open": self._comm,
            "comm_msg": self._comm,
            "comm_close": self._comm,
        }

    def attach_ports(self, ports: KernelPorts) -> None:
        """Take the ports over which answers go."""
        self._ports = ports

    def attach_runner(self, visit: Visit) -> None:
        """Take the way into the main thread; requests that came before are answered now."""
        self._visit = visit
        for _ in range(len(self._waiting)):
            visit(self._answer_next)

    # -- in the ports' thread -----------------------------------------------------------------

    def handle(self, address: Address) -> None:
        """Answer a request, or have the main thread do so."""
        request = FrontendRequest(address, self._ports)
        if request.kind == "kernel_info_request":
            self._answer_at_once(request, describe_kernel(self._kernel))
        elif request.kind == "interrupt_request":
            # The handler of SIGINT knows whether there is something to interrupt.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            self._answer_at_once(request, {"status": "ok"})
        elif request.kind == "shutdown_request":
            self._answer_at_once(request, self._refuse_shutdown(request))
        elif request.kind in self._handlers:
            self._waiting.append(request)
            if self._visit is not None:
                self._visit(self._answer_next)
        else:
            log.info("a frontend's message of the type %r was ignored", request.kind)

    def _answer_at_once(self, request: FrontendRequest, content: Message) -> None:
        request.status("busy")
        request.reply(content)
        request.status("idle")

    def _refuse_shutdown(self, request: FrontendRequest) -> Message:
        request.write("stderr", f"{REFUSED}\n")
        restart = bool(request.content.get("restart", False))
        return {"restart": restart, **_error_content("KernelError", REFUSED)}

    # -- in the main thread -------------------------------------------------------------------

    async def _answer_next(self) -> None:
        request = self._waiting.popleft()
        self._kernel.collector.task = request
        self._kernel.set_parent(  # type: ignore[no-untyped-call]
            request.address.idents, request.message
        )
        request.status("busy")
        try:
            if request.aborted:
                reply: Message | None = {"status": "aborted"}
            else:
                reply = await _run(self._handlers[request.kind], request)
        except BaseException as error:  # noqa: BLE001 - whatever user code raises
            reply = _error_content(type(error).__name__, _text_of(error))
        self._kernel.collector.settle()
        if request.kind == "execute_request":
            self._finish_execute(request, reply)
        if reply is not None:
            request.reply(reply)
        request.status("idle")

    def _finish_execute(self, request: FrontendRequest, reply: Message | None) -> None:
        """Abort what the frontend has sent behind a cell that failed, as it expects."""
        content = request.content
        if (
            reply is not None
            and reply["status"] == "error"
            and not content.get("silent", False)
            and content.get("stop_on_error", True)
        ):
            frontend = request.message["header"].get("session")
            for other in list(self._waiting):
                if (
                    other.kind == "execute_request"
                    and other.message["header"].get("session") == frontend
                ):
                    other.aborted = True

    async def _execute(self, request: FrontendRequest) -> Message:
        content = request.content
        code = str(content["code"])
        silent = bool(content.get("silent", False))
        shell: Any = self._kernel.shell
        if not silent:
            count = {"code": code, "execution_count": shell.execution_count}
            request.publish("execute_input", count)
        execute: Any = self._kernel.do_execute
        reply: Message = await execute(
            code,
            silent,
            store_history=bool(content.get("store_history", not silent)),
            user_expressions=content.get("user_expressions"),
            allow_stdin=bool(content.get("allow_stdin", False)),
        )
        # It would keep what the frames of the error held.
        shell.last_shown = None
        return reply

    async def _complete(self, request: FrontendRequest) -> Message:
        content = request.content
        complete: Any = self._kernel.do_complete
        reply: Message = complete(content["code"], content["cursor_pos"])
        return reply

    async def _inspect(self, request: FrontendRequest) -> Message:
        content = request.content
        inspect: Any = self._kernel.do_inspect
        reply: Message = inspect(
            content["code"],
            content["cursor_pos"],
            content.get("detail_level", 0),
            set(content.get("omit_sections", [])),
        )
        return reply

    async def _is_complete(self, request: FrontendRequest) -> Message:
        is_complete: Any = self._kernel.do_is_complete
        reply: Message = is_complete(request.content["code"])
        return reply

    async def _history(self, request: FrontendRequest) -> Message:
        """Tell the history of the engine's life, which is all there is: it has no database."""
        content = request.content
        shell: Any = self._kernel.shell
        raw, output = content.get("raw", True), content.get("output", False)
        kind = content.get("hist_access_type")
        start, stop = (
            (content.get("start") or 1, content.get("stop")) if kind == "range" else (1, None)
        )
        entries = list(shell.history_manager.get_range(0, start, stop, raw=raw, output=output))
        if kind == "search":
            pattern = content.get("pattern") or "*"
            entries = [e for e in entries if fnmatch.fnmatchcase(_input_of(e), pattern)]
            if content.get("unique", False):
                entries = list({_input_of(e): e for e in entries}.values())
        if kind != "range" and content.get("n") is not None:
            entries = entries[-content["n"] :] if content["n"] > 0 else []
        return {"status": "ok", "history": entries}

    async def _comm_info(self, request: FrontendRequest) -> Message:
        wanted = request.content.get("target_name")
        comms: Any = getattr(self._kernel.comm_manager, "comms", {})
        found = {
            key: {"target_name": comm.target_name}
            for key, comm in list(comms.items())
            if wanted in (None, comm.target_name)
        }
        return {"status": "ok", "comms": found}

    async def _comm(self, request: FrontendRequest) -> None:
        handler = getattr(self._kernel.comm_manager, request.kind)
        handler(None, request.address.idents, request.message)


@interruptible
async def _run(
    handler: Callable[[FrontendRequest], Awaitable[Message | None]], request: FrontendRequest
) -> Message | None:
    return await handler(request)


def _input_of(entry: Sequence[Any]) -> str:
    """Return the code of an entry of the history: (session, line, code or (code, output))."""
    code = entry[2]
    return str(code[0] if isinstance(code, tuple) else code)


def _text_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "the request was cancelled"
    try:
        return str(error)
    except Exception as trouble:  # noqa: BLE001 - the exception's own code runs here
        return f"<its text cannot be shown: {type(trouble).__name__}>"


def _error_content(ename: str, evalue: str) -> Message:
    traceback = [f"{ename}: {evalue}"]
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback}
