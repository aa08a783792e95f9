"""Functions and classes of ``__main__``, sent to a fresh interpreter and called there."""

import pickle
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_protocol.namespace import set_namespace
from ipyfleet_protocol.serialize import (
    pack,
    pack_call,
    pack_function,
    unpack,
    unpack_function,
    use_cloudpickle,
    use_dill,
    use_pickle,
)
from ipyfleet_protocol.serialize.own_class import without_own_classes


class Remote(Exception):
    """What the receiver raised: the name of its class, its text, the repr of its cause."""


class Receiver:
    """A running ``receiver.py``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("receiver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, name: str, *args: Any) -> Any:
        """Call a function of ``receiver.py``."""
        pickle.dump((name, args), self.process.stdin)
        self.process.stdin.flush()
        done, answer = pickle.load(self.process.stdout)
        if not done:
            raise Remote(*answer)
        return answer

    def call(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        """Run ``f`` there as an engine runs a task."""
        function, frames = pack_function(f)
        packed = pack_call(args, kwargs)
        buffers = [bytes(buffer) for buffer in packed.buffers]
        frames = [bytes(frame) for frame in frames]
        result = self.ask("call", frames, function.self_name, packed.pickle, buffers)
        return unpack(result[0], [memoryview(bytearray(buffer)) for buffer in result[1]])

    def close(self) -> None:
        """End it and wait for it."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def process():
    """One receiver for all tests of the module."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def receiver(process):
    """The receiver, with an empty namespace; what comes back here sees one of its own, too."""
    process.ask("reset")
    set_namespace({"__name__": "__main__"})
    yield process
    set_namespace(None)


def main_module(source: str) -> dict[str, Any]:
    """Run code as a session does whose namespace is ``__main__``."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), namespace)
    return namespace


def read_cases(name: str) -> dict[str, str]:
    """The source of each case in a file, by the case's name."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    parts = [part.split("\n", 1) for part in text.split("\n=== ")[1:]]
    return dict(parts)


CASES = read_cases("cases_by_value.txt")


@pytest.mark.parametrize("name", CASES)
def test_call_elsewhere(receiver, name):
    """What is defined in __main__ does in another process what it does here."""
    case = main_module(CASES[name])
    assert receiver.call(case["f"], *case["args"]) == case["result"]
    assert receiver.ask("names") == []  # nothing was left in the namespace


def test_lru_cache_keeps_its_parameters(receiver):
    """A cached function arrives with the same parameters and an empty cache."""
    ns = main_module(
        """
        import functools

        @functools.lru_cache(maxsize=7, typed=True)
        def g(n):
            return n
        """
    )
    ns["g"](1)
    g = unpack_function(pack_function(ns["g"]).frames)
    assert g.cache_parameters() == {"maxsize": 7, "typed": True}
    assert g.cache_info().currsize == 0
    assert g.__wrapped__ is not ns["g"].__wrapped__


def test_wrapper_keeps_its_looks(receiver):
    """What functools.wraps copied is there, the wrapped function as well."""
    ns = main_module(CASES["decorator"])
    f = unpack_function(pack_function(ns["f"]).frames)
    assert (f.__name__, f.__doc__, f.__wrapped__(1)) == ("f", "doc", 2)


# --- globals ---


def test_globals_are_the_receivers(receiver):
    """A function sees the receiver's values, those of later too; the sender's never."""
    ns = main_module(
        """
        CONSTANT = 1
        f = lambda: CONSTANT
        g = lambda: f()
        """
    )
    frames = [bytes(frame) for frame in pack_function(ns["f"]).frames]
    call = pack_call((), {})
    with pytest.raises(Remote, match="name 'CONSTANT' is not defined"):
        receiver.call(ns["f"])
    receiver.ask("execute", "CONSTANT = 5")
    assert receiver.call(ns["f"]) == 5
    receiver.ask("execute", "CONSTANT = 6")
    assert unpack(*receiver.ask("call", frames, "", call.pickle, [])) == 6
    with pytest.raises(Remote, match="name 'f' is not defined"):
        receiver.call(ns["g"])


def test_a_function_writes_to_the_receivers_namespace(receiver):
    """A global statement binds in the receiver's namespace, and not in the sender's."""
    ns = main_module(
        """
        def f():
            global made
            made = 1
        """
    )
    receiver.call(ns["f"])
    assert receiver.ask("names") == ["made"]
    assert "made" not in ns


def test_methods_see_the_receivers_globals(receiver):
    """The globals of methods are the receiver's namespace, too."""
    ns = main_module(
        """
        N = 1

        class A:
            def get(self):
                return N

            @staticmethod
            def s():
                return N

        f = A().get
        g = A.s
        """
    )
    receiver.ask("execute", "N = 7")
    assert receiver.call(ns["f"]) == receiver.call(ns["g"]) == 7


