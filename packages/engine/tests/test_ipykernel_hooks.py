"""One test for each undocumented thing of ipykernel and IPython that we rely on.

A release of theirs that breaks us is to break exactly the test that names what it changed.
"""

from __future__ import annotations

import array
import asyncio
import gc
import getpass
import inspect
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell

from ipyfleet_engine import ipykernel_hooks as hooks
from ipyfleet_engine.interrupts import InterruptHandler, interruptible
from ipyfleet_engine.kernel import FleetKernel
from ipyfleet_engine.output import OutputItem


def run(kernel: FleetKernel, code: str, **options: Any) -> tuple[dict[str, Any], list[OutputItem]]:
    """Run a cell; return the reply and what was published."""

    async def go() -> dict[str, Any]:
        kernel.start_engine("00" * 16)
        return await kernel.run_code(code, **{"silent": False, **options})

    task = kernel.collector.begin(b"c" * 16, 3)
    reply = asyncio.run(go())
    return reply, [item for batch in kernel.collector.finish(task) for item in batch.items]


def test_making_a_kernel_imports_no_debugger_and_starts_no_thread() -> None:
    """`without_debugger`: a failing import of debugpy is taken as "no debugger", for that time."""
    code = (
        "import sys, threading\n"
        "from ipyfleet_engine.kernel import make_kernel\n"
        "from ipyfleet_engine.output import OutputCollector\n"
        "make_kernel(OutputCollector())\n"
        "import ipykernel.debugger\n"
        "assert ipykernel.debugger._is_debugpy_available is False\n"
        "assert 'debugpy' not in sys.modules\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_cell_with_await_asks_for_the_main_thread(kernel: FleetKernel) -> None:
    """`MainThreadOnly`: `do_execute` reads `shell_channel_thread.parent_thread` and `io_loop`."""
    assert kernel.shell_channel_thread.parent_thread is threading.main_thread()
    reply, items = run(kernel, "import asyncio\nawait asyncio.sleep(0)\n'awaited'")
    assert reply["status"] == "ok"
    assert b"awaited" in items[-1].content


def test_the_shell_shows_errors_through_one_method(kernel: FleetKernel) -> None:
    """`FleetShell._showtraceback` gets the exception object, which the reply lacks."""
    reply, items = run(kernel, "raise LookupError('here')")
    assert isinstance(reply["exception"], LookupError)
    assert msgspec.msgpack.decode(items[-1].content)["traceback"] == reply["traceback"]


def test_a_syntax_error_is_shown_through_it_too(kernel: FleetKernel) -> None:
    """Also an error before execution has its exception object."""
    reply, _ = run(kernel, "def broken(:")
    assert isinstance(reply["exception"], SyntaxError)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("%nosuchmagic", "UsageError: Line magic function `%nosuchmagic` not found."),
        ("raise ExceptionGroup('both', [ValueError(1), KeyError(2)])", "    | KeyError: 2"),
        ("try:\n    raise ExceptionGroup('g', [OSError(1)])\nfinally:\n    1/0", "OSError: 1"),
        ("raise SystemExit(3)", "An exception has occurred, use %tb"),
    ],
)
def test_what_ipython_prints_of_errors_is_the_error(
    kernel: FleetKernel, code: str, shown: str
) -> None:
    """Nothing of an error is printed to stderr: not wrong use, groups, how to leave a terminal."""
    hooks.leave_out_advice()  # Tests have filters of their own.
    reply, items = run(kernel, code)
    assert reply["exception"] is not None
    content = msgspec.msgpack.decode(items[-1].content)
    assert shown in "\n".join(content["traceback"])
    assert "interactiveshell.py" not in "\n".join(content["traceback"])
    assert not [item for item in items if b"stderr" in item.content]


