"""Engines and agents whose connection breaks, and whose controller is another run of itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.connection import save_connection_file
from ipyfleet_protocol.ids import Channel
from ipyfleet_protocol.local import Unreachable
from ipyfleet_protocol.namespace import Reference

FIRST, SECOND, THIRD = b"first---", b"second--", b"third---"


def make_hold() -> Callable[[str], str]:
    """Return a task that runs until a file appears."""

    def hold(gate: str) -> str:
        import os
        import time

        open(gate + ".began", "w").close()
        while not os.path.exists(gate):
            time.sleep(0.01)
        return "released"

    return hold


@pytest.fixture
def resuming(either: Any) -> Any:
    """A controller that resumes, here or elsewhere, with one engine, `engine`, of one agent."""
    either.incarnation = FIRST
    either.start("-n=1")
    [either.engine] = either.wait_engines(1)
    either.until(lambda: len(either.hellos) == 2)
    return either


@pytest.fixture
def gate(resuming: Any) -> Iterator[Path]:
    """The file that `hold` waits for."""
    path = resuming.directory / "gate"
    yield path
    path.touch()


def hold_engine(controller: Any, gate: Path, wait: Any) -> int:
    """Have the engine run `hold`; returns the seq. What it sends meanwhile is not read."""
    [seq] = controller.run(controller.engine, "apply", [((str(gate),), {})], make_hold())
    wait(gate.with_name(gate.name + ".began").exists)
    return int(seq)


def reattached(controller: Any, channel: Channel = Channel.CONTROL) -> bool:
    """Tell whether the engine has greeted the controller over a channel since it came up."""
    return (controller.engine, channel) in controller.attached


def test_results_that_were_lost_on_the_way_are_sent_again(resuming: Any, wait: Any) -> None:
    """What the controller had not read when the connection broke comes again, each result once."""
    counter = resuming.directory / "count"

    def count(path: str, i: int) -> int:
        with open(path, "a") as file:
            file.write("x")
        return i

    resuming.execute(resuming.engine, "kept = 42")
    calls = [((str(counter), i), {}) for i in range(50)]
    seqs = resuming.run(resuming.engine, "apply", calls, count)
    wait(lambda: counter.exists() and len(counter.read_text()) == 50)
    resuming.go_down()
    resuming.come_up()
    assert [ended.value for ended in resuming.results(seqs)] == list(range(50))
    assert resuming.repeated == []
    resuming.until(lambda: resuming.hellos[resuming.engine].wanted_id == 0)
    assert resuming.apply(resuming.engine, abs, Reference("kept")).value == 42
    assert len(counter.read_text()) == 50


def test_tasks_that_were_lost_on_the_way_are_run_once(resuming: Any) -> None:
    """Tasks sent right before a break arrive, in order, whether the engine had read them or not."""
    resuming.execute(resuming.engine, "ran = []")
    seqs = []
    for i in range(5):
        seqs += resuming.run(resuming.engine, "execute", [f"ran.append({i})"], silent=True)
        resuming.go_down()
        resuming.come_up()
        resuming.until(lambda: reattached(resuming, Channel.TASK))
    resuming.results(seqs)
    assert resuming.apply(resuming.engine, list, Reference("ran")).value == [0, 1, 2, 3, 4]
    assert resuming.repeated == []


def test_the_second_thread_resumes_while_user_code_runs(
    resuming: Any, gate: Path, wait: Any
) -> None:
    """Control answers and results arrive though the main thread has no time for its channel."""
    seq = hold_engine(resuming, gate, wait)
    resuming.go_down()
    resuming.come_up()
    resuming.until(lambda: reattached(resuming))
    assert resuming.ping(resuming.engine).error is None
    assert not reattached(resuming, Channel.TASK)
    gate.touch()
    assert resuming.results([seq])[0].value == "released"
    assert resuming.apply(resuming.engine, abs, -3).value == 3
    assert reattached(resuming, Channel.TASK)


def test_results_lost_over_task_come_over_control(resuming: Any, gate: Path, wait: Any) -> None:
    """A result that left before the break does not wait for the user code that began after it."""
    first = resuming.run(resuming.engine, "apply", [((5,), {})], abs)
    hold_engine(resuming, gate, wait)
    resuming.go_down()
    resuming.come_up()
    [ended] = resuming.results(first)
    assert not gate.exists() and ended.channel is Channel.CONTROL


def test_output_goes_on_after_a_break(resuming: Any, gate: Path) -> None:
    """What a task prints before, during and after a break reaches the client, in order."""
    code = f"""
import os, time
for i in range(1000):
    print(i, flush=True)
    time.sleep(0.005)
    if os.path.exists({str(gate)!r}):
        break
