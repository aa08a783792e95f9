import gc
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipyfleet_client import Client
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.connection import save_connection_file
from ipyfleet_protocol.errors import (
    ClientClosed,
    ConnectionFileMissing,
    ConnectionFileStale,
    ConnectionFileVersion,
    EngineError,
    NoEnginesRegistered,
    RemoteError,
    TaskAborted,
)
from ipyfleet_testing.waiting import wait_until


def test_ids_are_those_of_the_live_engines(rc, controller):
    """`rc.ids` is a fresh sorted list that follows engines as they come and go."""
    assert rc.ids == [0, 1]
    rc.ids.append(9)
    assert controller.add_engine() == 2
    rc.wait_for_engines(3, timeout=5)
    assert rc.ids == [0, 1, 2]
    controller.lose_engine(0)
    assert rc.session.wait_until(lambda: rc.ids == [1, 2], 5)
    assert len(rc) == 2


@pytest.mark.parametrize(
    ("key", "targets"),
    [(0, 0), (-1, 1), (slice(None), [0, 1]), (slice(1, None), [1]), ([1, 0], [1, 0]), ((1,), [1])],
)
def test_index_chooses_engines(rc, key, targets):
    """Int, negative int, slice, list and tuple choose engines as they do in a list."""
    assert rc[key].targets == targets


def test_iteration_yields_a_view_of_each_engine(rc):
    """Iterating over a client gives a view of each engine."""
    assert [view.targets for view in rc] == [0, 1]


def test_missing_engine_is_an_index_error_that_names_those_there_are(rc):
    """`rc[99]` says which engines there are."""
    with pytest.raises(IndexError, match=r"no engine 99: the engines are \[0, 1\]"):
        rc[99]


@pytest.mark.parametrize("key", ["x", 1.5, None, True, [0, "x"]])
def test_wrong_key_is_a_type_error(rc, key):
    """`rc["x"]` says what is allowed."""
    with pytest.raises(TypeError, match="int"):
        rc[key]


def test_no_engines_is_said_at_once_with_a_hint(empty_controller):
    """Work for a cluster without engines raises at once and says what to do."""
    with Client(empty_controller.info, timeout=5) as rc:
        for call in (
            lambda: rc.load_balanced_view().apply_async(abs, 1),
            lambda: rc.direct_view("all").apply_async(abs, 1),
            lambda: rc.load_balanced_view().map_async(abs, [1]),
        ):
            with pytest.raises(NoEnginesRegistered, match="ipengine"):
                call()
        with pytest.raises(IndexError, match="no engines are registered"):
            rc[0]
        assert rc.ids == []


def test_engine_lost_while_waiting_for_engines_is_an_engine_error(rc, controller):
    """`wait_for_engines` tells of an engine that dies meanwhile instead of waiting on."""
    waiters = rc.session.wire._waiters

    def lose() -> None:
        wait_until(lambda: waiters)
        controller.lose_engine(1, "out of memory")

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(EngineError, match="out of memory"):
        rc.wait_for_engines(3, timeout=30)
    thread.join()


def test_wait_for_engines_times_out(rc):
    """`wait_for_engines` says how many there were when its time is up."""
    with pytest.raises(TimeoutError, match="2 of 5"):
        rc.wait_for_engines(5, timeout=0.05)
    assert rc.wait_for_engines(2) is None


def test_wait_for_engines_can_return_a_future(rc, controller):
    """With ``block=False`` it returns a future that is resolved when they are there."""
    future = rc.wait_for_engines(3, block=False)
    controller.add_engine()
    assert future.result(5) is None


def test_missing_connection_file(tmp_path, capsys):
    """A missing file is waited for, with a note, then an OSError says what to do."""
    with pytest.raises(ConnectionFileMissing, match="ipcluster start") as caught:
        Client(tmp_path / "nothing.json", timeout=0.05)
    assert isinstance(caught.value, OSError)
    assert "Waiting for connection file" in capsys.readouterr().out


def test_file_that_appears_in_time_is_used(controller, directory):
    """A client may be started before its cluster."""
    path = directory / "client.json"
    timer = threading.Timer(0.05, save_connection_file, (path, controller.info))
    timer.start()
    with Client(path, timeout=5) as rc:
        assert rc.ids == [0, 1]
    timer.join()