def test_the_traceback_of_a_deep_recursion_in_a_cell_is_short(kernel: FleetKernel) -> None:
    """IPython takes seconds to render a thousand frames, and nobody reads them."""
    reply, _ = run(kernel, "def deeper(n):\n    return deeper(n + 1)\ndeeper(0)")
    assert isinstance(reply["exception"], RecursionError)
    assert 20 < "\n".join(reply["traceback"]).count("In[") <= 61


def test_the_structured_traceback_renders_any_exception(kernel: FleetKernel) -> None:
    """`InteractiveTB.structured_traceback` takes an exception that is not the current one."""

    def fail() -> None:
        raise KeyError("missing")

    try:
        fail()
    except KeyError as error:
        saved = error
    lines = hooks.TracebackRenderer(kernel.shell).render(saved)
    text = "\n".join(lines)
    assert "KeyError" in text and "fail" in text and "\x1b[" in text
    assert "Traceback (most recent call last)" in text


def test_rendering_keeps_nothing_of_user_code_alive(kernel: FleetKernel) -> None:
    """`InteractiveTB.tb` would hold every local of the frames until the next error."""

    class Large:
        pass

    def fail() -> weakref.ref[Large]:
        large = Large()
        try:
            raise ValueError("with a local")
        except ValueError as error:
            hooks.TracebackRenderer(kernel.shell).render(error)
        return weakref.ref(large)

    reference = fail()
    gc.collect()
    assert reference() is None


def test_an_exception_may_render_itself(kernel: FleetKernel) -> None:
    """`_render_traceback_` is used as `shell.showtraceback` does."""

    class Own(Exception):
        def _render_traceback_(self) -> list[str]:
            return ["my own lines"]

    assert hooks.TracebackRenderer(kernel.shell).render(Own()) == ["my own lines"]


def test_a_rendering_that_fails_gives_the_plain_form(kernel: FleetKernel) -> None:
    """Broken exceptions are shown by Python's own means."""

    class Own(Exception):
        def _render_traceback_(self) -> list[str]:
            raise ValueError

    lines = hooks.TracebackRenderer(kernel.shell).render(Own("text"))
    assert lines[-1].endswith("Own: text")


@pytest.mark.parametrize("message", ["one", "of\ntwo lines", "with 'quotes' \\x1b[31m and colour"])
def test_errors_of_one_line_differ_in_their_message_alone(
    kernel: FleetKernel, message: str
) -> None:
    """What is used again for the second is what IPython would have rendered."""
    errors = []
    for text in ("first", message):
        try:
            raise ValueError(text)
        except ValueError as error:
            errors.append(error)
    renderer = hooks.TracebackRenderer(kernel.shell)
    again = [renderer.render(error) for error in errors]
    assert again == [hooks.TracebackRenderer(kernel.shell).render(error) for error in errors]