"""
    [seq] = resuming.run(resuming.engine, "execute", [code])
    resuming.until(lambda: len(resuming.outputs.get(seq, ())) > 2)
    resuming.go_down()
    resuming.come_up()
    resuming.until(lambda: reattached(resuming, Channel.OUTPUT))
    before = len(resuming.outputs[seq])
    resuming.until(lambda: len(resuming.outputs[seq]) > before)
    gate.touch()
    resuming.results([seq])
    numbers = [int(line) for line in resuming.text(seq).split()]
    assert numbers == list(range(len(numbers)))


def test_another_run_of_the_controller_is_told_what_is_held(
    resuming: Any, gate: Path, wait: Any
) -> None:
    """The new run learns id, tasks and the next ordinal, and gets results that nobody has."""
    done = resuming.run(resuming.engine, "apply", [((i,), {}) for i in range(3)], abs)
    resuming.results(done)
    running = hold_engine(resuming, gate, wait)
    queued = resuming.run(resuming.engine, "apply", [((i,), {}) for i in range(4)], abs)
    assert resuming.ping(resuming.engine).error is None
    next_ordinal = resuming.next_ordinal(resuming.engine)
    resuming.go_down()
    resuming.come_up(SECOND)
    resuming.until(lambda: reattached(resuming))
    hello = resuming.hellos[resuming.engine]
    assert (hello.wanted_id, hello.incarnation, hello.received) == (0, FIRST, hello.received)
    held = [seq for piece in hello.held for seq in range(piece.first, piece.first + piece.count)]
    told = {*done, running}
    assert told <= set(held) <= {*told, *queued} and len(held) == len(set(held))
    assert hello.next_ordinal in (next_ordinal, next_ordinal - len(queued))
    resuming.until(lambda: set(done) <= set(resuming.repeated))
    gate.touch()
    wanted = [running] if hello.next_ordinal < next_ordinal else [running, *queued]
    assert resuming.results(wanted)[0].value == "released"
    # The lost ones would be placed again by a real controller; new ordinals go on.
    resuming._next_ordinal[resuming.engine] = hello.next_ordinal
    assert resuming.apply(resuming.engine, abs, -9).value == 9


def test_results_that_clients_have_are_held_no_longer(resuming: Any) -> None:
    """ResultsTaken lets go of one client's results up to a number, and of no other's."""
    other = type(resuming.client)(b"other client 001")
    resuming.results(resuming.run(resuming.engine, "apply", [((1,), {})], abs))
    mine = resuming.run(resuming.engine, "apply", [((2,), {})], abs)
    resuming.results(mine)
    theirs = resuming.run(resuming.engine, "apply", [((3,), {})], abs, client=other)
    resuming.results(theirs)
    numbers = [r.message.number for r in resuming.inbox if isinstance(r.message, m.Results)]
    assert numbers == [1, 2, 3]
    resuming.send(resuming.engine, Channel.CONTROL, m.ResultsTaken(resuming.client, 1))
    assert resuming.ping(resuming.engine).error is None
    resuming.go_down()
    resuming.come_up(SECOND)
    resuming.until(lambda: reattached(resuming))
    held = resuming.hellos[resuming.engine].held
    assert [(piece.client, piece.first) for piece in held] == [
        (resuming.client, mine[0]),
        (other, theirs[0]),
    ]
    resuming.until(lambda: resuming.repeated == [*mine, *theirs])


def test_claims_that_the_new_run_turns_down_are_dropped(
    resuming: Any, gate: Path, wait: Any
) -> None:
    """What waits ends as aborted without running, what runs is interrupted."""
    running = hold_engine(resuming, gate, wait)
    queued = resuming.run(resuming.engine, "execute", ["ran = True"])
    resuming.go_down()
    resuming.come_up(SECOND)
    resuming.until(lambda: reattached(resuming))
    hello = resuming.hellos[resuming.engine]
    ranges = [m.PlacedRange(p.first, p.count, p.ordinal, p.attempt) for p in hello.held]
    drop = m.DropTasks(resuming.client, ranges, interrupt=True)
    resuming.send(resuming.engine, Channel.CONTROL, drop)
    claimed = [seq for seq in (running, *queued) if any(p.first <= seq for p in hello.held)]
    assert running in claimed
    [ended] = resuming.results([running])
    assert ended.status == m.ABORTED
    resuming._next_ordinal[resuming.engine] = hello.next_ordinal
    assert resuming.apply(resuming.engine, bool, Reference("'ran' in globals()")).value is False


def test_ordinals_that_were_recalled_are_not_used_again(resuming: Any) -> None:
    """Tasks of the last run that were recalled before they arrived take no later ones with them."""
    resuming.apply(resuming.engine, abs, -1)
    ordinal = resuming.next_ordinal(resuming.engine)
    resuming.send(resuming.engine, Channel.CONTROL, m.Recall(ordinal, ordinal + 9))
    resuming.expect(m.Recalled)
    resuming.go_down()
    resuming.come_up(SECOND)
    resuming.until(lambda: reattached(resuming, Channel.TASK) and reattached(resuming))
    hello = resuming.hellos[resuming.engine]
    assert hello.next_ordinal == ordinal + 10
    resuming._next_ordinal[resuming.engine] = hello.next_ordinal
    assert resuming.apply(resuming.engine, abs, -2).value == 2


def test_what_is_sent_before_the_answer_is_not_taken(resuming: Any) -> None:
    """A task that overtakes the greeting is left for the controller to send again."""
    resuming.apply(resuming.engine, abs, -1)
    resuming.welcome = False
    resuming.go_down()
    resuming.come_up()
    task = (resuming.engine, Channel.TASK)
    attaches = len([r for r in resuming.inbox if isinstance(r.message, m.Attach)])
    resuming.until(
        lambda: len([r for r in resuming.inbox if isinstance(r.message, m.Attach)]) > attaches + 1
    )
    resuming.attached.add(task)
    seqs = resuming.run(resuming.engine, "apply", [((-5,), {})], abs)
    resuming.attached.discard(task)
    resuming.welcome = True
    resuming.go_down()
    resuming.come_up()
    assert resuming.results(seqs)[0].value == 5 and resuming.repeated == []


@pytest.mark.parametrize("incarnation", [None, SECOND], ids=["same run", "another run"])
def test_a_death_in_the_meantime_is_reported(controller: Any, incarnation: bytes | None) -> None:
    """The agent's report of an engine that died while nobody listened arrives afterwards."""
    controller.incarnation = FIRST
    controller.start("-n=2")
    victim, other = controller.wait_engines(2)
    controller.until(lambda: len(controller.hellos) == 3)
    controller.go_down()
    os.kill(controller.hellos[victim].pid, signal.SIGKILL)
    controller.come_up(incarnation)
    exited = controller.expect(m.EngineExited)
    assert exited.peer == victim and exited.status == -signal.SIGKILL
    controller.until(lambda: (other, Channel.CONTROL) in controller.attached)
    assert controller.ping(other).error is None