def test_nothing_of_the_senders_globals_is_captured():
    """The pickle has no trace of the globals that a function refers to."""
    ns = main_module(
        """
        SECRET = 'do-not-send-me'
        class Helper: text = 'do-not-send-me'
        def helper(): return 'do-not-send-me'
        def f(x: 'int') -> str:
            def inner(): return SECRET, Helper, helper()
            return SECRET + helper() + Helper.text, inner
        class A:
            def m(self): return SECRET, Helper, helper
        """
    )
    for obj in (ns["f"], ns["A"], ns["A"](), ns["A"]().m, [ns["f"]]):
        packed = pack(obj)
        assert b"do-not-send-me" not in packed.pickle
        assert packed.buffers == []


def test_an_unpicklable_global_does_not_matter(receiver):
    """A function may refer to a global that could never be sent."""
    ns = main_module(
        """
        import threading

        lock = threading.Lock()

        def f():
            with lock:
                return 1
        """
    )
    receiver.ask("execute", "import threading; lock = threading.Lock()")
    assert receiver.call(ns["f"]) == 1


def test_functions_of_one_task_share_the_namespace(receiver):
    """Functions in the arguments have the same globals as the function."""
    ns = main_module(
        """
        def f(g):
            global seen
            seen = 1
            return g()

        def g():
            return seen
        """
    )
    assert receiver.call(ns["f"], ns["g"]) == 1


def test_receiver_functions_come_back(receiver):
    """A function made there and returned here has this side's namespace as globals."""
    ns = main_module(
        """
        def f():
            def g():
                return HERE

            return g
        """
    )
    back = receiver.call(ns["f"])
    namespace = {"HERE": 3}
    set_namespace(namespace)
    assert receiver.call(ns["f"])() == 3
    assert back.__globals__ is not namespace  # arrived before, in the namespace of then


def test_found_in_main_is_not_by_reference(monkeypatch, receiver):
    """What plain pickle would name in __main__ is sent by value all the same."""
    main = sys.modules["__main__"]
    ns = main_module(
        """
        class A:
            x = 1

        def f(a):
            return a.x
        """
    )
    monkeypatch.setattr(main, "A", ns["A"], raising=False)
    monkeypatch.setattr(main, "f", ns["f"], raising=False)
    assert b"__main__" in pickle.dumps(ns["f"])
    assert receiver.call(ns["f"], ns["A"]()) == 1


def test_real_main(receiver, tmp_path):
    """A script's own functions and classes work from its real __main__."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import dataclasses, pickle, sys
            from ipyfleet_protocol.serialize import pack_call, pack_function

            N = 1

            @dataclasses.dataclass
            class Job:
                x: int
                def run(self): return self.x + N

            def f(job): return job.run()

            function, frames = pack_function(f)
            packed = pack_call((Job(41),), {})
            sent = list(map(bytes, frames)), function.self_name, packed.pickle, []
            pickle.dump(sent, sys.stdout.buffer)
            """
        )
    )
    sent = subprocess.run([sys.executable, script], check=True, capture_output=True, timeout=30)
    receiver.ask("execute", "N = 1000")
    assert unpack(*receiver.ask("call", *pickle.loads(sent.stdout))) == 1041


def test_module_set_by_hand(receiver):
    """``f.__module__ = '__main__'`` asks for the receiver's namespace."""
    namespace = {"__name__": "made_by_hand", "N": 1}
    exec("def f(): return N", namespace)
    namespace["f"].__module__ = "__main__"
    receiver.ask("execute", "N = 2")
    assert receiver.call(namespace["f"]) == 2


# --- functions of modules ---

LOCAL_MODULE = """
import functools
import threading

FACTOR = 3
LOCK = threading.Lock()

def plain(x): return FACTOR * x

def nested():
    return lambda x: FACTOR * x

def locked():
    return lambda x: FACTOR * x if LOCK else None

def times(g):
    @functools.wraps(g)
    def wrapper(*args): return FACTOR * g(*args)
    return wrapper
"""