def test_profile_and_cluster_id_find_the_file(controller, directory):
    """`profile_dir` and `cluster_id` lead to the connection file."""
    path = directory / "profile_x" / "security" / "ipyfleet-c1-client.json"
    save_connection_file(path, controller.info)
    with Client(profile_dir=directory / "profile_x", cluster_id="c1", timeout=5) as rc:
        assert rc.ids == [0, 1]


def test_stale_file_is_recognised(controller, directory):
    """The file of a controller that died is called stale, at once."""
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True
    )
    info = controller.info
    info.pid = int(child.stdout)
    with pytest.raises(ConnectionFileStale, match="stale"):
        Client(info, timeout=3600)


def test_file_of_a_controller_that_is_started_again(controller, directory):
    """A new client waits a little for a controller that may come back; then the file is stale."""
    path = directory / "client.json"
    dead = controller.info
    dead.pid_start, dead.recover_s = 1.0, 30.0
    save_connection_file(path, dead)
    with pytest.raises(ConnectionFileStale):
        Client(path, timeout=0.1)
    back = threading.Timer(0.2, save_connection_file, (path, controller.info))
    back.start()
    with Client(path, timeout=5) as rc:
        assert rc.ids == [0, 1]
    back.join()


def test_file_of_another_version(controller, directory):
    """A file of another protocol version names both sides."""
    info = controller.info
    info.protocol += 1
    path = directory / "c.json"
    save_connection_file(path, info)
    with pytest.raises(ConnectionFileVersion):
        Client(path)


def test_address_instead_of_file():
    """An address is not enough, and the error says what is."""
    with pytest.raises(ValueError, match="connection file"):
        Client("tcp://127.0.0.1:10101")


def test_unknown_argument():
    """A misspelt argument of the constructor is an error."""
    with pytest.raises(TypeError, match="profil"):
        Client(profil="x")


def test_deaf_controller_is_a_timeout(controller):
    """A controller that does not answer is a TimeoutError, and nothing is left behind."""
    controller.answer_hello = False
    threads = threading.active_count()
    with pytest.raises(TimeoutError, match="did not answer"):
        Client(controller.info, timeout=0.1)
    assert threading.active_count() == threads


def test_refusal_is_told(controller):
    """What the controller says when it refuses a client reaches the user."""
    controller.refuse_reason = "version 2 here, version 1 there"
    with pytest.raises(ConnectionRefusedError, match="version 2 here"):
        Client(controller.info, timeout=5)


def test_warnings_of_the_controller_are_shown_once(controller, caplog):
    """What it warns of at the Hello is a Python warning, what it warns of later is logged."""
    controller.warnings = ["this client has numpy 2.1.0, and engine 0 has numpy 1.26.4"]
    with pytest.warns(RuntimeWarning, match=r"numpy 2\.1\.0") as shown:
        rc = Client(controller.info, timeout=5)
    assert len(shown) == 1
    assert shown[0].filename == __file__
    controller.send_all(m.EnginesChanged(warnings=["cloudpickle 3.0.0 here, 3.1.0 there"]))
    rc.session.wait_until(lambda: "cloudpickle 3.0.0" in caplog.text, 5)
    assert "cloudpickle 3.0.0 here" in caplog.text
    [hello] = controller.received(m.Hello)
    assert hello.packages["cloudpickle"]
    rc.close()


def test_closed_client_says_so(controller):
    """Every use of a closed client says that it is closed; closing twice is fine."""
    rc = Client(controller.info, timeout=5)
    view, balanced = rc[:], rc.load_balanced_view()
    rc.close()
    rc.close()
    assert rc.closed
    for call in (
        lambda: view.apply_async(abs, 1),
        lambda: balanced.map_async(abs, [1]),
        lambda: view.execute("1"),
        lambda: rc.queue_status(),
        lambda: rc.clear(),
    ):
        with pytest.raises(ClientClosed, match="closed"):
            call()


def test_closing_ends_waits(rc, controller):
    """A thread that waits is told when the client is closed."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, 1)
    errors = []

    def wait():
        try:
            ar.get()
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    rc.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])


def test_controller_that_closes_ends_everything(rc, controller):
    """When the controller goes away outstanding results are errors and later calls say why."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, 1)
    wait_until(lambda: controller.received(m.Submit))
    controller.send_all(m.Closing("maintenance"))
    with pytest.raises(Exception, match="maintenance"):
        ar.get(5)
    with pytest.raises(ClientClosed, match="maintenance"):
        rc[0].apply_async(abs, 1)


