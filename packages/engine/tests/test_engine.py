"""One real engine, forked by a real agent: what tasks do, what returns."""

from __future__ import annotations

import itertools
import math
import os
import signal
from typing import Any

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode_part, encode_part
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.namespace import Reference, push_names


def content(item: m.OutputItem) -> Any:
    """Return the content of an item."""
    return msgspec.msgpack.decode(item.content)


# -- apply and map ----------------------------------------------------------------------------


def test_apply_returns_the_value(shared: Any) -> None:
    """Arguments and keyword arguments reach the function, its value comes back."""
    ended = shared.apply(shared.engine, lambda a, b=0: (a, b), [1], b={"k": None})
    assert ended.value == ([1], {"k": None})
    assert ended.started <= ended.completed


def test_tasks_run_in_order_and_results_share_messages(shared: Any) -> None:
    """A thousand tasks end in the order of their ordinals, in far fewer messages."""
    shared.inbox.clear()
    seqs = shared.run(shared.engine, "apply", [((i,), {}) for i in range(1000)], lambda x: x * x)
    ended = shared.results(seqs)
    assert [e.value for e in ended] == [i * i for i in range(1000)]
    assert [e.ordinal for e in ended] == sorted(e.ordinal for e in ended)
    assert all(a.completed <= b.started for a, b in itertools.pairwise(ended))
    # One in a millisecond at most, of which a slow machine takes more.
    took_ms = 1000 * (ended[-1].completed - ended[0].started)
    n_messages = sum(isinstance(r.message, m.Results) for r in shared.inbox)
    assert n_messages < max(100, 2 * took_ms)


def test_map_applies_to_each_item(shared: Any) -> None:
    """A map task's value is the list of the values of its part."""
    seqs = shared.run(shared.engine, "map", [(([1, 2, 3], [10, 20, 30]), {})], lambda a, b: a + b)
    assert shared.results(seqs)[0].value == [11, 22, 33]


def test_async_functions_are_awaited(shared: Any) -> None:
    """A coroutine's result is the task's, for apply and for each item of a map."""

    async def double(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.001)
        return 2 * x

    assert shared.apply(shared.engine, double, 21).value == 42
    seqs = shared.run(shared.engine, "map", [(([1, 2],), {})], double)
    assert shared.results(seqs)[0].value == [2, 4]


def test_an_async_task_holds_back_the_next(shared: Any) -> None:
    """Tasks run one at a time, also where one is waiting for something."""

    async def slow() -> None:
        import asyncio

        await asyncio.sleep(0.05)

    first = shared.run(shared.engine, "apply", [((), {})], slow)
    second = shared.run(shared.engine, "apply", [((), {})], lambda: None)
    a, b = shared.results(first + second)
    assert a.status == b.status == m.OK and a.completed <= b.started


def test_a_function_that_calls_itself_finds_itself(shared: Any) -> None:
    """Recursion works without a push, and leaves no name behind."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def fact(n):\n    return n * fact(n - 1) if n else 1", namespace)
    assert shared.apply(shared.engine, namespace["fact"], 10).value == 3628800
    assert shared.execute(shared.engine, "fact").error.ename == "NameError"


def test_globals_are_the_engines(shared: Any) -> None:
    """A function of __main__ sees the engine's namespace, and a missing name is a NameError."""
    namespace: dict[str, Any] = {"__name__": "__main__", "LIMIT": 1}
    exec("def read_limit():\n    return LIMIT", namespace)
    read_limit = namespace["read_limit"]
    assert shared.apply(shared.engine, read_limit).error.ename == "NameError"
    shared.apply(shared.engine, push_names, {"LIMIT": 5})
    assert shared.apply(shared.engine, read_limit).value == 5
    assert shared.apply(shared.engine, lambda x: x, Reference("LIMIT + 1")).value == 6