def note_run(counter: str, i: int) -> int:
    """Be a task that leaves a trace of each of its runs."""
    with open(counter, "a") as file:
        file.write("x")
    return i


def test_a_stopped_engine_loses_nothing(controller: Any) -> None:
    """An engine that is stopped, and given up meanwhile, resumes when it goes on."""
    controller.incarnation = FIRST
    controller.start("-n=1")
    [controller.engine] = controller.wait_engines(1)
    stop_and_go_on(controller, lambda: cut_off(controller))


def test_a_stopped_engine_of_another_host_loses_nothing(impatient: Any) -> None:
    """The same where it is the heartbeat that gives it up."""
    impatient.incarnation = FIRST
    impatient.start("-n=1")
    [impatient.engine] = impatient.wait_engines(1)
    stop_and_go_on(impatient, lambda: impatient.until(lambda: is_cut_off(impatient)))


def stop_and_go_on(controller: Any, give_up: Callable[[], None]) -> None:
    """Stop an engine, give it tasks, give it up, have it go on: each task is run once."""
    engine, counter = controller.engine, controller.directory / "count"
    pid = controller.hellos[engine].pid
    controller.until(lambda: all((engine, c) in controller.addresses for c in ENGINE_CHANNELS))
    hellos = len([r for r in controller.inbox if isinstance(r.message, m.Hello)])
    os.kill(pid, signal.SIGSTOP)
    try:
        calls = [((str(counter), i), {}) for i in range(20)]
        seqs = controller.run(engine, "apply", calls, note_run)
        give_up()
        controller.forget(engine)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [ended.value for ended in controller.results(seqs)] == list(range(20))
    assert len([r for r in controller.inbox if isinstance(r.message, m.Hello)]) > hellos
    assert len(counter.read_text()) == 20
    # Sent twice they may have been: over CONTROL, if TASK was not there again soon.
    again = [ended.channel for ended in controller.repeats]
    assert set(again) <= {Channel.CONTROL}


ENGINE_CHANNELS = (Channel.TASK, Channel.CONTROL, Channel.OUTPUT)


def cut_off(controller: Any) -> None:
    """End an engine's connections, as a controller does with one that is stopped."""
    for channel in ENGINE_CHANNELS:
        controller.wire.disconnect(controller.addresses[controller.engine, channel])


def is_cut_off(controller: Any) -> bool:
    """Tell whether none of an engine's connections is there any more."""
    for channel in ENGINE_CHANNELS:
        with contextlib.suppress(Unreachable):
            controller.send(controller.engine, channel, m.Probe())
            return False
    return True


def test_engines_wait_as_long_as_the_controller_asks(controller: Any, wait: Any) -> None:
    """With a controller that may come back they stay longer than `--controller-timeout`."""
    controller.incarnation = FIRST
    controller.info.recover_s = 3.0
    save_connection_file(controller.file, controller.info)
    agent = controller.start("-n=1", "--controller-timeout=0.5")
    [engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    controller.execute(engine, "kept = 1")
    controller.go_down()
    start = time.monotonic()
    wait(lambda: time.monotonic() - start > 1.2)
    controller.come_up(SECOND)
    controller.until(lambda: (engine, Channel.TASK) in controller.attached)
    controller._next_ordinal[engine] = controller.hellos[engine].next_ordinal
    assert controller.apply(engine, abs, Reference("kept")).value == 1
    controller.go_down()
    assert agent.wait(10) == 1
    controller.come_up()