@pytest.fixture
def local_module(tmp_path, monkeypatch):
    """A module in a folder that is only on the sender's path."""
    (tmp_path / "fleet_local_module.py").write_text(LOCAL_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import fleet_local_module

    yield fleet_local_module
    del sys.modules["fleet_local_module"]


def test_module_functions_go_by_reference(receiver, local_module, tmp_path):
    """A module's function is named; a receiver without the module says so."""
    with pytest.raises(Remote) as caught:
        receiver.call(local_module.plain, 2)
    assert caught.value.args[0] == "UnpackError"
    assert "ModuleNotFoundError" in caught.value.args[2]
    header, frames = pack_function(local_module.plain)
    assert len(frames[0]) < 80
    assert header.reusable


@pytest.mark.parametrize("name", ["nested", "locked"])
def test_nested_function_uses_the_receivers_module(receiver, local_module, tmp_path, name):
    """A module's nested function has the globals of the receiver's module of that name."""
    add = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    change = "import fleet_local_module; fleet_local_module.FACTOR = 5"
    receiver.ask("execute", f"{add}; {change}")
    try:
        assert receiver.call(getattr(local_module, name)(), 2) == 10
    finally:
        receiver.ask("execute", "del sys.path[0], sys.modules['fleet_local_module']")


def test_nested_function_of_a_module_that_is_not_there(receiver, local_module):
    """Where the module is missing, the globals that were sent along are used."""
    assert receiver.call(local_module.nested(), 2) == 6


def test_nested_function_with_an_unpicklable_global(receiver, local_module):
    """A module's nested function needs its module where its globals cannot be sent."""
    with pytest.raises(Remote) as caught:
        receiver.call(local_module.locked(), 2)
    assert "ModuleNotFoundError" in caught.value.args[2]


def test_decorator_of_a_module_on_a_function_of_main(receiver, local_module):
    """The wrapper has its module's globals, the wrapped function the receiver's namespace."""
    ns = main_module("def f(x): return x + N")
    receiver.ask("execute", "N = 10; FACTOR = 'wrong'")
    assert receiver.call(local_module.times(ns["f"]), 1) == 33


def test_function_of_no_module(receiver):
    """A function whose module cannot exist elsewhere brings the globals that it refers to."""
    module = types.ModuleType("fleet_made_by_hand")
    exec("N = 4\ndef f(): return N", module.__dict__)
    assert receiver.call(module.f) == 4


# --- classes ---


def test_class_identity_is_stable(receiver):
    """A class that travels twice is one class there, and its own self when it comes home."""
    ns = main_module(
        """
        class A:
            pass

        def keep(a):
            global kept
            kept = a

        def same(a):
            return type(a) is type(kept)

        def give():
            return kept
        """
    )
    receiver.call(ns["keep"], ns["A"]())
    assert receiver.call(ns["same"], ns["A"]())
    assert type(receiver.call(ns["give"])) is ns["A"]


def test_returning_instance_does_not_undo_changes(receiver):
    """An instance that comes home does not bring old class attributes back."""
    ns = main_module(
        """
        class A:
            n = 1

        def keep(a):
            global kept
            kept = a

        def give():
            return kept
        """
    )
    receiver.call(ns["keep"], ns["A"]())
    ns["A"].n = 2
    assert receiver.call(ns["give"]).n == 2
    assert ns["A"].n == 2


def test_values_bring_their_class_pickled_once(receiver):
    """The class of values that come home is pickled and read once, until it arrives changed."""
    ns = main_module(
        """
        class A:
            n = 1

            def __init__(self):
                super().__init__()

        def f(a):
            return a

        def pickles(a):
            from ipyfleet_protocol.serialize import by_value, pack

            before = pack(a)
            return before == pack(a), by_value._bodies[type(a)][1] in before.pickle
        """
    )
    first, second = receiver.call(ns["f"], ns["A"]()), receiver.call(ns["f"], ns["A"]())
    assert type(first) is type(second) is ns["A"]
    assert receiver.call(ns["pickles"], first) == (True, True)
    ns["A"].n = 2
    assert receiver.call(ns["pickles"], first) == (True, True)
    assert receiver.call(ns["f"], first).n == 2


def test_changed_class_arrives_changed(receiver):
    """A class that was changed since it was sent is changed there, too."""
    ns = main_module(
        """
        class A:
            n = 1

        def f(a):
            return a.n
        """
    )
    assert receiver.call(ns["f"], ns["A"]()) == 1
    ns["A"].n = 2
    assert receiver.call(ns["f"], ns["A"]()) == 2


def test_class_made_there_comes_here(receiver):
    """An instance of a class that only the receiver has arrives with its class."""
    receiver.ask(
        "execute",
        """
        class B:
            def __init__(self):
                self.x = 5

            def get(self):
                return self.x
        """,
    )
    b = receiver.call(main_module("f = lambda: B()")["f"])
    assert (type(b).__name__, b.get()) == ("B", 5)


OWN = """
class A:
    version = {version}

    def copy(self):
        return A()

    @staticmethod
    def current():
        return A.version
"""


def test_own_class_whatever_has_its_name(receiver):
    """A method's class is its own where the name is taken, and what took the name keeps it."""
    first, second = (main_module(OWN.format(version=n))["A"] for n in (1, 2))
    versions = main_module("f = lambda *given: [a.copy().version for a in given]")["f"]
    receiver.ask("execute", "A = 'mine'")
    assert receiver.call(versions, first(), second(), first()) == [1, 2, 1]
    assert receiver.ask("names") == ["A"]
    assert receiver.call(main_module("f = lambda: A")["f"]) == "mine"


def test_own_class_of_what_stays(receiver):
    """An instance that is kept finds its class in later tasks, and comes home with it."""
    ns = main_module(
        OWN.format(version=1)
        + """
def keep(a):
    global kept
    kept = a

def give():
    return kept.copy(), kept.copy().copy
"""
    )
    receiver.call(ns["keep"], ns["A"]())
    copy, method = receiver.call(ns["give"])
    assert type(copy) is type(copy.copy()) is type(method()) is ns["A"]


def test_own_class_of_what_is_made_there(receiver):
    """An instance of a class that only the receiver has finds its class here."""
    receiver.ask("execute", OWN.format(version=7))
    a = receiver.call(main_module("f = lambda: A()")["f"])
    assert (type(a.copy()) is type(a), a.copy().current()) == (True, 7)
    again = receiver.call(main_module("f = lambda a: a.copy()")["f"], a)
    assert type(again.copy()) is type(a)


def test_own_class_is_as_it_is_now(receiver):
    """A static method that was sent before is sent with its class as that is now."""
    a = main_module(OWN.format(version=1))["A"]
    assert receiver.call(a.current) == 1
    a.version = 2
    assert receiver.call(a.current) == 2


def test_names_are_those_of_the_source_again(receiver):
    """What a method's code looks like to whom it is sent on does not tell where it has been."""
    a = main_module(OWN.format(version=1))["A"]
    code = unpack_function(pack_function(a.copy).frames).__code__
    assert code != a.copy.__code__
    assert without_own_classes(code) == (a.copy.__code__, {"A": a})


def test_exception_class_of_main(receiver):
    """Exceptions of __main__ can be sent as values."""
    ns = main_module(
        """
        class Oops(Exception):
            def __init__(self, a):
                super().__init__(a)
                self.a = a

        def f(e):
            return e.a, e.args
        """
    )
    assert receiver.call(ns["f"], ns["Oops"](3)) == (3, (3,))


# --- the pickler may be chosen ---


@pytest.fixture
def choice():
    """The default pickler is back after the test."""
    yield
    use_pickle()


def test_use_cloudpickle(receiver, choice):
    """With use_cloudpickle functions bring their globals; use_pickle goes back."""
    ns = main_module(
        """
        N = 4

        def f():
            return N
        """
    )
    receiver.ask("execute", "N = 5")
    assert receiver.call(ns["f"]) == 5
    use_cloudpickle()
    assert receiver.call(ns["f"]) == 4
    use_pickle()
    assert receiver.call(ns["f"]) == 5


def test_use_dill_without_dill(choice, monkeypatch):
    """use_dill says what to install, and changes nothing."""
    monkeypatch.setitem(sys.modules, "dill", None)
    monkeypatch.delitem(sys.modules, "ipyfleet_protocol.serialize.with_dill", raising=False)
    with pytest.raises(ImportError, match="pip install dill"):
        use_dill()
    assert pack(main_module("f = lambda: 1")["f"]).pickle


def test_use_dill(receiver, choice):
    """With use_dill functions travel by dill."""
    pytest.importorskip("dill", reason="dill is not installed")
    use_dill()
    ns = main_module("def f(x): return x + 1")
    assert b"load_dill" in pack(ns["f"]).pickle
    assert receiver.call(ns["f"], 1) == 2