def test_the_second_error_of_a_line_is_not_rendered(
    kernel: FleetKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPython is asked once."""
    asked: list[Any] = []
    render = kernel.shell.InteractiveTB.structured_traceback

    def structured_traceback(*args: Any) -> Any:
        asked.append(args)
        return render(*args)

    monkeypatch.setattr(kernel.shell.InteractiveTB, "structured_traceback", structured_traceback)
    renderer = hooks.TracebackRenderer(kernel.shell)
    shown = []
    for number in range(5):
        try:
            raise ValueError(f"item {number}")
        except ValueError as error:
            shown.append(renderer.render(error)[-1])
    assert [line[-6:] for line in shown] == [f"item {number}" for number in range(5)]
    assert len(asked) == 1


def test_many_errors_are_rendered_plainly(kernel: FleetKernel) -> None:
    """When a second has gone into tracebacks the rest are cheap."""
    renderer = hooks.TracebackRenderer(kernel.shell)
    renderer.render(ValueError("first"))
    renderer._spent_s = 2.0
    assert renderer.render(ValueError("later")) == ["ValueError: later"]


def test_a_cell_is_worked_out_once(kernel: FleetKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """`do_execute` and `run_cell` transform the same string; a cell within a cell is another's."""
    shell: Any = kernel.shell
    seen: list[str] = []
    asked: list[str] = []
    before, async_before = ZMQInteractiveShell.transform_cell, ZMQInteractiveShell.should_run_async
    monkeypatch.setattr(
        ZMQInteractiveShell,
        "transform_cell",
        lambda self, raw: (seen.append(raw), before(self, raw))[1],
    )
    monkeypatch.setattr(
        ZMQInteractiveShell,
        "should_run_async",
        lambda self, raw, **more: (asked.append(raw), async_before(self, raw, **more))[1],
    )
    inner = "%alias_magic -l twice pwd"
    code = f"for _ in range(2): get_ipython().run_cell({inner!r})"
    assert run(kernel, code)[0]["status"] == "ok"
    assert seen == [code, inner, inner] and asked == seen
    assert run(kernel, "await __import__('asyncio').sleep(0)")[0]["status"] == "ok"
    assert run(kernel, ")")[0]["ename"] == "SyntaxError"
    assert run(kernel, "await __import__('asyncio').sleep(0)")[0]["status"] == "ok"
    assert shell._cell is None


def test_signatures_are_remembered(kernel: FleetKernel) -> None:
    """`inspect.signature` takes ``__signature__`` of the function for that of the method."""
    signature = inspect.signature(kernel.shell.run_cell_async)
    assert list(signature.parameters)[:3] == ["raw_cell", "store_history", "silent"]
    assert "__signature__" in vars(InteractiveShell.run_cell_async)


def test_input_is_refused_by_cells_and_by_other_tasks(kernel: FleetKernel) -> None:
    """`do_execute` replaces input and getpass and puts back what it found, which refuses too."""
    reply, _ = run(kernel, "input('name?')")
    assert reply["ename"] == "StdinNotImplementedError"
    with pytest.raises(StdinNotImplementedError, match="nobody to ask"):
        input("name?")
    with pytest.raises(StdinNotImplementedError, match="nobody to ask"):
        getpass.getpass()


def test_what_cells_print_is_not_kept(kernel: FleetKernel) -> None:
    """`FleetShell._tee`: `run_cell` asks it to copy what is printed into the history."""
    run(kernel, "print('x' * 1000)")
    assert not kernel.shell.history_manager.outputs.get(kernel.shell.execution_count - 1)


def test_shell_escapes_go_through_one_method(kernel: FleetKernel) -> None:
    """`FleetShell.system_piped` is what `!` calls; variables are those of the namespace."""
    reply, _ = run(kernel, "word = 'there'\n!test {word} = $word && exit 3\nassert _exit_code == 3")
    assert reply["status"] == "ok"
    reply, _ = run(kernel, "!sleep 1 &")
    assert reply["ename"] == "OSError"


def test_pages_are_displayed(kernel: FleetKernel) -> None:
    """`publish_pages`: what a pager would show is a payload of the reply."""
    _, items = run(kernel, "len?")
    [page] = [msgspec.msgpack.decode(i.content) for i in items if i.kind == "display_data"]
    assert "number of items" in page["data"]["text/plain"]


def test_an_exception_without_text_is_the_cells_error(kernel: FleetKernel) -> None:
    """ipykernel asks for its text, in `_showtraceback` and in `do_execute`, and would fail."""
    run(kernel, "class Mute(Exception):\n    def __str__(self):\n        1 / 0")
    with pytest.raises(kernel.namespace["Mute"]):
        run(kernel, "raise Mute")
    assert kernel.collector.task is not None
    kernel.collector.finish(kernel.collector.task)


def test_the_parent_of_output_is_the_running_task(kernel: FleetKernel) -> None:
    """Widgets' Output captures by `kernel.get_parent()['header']['msg_id']`."""
    reply, items = run(
        kernel, "print(get_ipython().kernel.get_parent()['header']['msg_id'], end='')", silent=True
    )
    assert reply["status"] == "ok"
    del items
    assert kernel.get_parent()["header"]["msg_id"] == (b"c" * 16).hex() + "_3"


def test_warming_up_leaves_no_trace(kernel: FleetKernel) -> None:
    """`warm_up` runs a cell silently: no output, no execution count."""
    before = kernel.shell.execution_count
    hooks.warm_up(kernel)
    assert kernel.shell.execution_count == before
    assert not kernel.collector


def test_own_frames_are_left_out() -> None:
    """A traceback starts at the first frame that is not the engine's; never becomes empty."""
    namespace = {"__name__": "ipyfleet_engine.runner"}
    exec("def call(f): f()", namespace)

    def user() -> None:
        raise ValueError

    try:
        namespace["call"](user)  # type: ignore[operator]
    except ValueError as error:
        tb = error.__traceback__
    assert tb is not None and tb.tb_next is not None
    stripped = hooks.strip_own_frames(tb.tb_next)
    assert stripped is not None and stripped.tb_frame.f_code is user.__code__
    assert hooks.strip_own_frames(None) is None


def test_a_deep_traceback_is_shortened() -> None:
    """The outermost and the innermost frames are kept, in order."""

    def down(n: int) -> None:
        if not n:
            raise ValueError
        down(n - 1)

    try:
        down(200)
    except ValueError as error:
        tb = error.__traceback__
    names, tb = [], hooks.shorten_traceback(tb, depth=5)
    while tb is not None:
        names.append((tb.tb_frame.f_code.co_name, tb.tb_frame.f_locals.get("n")))
        tb = tb.tb_next
    assert names[0] == ("test_a_deep_traceback_is_shortened", None)
    assert [n for _, n in names[1:]] == [200, 199, 198, 197, 4, 3, 2, 1, 0]


def test_the_kernel_describes_itself(kernel: FleetKernel) -> None:
    """`describe_kernel`: `kernel.kernel_info` is a ``kernel_info_reply``; subshells are denied."""
    content = hooks.describe_kernel(kernel)
    assert content["status"] == "ok" and content["implementation"] == "ipython"
    assert {"protocol_version", "language_info", "banner"} <= content.keys()
    assert "kernel subshells" in kernel.kernel_info["supported_features"]
    assert content["supported_features"] == []


def test_ipykernel_asks_its_application_for_the_connection_file(
    kernel: FleetKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`present_as_kernel_app`: `IPKernelApp._instance` is what `get_connection_file` looks at."""
    import ipykernel
    from ipykernel.kernelapp import IPKernelApp

    monkeypatch.setattr(IPKernelApp, "_instance", None)
    file = tmp_path / "kernel-1.json"
    file.write_text("{}")
    hooks.present_as_kernel_app(kernel, file)
    assert ipykernel.get_connection_file() == str(file)
    assert IPKernelApp.instance().kernel is kernel


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_handler_of_sigint_is_not_in_tracebacks(kernel: FleetKernel, wrapped: bool) -> None:
    """`FleetShell.showtraceback` and the renderer of tasks: the last frame is the user's."""
    code = "import signal\ndef wait():\n    signal.raise_signal(signal.SIGINT)\n"
    if wrapped:
        code += "try:\n    wait()\nexcept KeyboardInterrupt:\n    raise ValueError('in its place')"
    else:
        code += "wait()"
    loop = asyncio.new_event_loop()
    handler = InterruptHandler(loop, memoryview(array.array("q", [0])))
    before = signal.signal(signal.SIGINT, handler)
    run_as_user = interruptible(lambda: run(kernel, code))
    try:
        reply, _ = run_as_user()
        text = "\n".join(reply["traceback"])
        shown = hooks.TracebackRenderer(kernel.shell).render(reply["exception"])
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
    assert "raise_signal" in text and "KeyboardInterrupt" in text
    for lines in (text, "\n".join(shown)):
        assert "interrupts.py" not in lines and "raise_signal" in lines