def test_dropped_client_closes_itself(controller):
    """A client that nobody refers to stops its thread and says goodbye."""
    rc = Client(controller.info, timeout=5)
    thread = rc.session.wire._thread
    del rc
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_result_keeps_its_client_alive(controller):
    """``Client(...)[0].apply_async(f).get()`` works though nobody holds the client."""
    assert Client(controller.info, timeout=5)[0].apply_async(abs, -3).get(5) == 3
    gc.collect()


def test_process_ends_without_close(controller, directory):
    """A script that forgets to close its client ends at once."""
    path = directory / "client.json"
    save_connection_file(path, controller.info)
    code = (
        "from ipyfleet_client import Client\n"
        f"rc = Client({str(path)!r})\n"
        "print(rc.ids)\n"
        "rc[0].apply_async(abs, 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[0, 1]", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_is_told(rc):
    """In a forked child a client says why it is closed; in the parent it works on."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            rc[0].apply_async(abs, 1)
        except ClientClosed as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert b"fork" in file.read()
    os.waitpid(pid, 0)
    assert rc[0].apply_sync(abs, -1) == 1


def test_an_address_that_can_never_be_reached(directory, controller):
    """Where there can be no socket the error comes at once, and nothing is left behind."""
    info = controller.info
    info.urls = [f"unix://{directory}/{'x' * 200}"]
    with pytest.raises(OSError, match="too long"):
        Client(info, timeout=5)


def test_two_clients_in_one_process(controller):
    """Clients do not get in one another's way."""
    with Client(controller.info, timeout=5) as one, Client(controller.info, timeout=5) as two:
        a, b = one[0].apply_async(abs, -1), two[0].apply_async(abs, -2)
        assert (b.get(5), a.get(5)) == (2, 1)
        assert one.session.peer != two.session.peer


def test_history_and_outstanding(rc, controller):
    """`rc.history` lists msg_ids in order; `rc.outstanding` those that have not ended."""
    controller.paused.set()
    ar = rc.load_balanced_view().map_async(abs, range(3))
    assert rc.history == ar.msg_ids
    assert rc.outstanding == set(ar.msg_ids)
    assert not rc.wait(timeout=0.05)
    controller.paused.clear()
    assert rc.wait(timeout=5)
    assert rc.outstanding == set()


def test_get_result_finds_what_is_outstanding(rc, controller):
    """`rc.get_result` returns the result object of a task under way."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, -4)
    assert rc.get_result(ar.msg_ids[0]) is ar
    assert rc.get_result(-1) is ar
    controller.paused.clear()
    assert rc.get_result(ar, block=True) == 4


@pytest.mark.parametrize("wrong", ["nonsense", "0" * 32 + "_0"])
def test_unknown_msg_id_is_a_key_error(rc, wrong):
    """A msg_id that nobody knows is a KeyError."""
    with pytest.raises(KeyError):
        rc.get_result(wrong)


def test_wait_takes_all_kinds_of_jobs(rc):
    """`rc.wait` takes results, msg_ids and collections of those; other things are TypeErrors."""
    ars = [rc[0].apply_async(abs, k) for k in range(3)]
    assert rc.wait(ars, 5)
    assert rc.wait(ars[0], 5)
    with pytest.raises(TypeError):
        rc.wait(1.5)


def test_queue_status(rc):
    """`queue_status` has a part per engine with int keys; for an int target just that."""
    assert rc.queue_status() == {
        0: {"queue": 0, "completed": 0, "tasks": 0},
        1: {"queue": 0, "completed": 0, "tasks": 0},
        "unassigned": 0,
    }
    assert rc.queue_status(1) == {"queue": 0, "completed": 0, "tasks": 0}


def test_clear_resets_namespaces(rc):
    """`rc.clear` empties the engines' namespaces."""
    rc[:].push({"a": 1}, block=True)
    rc.clear(block=True)
    with pytest.raises(RemoteError, match="NameError"):
        rc[0].pull("a", block=True)


def test_signals_are_checked(rc, controller):
    """A signal may be a number or a name; others are refused before anything is sent."""
    assert rc.send_signal("SIGUSR1", targets=0, block=True) is None
    assert controller.received(m.Control)[-1].action.signum == 10
    with pytest.raises(ValueError, match="SIGNOPE"):
        rc.send_signal("SIGNOPE")


def test_shutdown_with_hub_closes_the_client(controller):
    """`shutdown(hub=True)` asks the controller to go and closes the client."""
    rc = Client(controller.info, timeout=5)
    rc.shutdown(hub=True)
    assert rc.closed
    assert controller.received(m.Request)[-1].question.hub


def test_shutdown_does_not_restart(rc):
    """`restart=True` says who can."""
    with pytest.raises(NotImplementedError, match="Cluster"):
        rc.shutdown(restart=True)


def test_repr_shows_the_number_of_engines(rc):
    """A client's repr tells how many engines there are."""
    assert repr(rc) == "<Client: 2 engines>"


def test_malformed_message_is_dropped(rc, controller):
    """What is no message of the protocol is counted and dropped; nothing else happens."""
    controller._push(controller.clients[0], [b"\xc1garbage"])
    assert rc.session.wait_until(lambda: rc.session.malformed == 1, 5)
    assert rc[0].apply_sync(abs, -1) == 1


def test_connection_file_path_may_be_a_string(controller, directory):
    """The first argument may be a path as a string, or the content as a dictionary."""
    path = Path(directory / "c.json")
    save_connection_file(path, controller.info)
    with Client(str(path), timeout=5) as rc:
        assert len(rc) == 2
    import json

    with Client(json.loads(path.read_text()), timeout=5) as rc:
        assert len(rc) == 2


def test_a_wait_for_engines_in_the_background_has_its_limit(rc, controller):
    """The future of ``block=False`` ends as the blocking call does: too few, one lost, closed."""
    with pytest.raises(TimeoutError, match="2 of 3"):
        rc.wait_for_engines(3, block=False, timeout=0.05).result(5)
    future = rc.wait_for_engines(3, block=False)
    controller.lose_engine(1, "out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        future.result(5)
    future = rc.wait_for_engines(3, block=False)
    rc.close()
    with pytest.raises(ClientClosed):
        future.result(5)


class ClusterThatFails:
    """What a client knows of its cluster."""

    n = 3

    def find_ended(self):
        return self

    def describe_end(self):
        return "ipengine has ended with exit code 1"


def test_a_wait_for_engines_ends_with_their_processes(controller):
    """Engines whose processes have ended before they registered are not waited for."""
    cluster = ClusterThatFails()
    with Client(controller.info, timeout=5, cluster=cluster) as rc:
        with pytest.raises(EngineError, match=r"2 of 3 engines .* exit code 1"):
            rc.wait_for_engines(timeout=5)
        assert rc.wait_for_engines(2) is None


def test_a_task_that_has_not_ended_has_metadata_and_no_value(rc, controller):
    """`rc.metadata` has all tasks of the client, `rc.results` those that have ended."""
    controller.paused.set()
    pending = rc[0].apply_async(abs, -1)
    (msg_id,) = pending.msg_ids
    assert list(rc.results) == []
    assert msg_id not in rc.results
    assert list(rc.metadata) == [msg_id]
    assert rc.metadata[msg_id].engine_id == 0
    with pytest.raises(KeyError, match="has not ended"):
        rc.results[msg_id]
    controller.paused.clear()
    assert pending.get(5) == 1
    assert list(rc.results) == [msg_id]


def test_abort_of_what_is_at_some_engines(rc, controller):
    """`abort(targets=…)` ends what was submitted to these engines, and nothing else."""
    controller.paused.set()
    ar = rc[:].apply_async(abs, -1)
    rc.abort(targets=[1])
    wait_until(lambda: controller.received(m.Cancel))
    controller.paused.clear()
    values = ar.get(5, return_exceptions=True)
    assert values[0] == 1
    assert isinstance(values[1], TaskAborted)


def test_spinning_is_no_longer_needed(rc):
    """The calls that took results in long ago warn and do nothing."""
    for call in (rc.spin, rc.spin_thread, rc.stop_spin_thread, rc[:].spin):
        with pytest.warns(DeprecationWarning, match="leave it out"):
            call()


def test_a_callback_of_a_request_may_ask_and_wait(rc):
    """What is called when engines have answered may use the client as anybody may."""
    outcomes = queue.SimpleQueue()
    with rc.session.wire._receiving:  # nothing is received before there is a callback
        pending = rc.send_signal(0, block=False)
        pending.add_done_callback(lambda _: outcomes.put(rc[0].apply_sync(abs, -3)))
        assert not pending.done()
    assert outcomes.get(timeout=30) == 3
    assert pending.result(0) is None