def test_a_reference_can_be_the_function(shared: Any) -> None:
    """What is applied may be named instead of sent."""
    shared.execute(shared.engine, "def named(x):\n    return -x")
    assert shared.apply(shared.engine, Reference("named"), 3).value == -3
    shared.execute(shared.engine, "def named(x):\n    return +x")
    assert shared.apply(shared.engine, Reference("named"), 3).value == 3


def test_a_function_known_by_digest_is_not_sent_again(shared: Any) -> None:
    """A body is kept; a digest that the engine has not got is an error of ours that says so."""
    from ipyfleet_protocol.serialize import pack_function

    def known(x: int) -> int:
        return x + 100

    shared.apply(shared.engine, known, 1)
    header = pack_function(known).function
    for digest, status in ((header.digest, m.OK), (b"?" * 16, m.FAILED)):
        bare = m.Function(digest, "known", header.reusable)
        [seq] = shared.run(shared.engine, "apply", [((5,), {})], bare)
        [ended] = shared.results([seq])
        assert ended.status == status
    assert ended.error.own and "does not know the function 'known'" in ended.error.evalue


def test_large_results_travel_as_blobs_on_one_host(shared: Any) -> None:
    """A buffer for this host goes to shared memory, for another one it travels inline."""
    size = 1 << 20
    seqs = shared.run(shared.engine, "apply", [((size,), {})], bytes, host=shared.host)
    [ended] = shared.results(seqs)
    assert ended.blobs == b"\1"
    handle = decode_part(ended.buffers[0], m.BlobHandle)
    assert handle.size == size and handle.name.startswith(shared.engine.hex())
    path = shared.directory / "blobs" / handle.name
    assert path.stat().st_size == size
    path.unlink()
    inline = shared.results(shared.run(shared.engine, "apply", [((size,), {})], bytes))[0]
    assert inline.blobs.strip(b"\0") == b"" and inline.value == bytes(size)


def test_what_is_returned_is_a_snapshot(shared: Any) -> None:
    """A later task that changes an object does not change a result that has not been sent."""
    shared.execute(shared.engine, "shared_data = bytearray(100_000)")
    seqs = shared.run(shared.engine, "apply", [((), {})], Reference("lambda: shared_data"))
    fill = Reference("lambda: shared_data.__setitem__(slice(None), b'x' * len(shared_data))")
    more = shared.run(shared.engine, "apply", [((), {})], fill)
    assert shared.results(seqs + more)[0].value == bytearray(100_000)


# -- errors -----------------------------------------------------------------------------------


def test_an_error_tells_where_it_happened(shared: Any) -> None:
    """Name, text, engine, method, the exception itself, and a traceback without our own frames."""

    def divide(x: int) -> float:
        return 1 / x

    error = shared.apply(shared.engine, divide, 0).error
    assert (error.ename, error.evalue) == ("ZeroDivisionError", "division by zero")
    assert error.engine_id == 0 and error.engine_uuid == shared.engine.hex()
    assert error.method == "apply" and not error.own and error.cause
    text = "\n".join(error.traceback)
    assert "divide" in text and "ipyfleet_engine" not in text and "\x1b[" in text


