"""Each misuse that users are known to make: the exception, and that its text says what to do."""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION
from typing import Any

import pytest

from ipyfleet_client import AsyncResult, Client, Reference, remote, require
from ipyfleet_protocol.errors import ClientClosed, NoEnginesRegistered

UNKNOWN = "0" * 32 + "_7"

MISUSES: dict[str, tuple[Callable[[Client], Any], type[BaseException], str]] = {
    "block to map_async": (
        lambda rc: rc[:].map_async(abs, [1], block=True),
        TypeError,
        "never blocks; use map",
    ),
    "block to map_sync": (
        lambda rc: rc.load_balanced_view().map_sync(abs, [1], block=True),
        TypeError,
        "always blocks; use map",
    ),
    "map over nothing": (lambda rc: rc[:].map(abs), TypeError, "at least one sequence"),
    "map over a number": (lambda rc: rc[:].map(abs, 5), TypeError, "int"),
    "imap over nothing": (lambda rc: rc.load_balanced_view().imap(abs), TypeError, "sequence"),
    "imap with a negative window": (
        lambda rc: rc.load_balanced_view().imap(abs, [1], max_outstanding=-1),
        ValueError,
        "negative",
    ),
    "imap with half a window": (
        lambda rc: rc.load_balanced_view().imap(abs, [1], max_outstanding=1.5),
        TypeError,
        "int or 'auto'",
    ),
    "imap with a window by name": (
        lambda rc: rc.load_balanced_view().imap(abs, [1], max_outstanding="all"),
        ValueError,
        "int or 'auto'",
    ),
    "chunksize of 0": (
        lambda rc: rc.load_balanced_view().map(abs, [1], chunksize=0),
        ValueError,
        "1 or more",
    ),
    "apply of what cannot be called": (lambda rc: rc[:].apply(5), TypeError, "callable, a Ref"),
    "reference to no name": (lambda rc: Reference(5), TypeError, "str"),
    "scatter of a number": (lambda rc: rc[:].scatter("a", 5), TypeError, "int"),
    "scatter with a wrong dist": (lambda rc: rc[:].scatter("a", [1], dist="x"), ValueError, "'b'"),
    "push of a list": (lambda rc: rc[:].push([1]), TypeError, "dictionary"),
    "push of a number's name": (lambda rc: rc[:].push({1: 2}), TypeError, r"names \(str\)"),
    "pull of a number": (lambda rc: rc[:].pull([5]), TypeError, r"names \(str\)"),
    "execute of a function": (lambda rc: rc[:].execute(abs), TypeError, "str"),
    "unknown flag": (lambda rc: rc[:].set_flags(retires=3), KeyError, "it has .*targets"),
    "unknown flag for a while": (
        lambda rc: rc[:].temp_flags(nope=1).__enter__(),
        KeyError,
        "no flag 'nope'",
    ),
    "unknown flag of a new view": (
        lambda rc: rc.load_balanced_view(nope=1),
        KeyError,
        "it has .*retries",
    ),
    "negative retries": (
        lambda rc: rc.load_balanced_view(retries=-1),
        ValueError,
        "not be negative",
    ),
    "retries by name": (lambda rc: rc.load_balanced_view(retries="2"), TypeError, "int"),
    "sequences of unequal lengths": (
        lambda rc: rc[:].parallel()(abs)([1], [1, 2]),
        ValueError,
        r"different lengths: \[1, 2\]",
    ),
    "parallel of nothing": (lambda rc: rc[:].parallel()(abs)(), TypeError, "at least one"),
    "require of a number": (lambda rc: require(5), TypeError, r"name=object"),
    "an engine that is not there": (lambda rc: rc[9], IndexError, r"the engines are \[0, 1\]"),
    "an engine by name": (lambda rc: rc["x"], TypeError, "int, slice or list"),
    "an engine by a list of names": (lambda rc: rc[["a"]], TypeError, "an engine id is an int"),
    "a view of no engines": (lambda rc: rc[5:].apply(abs, 1), IndexError, "no engines"),
    "unknown msg_id": (lambda rc: rc.get_result(UNKNOWN), KeyError, "rc.hub_history"),
    "no msg_id at all": (lambda rc: rc.get_result("x"), KeyError, "looks like"),
    "an empty list of msg_ids": (lambda rc: rc.get_result([]), ValueError, "at least one"),
    "a result by a float": (lambda rc: rc.get_result(1.5), TypeError, "float"),
    "beyond the history": (lambda rc: rc.get_result(99), IndexError, "there are 0"),
    "waiting for a float": (lambda rc: rc.wait(1.5), TypeError, "jobs are"),
    "aborting a dictionary's value": (lambda rc: rc.abort(object()), TypeError, "jobs are"),
    "resubmitting what is not known": (lambda rc: rc.resubmit(UNKNOWN), KeyError, "call again"),
    "status of what is not known": (lambda rc: rc.result_status([UNKNOWN]), KeyError, "knows no"),
    "purging nothing": (lambda rc: rc.purge_results(), ValueError, "say what to purge"),
    "purging nothing here": (lambda rc: rc.purge_local_results([]), ValueError, "say what"),
    "query that is no dictionary": (lambda rc: rc.db_query(["x"]), TypeError, "dictionary"),
    "a signal that does not exist": (lambda rc: rc.send_signal("SIGNOPE"), ValueError, "SIGNOPE"),
    "restarting engines": (
        lambda rc: rc.shutdown(restart=True),
        NotImplementedError,
        "Cluster",
    ),
    "a signal that is no number": (lambda rc: rc.send_signal(1.5), TypeError, "number or a name"),
    "a signal out of range": (lambda rc: rc.send_signal(999), ValueError, "no signal 999"),
    "clearing an engine that is not there": (lambda rc: rc.clear(9), IndexError, "engines are"),
    "aborting at an engine that is not there": (
        lambda rc: rc.abort(targets=9),
        IndexError,
        "engines are",
    ),
    "balancing over no engines": (
        lambda rc: rc.load_balanced_view([]).apply(abs, 1),
        IndexError,
        "no engines",
    ),
    "pull of nothing that is a name": (lambda rc: rc[:].pull(5), TypeError, r"names \(str\)"),
    "scatter to a number": (lambda rc: rc[:].scatter(5, [1]), TypeError, r"names \(str\)"),
    "gather of a number": (lambda rc: rc[:].gather(5), TypeError, r"names \(str\)"),
    "gather with a wrong dist": (lambda rc: rc[:].gather("a", dist="x"), ValueError, "'b'"),
    "remote of what cannot be called": (lambda rc: rc[:].remote()(5), TypeError, "callable"),
    "remote through no view": (lambda rc: remote(rc)(abs), TypeError, r"such as rc\[:\]"),
    "remote with an unknown flag": (
        lambda rc: rc[:].remote(nope=1)(abs),
        KeyError,
        "it has .*targets",
    ),
    "parallel with a wrong dist": (lambda rc: rc[:].parallel(dist="x")(abs), ValueError, "'b'"),
    "parallel in chunks of none": (
        lambda rc: rc.load_balanced_view().parallel(chunksize=0)(abs),
        ValueError,
        "1 or more",
    ),
    "a query's keys that are no names": (
        lambda rc: rc.db_query({}, keys=[5]),
        TypeError,
        "names of fields",
    ),
    "more engines than a word says": (lambda rc: rc.wait_for_engines("4"), TypeError, "number of"),
    "waiting for engines for a word": (
        lambda rc: rc.wait_for_engines(4, timeout="5"),
        TypeError,
        "seconds",
    ),
    "joining what is no result": (lambda rc: AsyncResult.join(5), TypeError, "takes results"),
    "joining nothing": (lambda rc: AsyncResult.join(), TypeError, "at least one"),
    "importing only remotely": (
        lambda rc: rc[:].sync_imports(local=False),
        NotImplementedError,
        "execute",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_says_what_to_do(rc: Client, name: str) -> None:
    """The exception is of exactly this class, its text helps, and the client goes on."""
    misuse, kind, text = MISUSES[name]
    with pytest.raises(kind, match=text) as caught:
        misuse(rc)
    assert type(caught.value) is kind
    assert rc[:].apply_async(abs, -1).get(5) == [1, 1]


RESULT_MISUSES: dict[str, tuple[Callable[[Any], Any], type[BaseException], str]] = {
    "successful before the end": (lambda ar: ar.successful(), RuntimeError, "ar.wait"),
    "a value before the end": (lambda ar: ar[0], TimeoutError, "ar.wait"),
    "serial time before the end": (lambda ar: ar.serial_time, TimeoutError, "ar.wait"),
    "get in no time": (lambda ar: ar.get(0), TimeoutError, "0 of 2 tasks have ended"),
    "a task that is not there": (lambda ar: ar[7], IndexError, "there are 2"),
    "metadata that do not exist": (lambda ar: ar["nope"], KeyError, "nope"),
    "an attribute that does not exist": (lambda ar: ar.nope, AttributeError, "nope"),
    "an unknown return_when": (lambda ar: ar.wait(0, "x"), ValueError, "FIRST_COMPLETED"),
    "an unknown return_when of get": (
        lambda ar: ar.get(0, return_when="x"),
        ValueError,
        FIRST_EXCEPTION,
    ),
    "a timeout that is no number": (lambda ar: ar.wait("5"), TypeError, "seconds"),
    "a limit of get that is no number": (lambda ar: ar.get("5"), TypeError, "seconds"),
    "a limit of a bar that is no number": (
        lambda ar: ar.wait_interactive(timeout="5"),
        TypeError,
        "seconds",
    ),
    "values by engine before the end": (lambda ar: ar.get_dict(0), TimeoutError, "0 of 2"),
    "a task by half its number": (lambda ar: ar[1.5], TypeError, "int, slice or str"),
    "grouping that does not exist": (
        lambda ar: ar.display_outputs(groupby="x"),
        ValueError,
        "'engine'",
    ),
    "purging what is outstanding": (
        lambda ar: ar._client.purge_results(ar),
        RuntimeError,
        "wait for them, or abort",
    ),
    "purging all while some is outstanding": (
        lambda ar: ar._client.purge_everything(),
        RuntimeError,
        "have not ended",
    ),
}


@pytest.mark.parametrize("name", RESULT_MISUSES)
def test_misuse_of_a_pending_result(rc: Client, controller: Any, name: str) -> None:
    """What needs a result that is there says so, with the class that users catch."""
    misuse, kind, text = RESULT_MISUSES[name]
    controller.paused.set()
    ar = rc[:].apply_async(abs, -1)
    with pytest.raises(kind, match=text) as caught:
        misuse(ar)
    assert type(caught.value) is kind
    controller.paused.clear()
    assert ar.get(5) == [1, 1]


def test_abort_after_the_end(rc: Client) -> None:
    """What has ended cannot be aborted."""
    ar = rc[0].apply_async(abs, -1)
    ar.get(5)
    with pytest.raises(RuntimeError, match="have ended"):
        ar.abort()


def test_values_by_engine_of_several_tasks(rc: Client) -> None:
    """Values by engine need one task per engine; the error says what else there is."""
    ar = rc.load_balanced_view().map_async(abs, range(4))
    with pytest.raises(ValueError, match=r"get\(\) gives the list"):
        ar.get_dict(5)


def test_iterating_a_single_value(rc: Client) -> None:
    """One value is no sequence."""
    with pytest.raises(TypeError, match=r"get\(\)"):
        iter(rc[0].apply_async(abs, -1))


def test_no_engines_at_all(empty_controller: Any) -> None:
    """Without engines every call says how to get some."""
    with Client(empty_controller.info, timeout=5) as client:
        for call in (
            lambda: client[:].apply(abs, 1),
            lambda: client.load_balanced_view().apply(abs, 1),
            lambda: client.load_balanced_view().map(abs, [1]),
        ):
            with pytest.raises((NoEnginesRegistered, IndexError), match="engines"):
                call()


def test_a_closed_client(controller: Any) -> None:
    """A closed client says that it is closed, whatever is asked of it."""
    client = Client(controller.info, timeout=5)
    view = client[:]
    client.close()
    assert issubclass(ClientClosed, OSError)
    for call in (
        lambda: view.apply(abs, 1),
        lambda: view.push({"a": 1}),
        lambda: client.queue_status(),
        lambda: client.hub_history(),
        lambda: client.clear(),
    ):
        with pytest.raises(ClientClosed, match="make a new Client"):
            call()


def test_unknown_arguments_of_a_client() -> None:
    """An argument that no Client has is refused by name."""
    with pytest.raises(TypeError, match="profil_dir"):
        Client(profil_dir="x")


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"sshserver": "x", "password": "y"}, NotImplementedError, "sshkey="),
        ({"sshserver": "x", "paramiko": True}, NotImplementedError, "system's ssh"),
        ({"sshserver": "x", "ssh_args": "-J y"}, TypeError, "list of arguments"),
        ({"timeout": "5"}, TypeError, "seconds"),
    ],
    ids=["password", "paramiko", "arguments in one string", "timeout"],
)
def test_misuse_of_the_way_to_a_controller(
    controller: Any, arguments: dict[str, Any], kind: type[BaseException], text: str
) -> None:
    """What a connection cannot be made with is said before anything is started."""
    with pytest.raises(kind, match=text) as caught:
        Client(controller.info, **arguments)
    assert type(caught.value) is kind