def by_value(source: str) -> Any:
    """A function that engines get by value, as from a notebook; `source` defines `f`."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace["f"]


_raise = by_value("def f(exc): raise exc")
_recurse = by_value("def f(n=0):\n    def down(k): return down(k + 1)\n    return down(n)")


@pytest.mark.parametrize(
    ("function", "args", "ename"),
    [
        (_raise, (SystemExit(3),), "SystemExit"),
        (_raise, (KeyboardInterrupt(),), "KeyboardInterrupt"),
        (_raise, (MemoryError("all gone"),), "MemoryError"),
        (_raise, (GeneratorExit(),), "GeneratorExit"),
        (_raise, (ExceptionGroup("several", [ValueError(1), TypeError(2)]),), "ExceptionGroup"),
        (_recurse, (), "RecursionError"),
        (exec, ("def broken(:",), "SyntaxError"),
        (input, ("name? ",), "StdinNotImplementedError"),
    ],
)
def test_whatever_user_code_raises_is_an_error_of_its_task(
    shared: Any, function: Any, args: Any, ename: str
) -> None:
    """The error comes back and the engine goes on."""
    ended = shared.apply(shared.engine, function, *args)
    assert ended.status == m.FAILED and ended.error.ename == ename
    assert ended.error.traceback
    assert shared.apply(shared.engine, abs, -1).value == 1


def test_a_broken_exception_is_told_of(shared: Any) -> None:
    """An exception without text and without pickle comes back by its name."""
    broken = by_value(
        "def f():\n"
        "    class Broken(Exception):\n"
        "        def __str__(self): raise ValueError('no text')\n"
        "        def __reduce__(self): raise TypeError('no pickle')\n"
        "    raise Broken"
    )
    error = shared.apply(shared.engine, broken).error
    assert error.ename == "Broken" and error.cause == b""
    assert shared.apply(shared.engine, abs, -1).value == 1


def test_an_unpicklable_result_is_an_error(shared: Any) -> None:
    """It says what could not be pickled, and the engine goes on."""
    error = shared.apply(shared.engine, lambda: (i for i in range(3))).error
    assert error.ename == "PackError" and "generator" in error.evalue
    assert shared.apply(shared.engine, abs, -1).value == 1


# -- execute ----------------------------------------------------------------------------------


def test_execute_is_a_cell(shared: Any) -> None:
    """Input, streams and result are published as a kernel does; the payload has the count."""
    ended = shared.execute(
        shared.engine, "print('out')\nimport sys\nprint('err', file=sys.stderr)\n6 * 7"
    )
    count = decode_part(ended.pickle, m.ExecuteInfo).execution_count
    items = shared.output(ended.seq)
    assert [i.kind for i in items] == ["stdout", "stderr", "execute_result"]
    assert [i.content for i in items[:2]] == [b"out\n", b"err\n"]
    result = content(items[2])
    assert result["data"] == {"text/plain": "42"} and result["execution_count"] == count > 0


def test_a_silent_execute_publishes_nothing_of_itself(shared: Any) -> None:
    """No input, no result, no step of the execution count; prints do come."""
    before = decode_part(shared.execute(shared.engine, "0").pickle, m.ExecuteInfo).execution_count
    ended = shared.execute(shared.engine, "print('x')\n1", silent=True)
    assert [i.kind for i in shared.output(ended.seq)] == ["stdout"]
    after = decode_part(shared.execute(shared.engine, "0").pickle, m.ExecuteInfo).execution_count
    assert after == before + 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("%timeit -n1 -r1 1", "per loop"),
        ("!echo from a shell", "from a shell"),
        ("import asyncio\nawait asyncio.sleep(0.001)\nprint('awaited')", "awaited"),
        ("%%capture captured\nprint('caught')\n", ""),
        ("print(captured.stdout, end='')", "caught"),
        ("import __main__\nx = 3\nprint(__main__.x, __name__)", "3 __main__"),
    ],
)
def test_cells_may_hold_what_notebooks_hold(shared: Any, code: str, text: str) -> None:
    """Magics, shell escapes and top-level await work, in the one namespace."""
    ended = shared.execute(shared.engine, code)
    assert ended.status == m.OK
    assert text in shared.text(ended.seq)


def test_rich_display_reaches_the_task(shared: Any) -> None:
    """display, display_id updates and clear_output, in apply as in execute."""

    def show() -> None:
        from IPython.display import HTML, clear_output, display

        handle = display(HTML("<b>1</b>"), display_id="d1")
        handle.update(HTML("<b>2</b>"))
        clear_output(wait=True)

    ended = shared.apply(shared.engine, show)
    first, second, third = shared.output(ended.seq)
    assert (first.kind, second.kind, third.kind) == (
        "display_data",
        "update_display_data",
        "clear_output",
    )
    assert content(first)["data"]["text/html"] == "<b>1</b>"
    assert content(second)["transient"] == {"display_id": "d1"}
    assert content(third) == {"wait": True}


def test_comms_reach_the_client(shared: Any) -> None:
    """A comm opened on an engine is published with data, metadata and buffers."""
    code = (
        "from comm import create_comm\n"
        "c = create_comm(target_name='t', data={'a': 1},\n"
        "                metadata={'version': '2'}, buffers=[b'buf'])"
    )
    ended = shared.execute(shared.engine, code)
    item = next(i for i in shared.output(ended.seq) if i.kind == "comm_open")
    assert content(item)["target_name"] == "t" and content(item)["metadata"] == {"version": "2"}
    frames = next(f for i, f in shared.outputs[ended.seq] if i.kind == "comm_open")
    assert frames == [b"buf"]


def test_context_variables_stay_from_task_to_task(shared: Any) -> None:
    """A context variable that a cell or a function sets is set for whatever runs next."""
    code = "import contextvars; variable = contextvars.ContextVar('v', default=0); variable.set(5)"
    shared.execute(shared.engine, code)
    assert shared.apply(shared.engine, Reference("variable.get")).value == 5
    shared.execute(shared.engine, "token = variable.set(7)")
    assert shared.apply(shared.engine, Reference("variable.get")).value == 7


def test_a_failing_execute_publishes_its_error(shared: Any) -> None:
    """The error is both the result and an item of the output."""
    ended = shared.execute(shared.engine, "print('before')\n1 / 0")
    assert ended.error.ename == "ZeroDivisionError" and ended.error.method == "execute"
    assert ended.error.cause
    last = shared.output(ended.seq)[-1]
    assert last.kind == "error" and content(last)["traceback"] == ended.error.traceback


def test_a_failing_execute_aborts_the_executes_behind_it(shared: Any, held: Any) -> None:
    """Queued executes of the same client are aborted, applies run; a silent failure aborts none."""
    engine = shared.engine
    failing = shared.run(engine, "execute", ["undefined_name"])
    behind = shared.run(engine, "execute", ["1", "2"])
    applied = shared.run(engine, "apply", [((-3,), {})], abs)
    other = shared.run(engine, "execute", ["3"], client=b"other" + b"\0" * 11)
    # What is answered came after all of these.
    shared.ping(engine)
    held.release()
    ended = shared.results(held.seqs + failing + behind + applied + other)
    assert [e.status for e in ended] == [m.OK, m.FAILED, m.ABORTED, m.ABORTED, m.OK, m.OK]
    assert ended[2].error.own and ended[2].error.ename == "TaskAborted"
    silent = shared.run(engine, "execute", ["undefined_name"], silent=True)
    after = shared.run(engine, "execute", ["1"])
    assert [e.status for e in shared.results(silent + after)] == [m.FAILED, m.OK]


# -- output -----------------------------------------------------------------------------------


def test_output_belongs_to_its_task(shared: Any) -> None:
    """Each of many tasks that run in one batch has its own lines, counted."""

    def speak(i: int) -> None:
        import sys

        print("out", i)
        print("err", i, file=sys.stderr)

    seqs = shared.run(shared.engine, "apply", [((i,), {}) for i in range(50)], speak)
    for i, ended in enumerate(shared.results(seqs)):
        items = shared.output(ended.seq)
        # What is sent live may cut a line in two.
        assert ended.n_outputs == len(items) >= 2
        kinds = ("stdout", "stderr")
        texts = [b"".join(x.content for x in items if x.kind == kind) for kind in kinds]
        assert texts == [b"out %d\n" % i, b"err %d\n" % i]
        assert {x.kind for x in items} == set(kinds)


def test_output_arrives_while_the_task_runs(shared: Any) -> None:
    """What is printed is there long before the task ends."""

    def speak_and_wait(path: str) -> None:
        import os
        import time

        print("live")
        while not os.path.exists(path):
            time.sleep(0.005)
        print("done")

    gate = shared.directory / "gate"
    [seq] = shared.run(shared.engine, "apply", [((str(gate),), {})], speak_and_wait)
    shared.until(lambda: shared.outputs.get(seq))
    assert seq not in shared.ended
    assert shared.outputs[seq][0][0].content == b"live\n"
    gate.touch()
    shared.results([seq])
    assert shared.text(seq) == "live\ndone\n"
    gate.unlink()


def test_output_of_threads_belongs_to_the_task(shared: Any) -> None:
    """A thread that a task starts prints into that task's output."""

    def spread() -> None:
        import threading

        threads = [threading.Thread(target=print, args=("thread",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ended = shared.apply(shared.engine, spread)
    assert shared.text(ended.seq).replace("\n", "") == "thread" * 3


def test_a_flood_of_output_is_bounded(shared: Any) -> None:
    """A task that prints 60 MB ends, and what is missing is counted."""

    def flood() -> int:
        line = "x" * 999
        for _ in range(60_000):
            print(line)
        return 60_000 * 1000

    ended = shared.apply(shared.engine, flood)
    items = shared.output(ended.seq)
    received = sum(len(i.content) for i in items)
    dropped = sum(i.dropped_bytes for i in items)
    assert received + dropped == ended.value


def test_a_flood_of_output_that_nobody_reads(shared: Any, wait: Any) -> None:
    """It holds up neither its task nor what else the engine has to say, and is counted."""

    def flood(path: str) -> int:
        import pathlib

        line = "x" * 999
        for _ in range(60_000):
            print(line)
        pathlib.Path(path).touch()
        return 60_000 * 1000

    done = shared.directory / "flooded"
    [seq] = shared.run(shared.engine, "apply", [((str(done),), {})], flood)
    wait(done.exists)
    assert shared.ping(shared.engine).error is None
    [ended] = shared.results([seq])
    items = shared.output(seq)
    assert sum(len(i.content) + i.dropped_bytes for i in items) == ended.value
    done.unlink()


# -- results that are not read ----------------------------------------------------------------


def wait_for_results(controller: Any, wait: Any) -> None:
    """Wait until an engine has begun to send results, without reading any."""
    identity = controller.addresses[controller.engine, Channel.TASK]
    wait(lambda: controller.wire.has_unread(identity))


def test_results_are_not_held_back_by_what_comes_next(shared: Any, wait: Any) -> None:
    """A large one leaves as a whole before the next task begins, whenever it is read."""
    gate = shared.directory / "gate3"
    large = shared.run(shared.engine, "apply", [((8_000_000,), {})], bytes)
    slow = shared.run(shared.engine, "apply", [((str(gate),), {})], _hold)
    wait_for_results(shared, wait)
    assert len(shared.results(large)[0].value) == 8_000_000
    assert slow[0] not in shared.ended
    gate.touch()
    shared.results(slow)
    gate.unlink()
    gate.with_name("gate3.began").unlink()


def test_sigint_does_nothing_to_an_engine_that_waits_to_send(shared: Any, wait: Any) -> None:
    """It is meant for a task, and none runs; results come, and the next task is not hit."""
    large = shared.run(shared.engine, "apply", [((8_000_000,), {})], bytes)
    wait_for_results(shared, wait)
    os.kill(shared.hellos[shared.engine].pid, signal.SIGINT)
    after = shared.run(shared.engine, "apply", [((-1,), {})], abs)
    assert [len(shared.results(large)[0].value), shared.results(after)[0].value] == [8_000_000, 1]


# -- what goes on while user code runs --------------------------------------------------------


_hold = by_value(
    "def f(path):\n"
    "    import os, time\n"
    "    open(path + '.began', 'w').close()\n"
    "    while not os.path.exists(path): time.sleep(0.002)"
)


@pytest.fixture
def held(shared: Any, wait: Any) -> Any:
    """A task that has begun and runs until `held.release()`; tasks behind it wait."""

    class Held:
        gate = shared.directory / "held"
        seqs = shared.run(shared.engine, "apply", [((str(gate),), {})], _hold)

        def release(self) -> None:
            self.gate.touch()

    held = Held()
    began = held.gate.with_name("held.began")
    wait(began.exists)
    yield held
    held.release()
    shared.results(held.seqs)
    began.unlink()
    held.gate.unlink()


def test_a_finished_result_is_not_held_back(shared: Any) -> None:
    """It leaves over CONTROL while the next task runs."""
    gate = shared.directory / "gate2"
    quick = shared.run(shared.engine, "apply", [((i,), {}) for i in range(20)], abs)
    slow = shared.run(shared.engine, "apply", [((str(gate),), {})], _hold)
    ended = shared.results(quick)
    assert [e.value for e in ended] == list(range(20))
    assert slow[0] not in shared.ended
    gate.touch()
    shared.results(slow)
    gate.unlink()


def test_recall_takes_back_what_has_not_started(shared: Any, held: Any) -> None:
    """The engine answers at once, runs the rest and says nothing of what it gave back."""
    seqs = shared.run(shared.engine, "apply", [((i,), {}) for i in range(10)], abs)
    running = shared.next_ordinal(shared.engine) - 11
    shared.send(shared.engine, Channel.CONTROL, m.Recall(running, running + 5))
    answer = shared.expect(m.Recalled)
    assert (answer.first, answer.last) == (running + 1, running + 5)
    held.release()
    ended = shared.results(seqs[5:])
    assert [e.value for e in ended] == [5, 6, 7, 8, 9]
    assert not any(s in shared.ended for s in seqs[:5])
    shared.send(shared.engine, Channel.CONTROL, m.Recall(running, running))
    none = shared.expect(m.Recalled)
    assert none.first > none.last


def test_dropped_tasks_end_as_aborted(shared: Any, held: Any) -> None:
    """A queued task that is dropped ends at once, a running one goes on."""
    seqs = shared.run(shared.engine, "apply", [((i,), {}) for i in range(4)], abs)
    running = shared.next_ordinal(shared.engine) - 5
    ranges = [
        m.PlacedRange(held.seqs[0], 1, running),
        m.PlacedRange(seqs[1], 2, running + 2),
    ]
    shared.send(shared.engine, Channel.CONTROL, m.DropTasks(shared.client, ranges))
    ended = shared.results(seqs[1:3])
    assert held.seqs[0] not in shared.ended
    assert [e.status for e in ended] == [m.ABORTED, m.ABORTED]
    assert ended[0].error.ename == "TaskAborted" and "cancelled" in ended[0].error.evalue
    assert ended[0].error.own and ended[0].ordinal == running + 2
    assert math.isnan(ended[1].started) and math.isnan(ended[1].completed)
    held.release()
    assert [e.status for e in shared.results([*held.seqs, seqs[0], seqs[3]])] == [m.OK] * 3


def test_ping_is_answered_while_a_task_runs(shared: Any, held: Any) -> None:
    """The second thread lives."""
    reply = shared.ping(shared.engine)
    assert reply.error is None and reply.engine == 0
    assert held.seqs[0] not in shared.ended


def test_clear_waits_for_the_running_task(shared: Any, held: Any) -> None:
    """The namespace is reset between tasks, then the answer comes."""
    shared.run(shared.engine, "execute", ["cleared = 1"])
    shared.send(
        shared.engine, Channel.CONTROL, m.EngineControl(shared.client, 77, m.ClearNamespace())
    )
    shared.ping(shared.engine)
    assert not any(isinstance(r.message, m.ControlReply) for r in shared.inbox)
    held.release()
    assert shared.expect(m.ControlReply).request == 77
    shared.execute(shared.engine, "y = 1")
    assert shared.execute(shared.engine, "y").status == m.OK


def test_sigint_interrupts_the_running_task_only(shared: Any, wait: Any) -> None:
    """KeyboardInterrupt in Python code, in a builtin and in a coroutine; nothing when idle."""

    async def sleep_async(path: str) -> None:
        import asyncio
        import pathlib

        pathlib.Path(path).touch()
        await asyncio.sleep(600)

    def sleep_here(path: str) -> None:
        import pathlib
        import time

        pathlib.Path(path).touch()
        time.sleep(600)

    pid = shared.hellos[shared.engine].pid
    for number, function in enumerate((sleep_here, sleep_async)):
        started = shared.directory / f"started{number}"
        seqs = shared.run(shared.engine, "apply", [((str(started),), {})], function)
        wait(started.exists)
        os.kill(pid, signal.SIGINT)
        [ended] = shared.results(seqs)
        assert ended.error.ename == "KeyboardInterrupt"
        started.unlink()
    seqs = shared.run(shared.engine, "execute", ["print('up')\nwhile True: pass"])
    shared.until(lambda: shared.outputs.get(seqs[0]))
    wait(lambda: shared.receive(0.05) or True)
    shared.until(lambda: any(i.kind == "stdout" for i, _ in shared.outputs[seqs[0]]))
    shared.send(
        shared.engine,
        Channel.CONTROL,
        m.EngineControl(shared.client, 78, m.SendSignal(signal.SIGINT)),
    )
    assert shared.results(seqs)[0].error.ename == "KeyboardInterrupt"
    assert shared.expect(m.ControlReply).error is None
    os.kill(pid, signal.SIGINT)
    assert shared.apply(shared.engine, abs, -1).value == 1


def test_malformed_messages_are_dropped(shared: Any) -> None:
    """Rubbish on either channel disturbs nothing."""
    for channel in (Channel.TASK, Channel.CONTROL):
        shared.wire.send(shared.addresses[shared.engine, channel], [b"\xc1rubbish"])
        shared.send(shared.engine, channel, m.Probe())
    assert shared.apply(shared.engine, abs, -1).value == 1


def test_background_work_of_user_code_goes_on(shared: Any) -> None:
    """An asyncio task started by a cell runs between tasks."""
    code = (
        "import asyncio\n"
        "ticks = 0\n"
        "async def tick():\n"
        "    global ticks\n"
        "    while True:\n"
        "        ticks += 1\n"
        "        await asyncio.sleep(0.001)\n"
        "ticker = asyncio.ensure_future(tick())\n"
        "await asyncio.sleep(0.01)"
    )
    assert shared.execute(shared.engine, code).status == m.OK
    ticks = Reference("lambda: ticks")
    before = shared.apply(shared.engine, ticks).value
    shared.until(lambda: shared.apply(shared.engine, ticks).value > before)
    shared.execute(shared.engine, "ticker.cancel()")


def test_processes_forked_by_a_task_are_not_engines(shared: Any) -> None:
    """A pool of processes works in a task; ending it with SIGTERM does not end the engine."""
    square = by_value(
        "def f(n):\n"
        "    import multiprocessing\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return pool.map(abs, range(-n, 0))"
    )
    assert shared.apply(shared.engine, square, 3).value == [3, 2, 1]
    shared.ping(shared.engine)
    assert shared.apply(shared.engine, abs, -1).value == 1


def test_modules_of_the_current_directory_are_found(shared: Any) -> None:
    """As in a notebook, also after %cd."""
    (shared.directory / "some_module.py").write_text("answer = 42\n")
    code = f"%cd -q {shared.directory}\nimport some_module\n%cd -q -\nprint(some_module.answer)"
    ended = shared.execute(shared.engine, code)
    assert shared.text(ended.seq).strip() == "42"


def test_an_error_payload_can_be_read_without_unpickling(shared: Any) -> None:
    """It is an ErrorInfo, whatever the method."""
    ended = shared.apply(shared.engine, _raise, ValueError(1))
    assert isinstance(decode_part(ended.pickle, m.ErrorInfo), m.ErrorInfo)
    assert encode_part(ended.error) == ended.pickle
