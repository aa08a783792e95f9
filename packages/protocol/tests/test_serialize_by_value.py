"""Functions and classes of ``__main__``, sent to a fresh interpreter and called there."""

import functools
import pickle
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
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
from ipyfleet_protocol.serialize.by_value import ByValuePickler


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
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def process():
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


class Case(NamedTuple):
    source: str  # defines f
    args: tuple[Any, ...]
    result: Any


CASES = {
    "function": Case("def f(x): return x + 1", (1,), 2),
    "lambda": Case("f = lambda x: x + 1", (1,), 2),
    "defaults": Case("def f(x, y=[2], /, z=(3, {}), *, k={'a': 4}): return x, y, z, k", (1,), (1, [2], (3, {}), {"a": 4})),
    "annotations": Case("def f(x: int, y: 'str' = '') -> list[int]: return dict(f.__annotations__)", (1,), {"x": int, "y": "str", "return": list[int]}),
    "annotation of main": Case("class A: pass\ndef f(x: A): return f.__annotations__['x'].__name__", (1,), "A"),
    "closure": Case("def outer(n):\n    def f(x): return x + n\n    return f\nf = outer(10)", (1,), 11),
    "closure, unbound": Case("def outer():\n    def f(x): return x if x else late\n    return f\n    late = 1\nf = outer()", (1,), 1),
    "recursion": Case("def f(n): return n * f(n - 1) if n else 1", (5,), 120),
    "recursion of a lambda": Case("f = lambda n: n * f(n - 1) if n else 1", (5,), 120),
    "recursion in a closure": Case("def outer():\n    def g(n): return n * g(n - 1) if n else 1\n    return g\nf = outer()", (5,), 120),
    "mutual recursion": Case(
        "def outer():\n"
        "    def even(n): return not n or odd(n - 1)\n"
        "    def odd(n): return bool(n) and even(n - 1)\n"
        "    return even\n"
        "f = outer()", (7,), False),
    "shared variable": Case(
        "def outer():\n"
        "    n = 0\n"
        "    def up():\n"
        "        nonlocal n\n"
        "        n += 1\n"
        "    def get(): return n\n"
        "    return lambda: (up(), up(), get())[-1]\n"
        "f = outer()", (), 2),
    "nested": Case("def f(x):\n    def g(y): return [y + z for z in range(x)]\n    return g(1)", (3,), [1, 2, 3]),
    "decorator": Case(
        "import functools\n"
        "def twice(g):\n"
        "    @functools.wraps(g)\n"
        "    def wrapper(*args): return 2 * g(*args)\n"
        "    return wrapper\n"
        "@twice\n"
        "def f(x): 'doc'; return x + 1", (1,), 4),
    "decorated recursion": Case(
        "import functools\n"
        "def twice(g):\n"
        "    @functools.wraps(g)\n"
        "    def wrapper(*args): return 2 * g(*args)\n"
        "    return wrapper\n"
        "@twice\n"
        "def f(n): return n + f(n - 1) if n else 1", (2,), 16),
    "lru_cache": Case("import functools\n@functools.lru_cache(maxsize=7, typed=True)\ndef f(n): return n < 2 or f(n - 1) + f(n - 2)", (30,), 1346269),
    "lru_cache kept": Case("import functools\n@functools.lru_cache(maxsize=7, typed=True)\ndef g(n): return n\nf = lambda g: (g(1), tuple(g.cache_info()))", (), None),
    "partial": Case("import functools\ndef g(*args, **kwargs): return args, kwargs\nf = functools.partial(g, 1, k=2)", (3,), ((1, 3), {"k": 2})),
    "attributes": Case("def g(): return g.__dict__\ndef f(): return 1\nf.tag = [1]\ng = f\nimport functools\nf = functools.partial(lambda h: (h.tag, h()), f)", (), ([1], 1)),
    "coroutine": Case("import asyncio\nasync def f(x):\n    from asyncio import sleep\n    await sleep(0)\n    return x + 1", (1,), 2),
    "generator": Case("def f(n):\n    for i in range(n): yield i", (3,), [0, 1, 2]),
    "bound method": Case("class A:\n    def __init__(self, n): self.n = n\n    def add(self, x): return self.n + x\nf = A(10).add", (1,), 11),
    "class method": Case("class A:\n    n = 10\n    @classmethod\n    def add(cls, x): return cls.n + x\nf = A.add", (1,), 11),
    "callable object": Case("class A:\n    def __call__(self, x): return x + 1\nf = A()", (1,), 2),
    "method of a builtin": Case("f = 'a-b'.split", ("-",), ["a", "b"]),
    "builtin": Case("f = len", ([1, 2],), 2),
    "installed": Case("from json import dumps as f", ({"a": 1},), '{"a": 1}'),
    "installed closure": Case("import operator\nf = operator.itemgetter(1)", ([1, 2],), 2),
    "names": Case("def f(): return f.__name__, f.__qualname__, f.__module__, f.__doc__\nf.__doc__ = 'what it does'", (), ("f", "f", "__main__", "what it does")),
    "inheritance": Case(
        "class A:\n"
        "    def who(self): return ['A']\n"
        "class B(A):\n"
        "    def who(self): return super().who() + ['B']\n"
        "class C(B):\n"
        "    __slots__ = ('x',)\n"
        "    def who(self): return super().who() + [__class__.__name__]\n"
        "f = C().who", (), ["A", "B", "C"]),
    "metaclass": Case(
        "class Meta(type):\n"
        "    def __call__(cls, *args): return cls, super().__call__(*args)\n"
        "    @property\n"
        "    def shout(cls): return cls.__name__.upper()\n"
        "class Thing(metaclass=Meta): pass\n"
        "import functools\n"
        "f = functools.partial(lambda cls: (cls.shout, type(cls).__name__, len(cls())), Thing)", (), ("THING", "Meta", 2)),
    "abstract": Case(
        "import abc, functools\n"
        "class A(abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def m(self): ...\n"
        "class B(A):\n"
        "    def m(self): return 1\n"
        "f = functools.partial(lambda a, b: (a.__abstractmethods__, b().m(), issubclass(b, a)), A, B)", (), (frozenset({"m"}), 1, True)),
    "enum": Case("import enum, functools\nclass E(enum.IntFlag):\n    X = 1\n    Y = 2\nf = functools.partial(lambda e: (e(3).name, e['X'] | e.Y == 3), E)", (), ("X|Y", True)),
    "named tuple": Case("import typing, functools\nclass P(typing.NamedTuple):\n    x: int\n    y: int = 2\n    def sum(self): return self.x + self.y\nf = functools.partial(lambda p, x: (p(x), p(x).sum(), p._fields), P)", (1,), ((1, 2), 3, ("x", "y"))),
    "old named tuple": Case("import collections, functools\nP = collections.namedtuple('P', 'x y', defaults=[2])\nf = functools.partial(lambda p: p(1)._asdict(), P)", (), {"x": 1, "y": 2}),
    "dataclass": Case(
        "import dataclasses, functools\n"
        "@dataclasses.dataclass(order=True)\n"
        "class D:\n"
        "    x: int\n"
        "    y: list = dataclasses.field(default_factory=list)\n"
        "    z: int = 3\n"
        "def g(d):\n"
        "    import dataclasses\n"
        "    @dataclasses.dataclass\n"
        "    class E(type(d)):\n"
        "        w: int = 4\n"
        "    return repr(d), dataclasses.asdict(E(5)), d < type(d)(2), dataclasses.replace(d, z=9).z\n"
        "f = functools.partial(g, D(1))", (), ("D(x=1, y=[], z=3)", {"x": 5, "y": [], "z": 3, "w": 4}, True, 9)),
    "frozen dataclass with slots": Case(
        "import dataclasses\n@dataclasses.dataclass(frozen=True, slots=True)\nclass D:\n    x: int\n    def get(self): return self.x\nf = D(5).get", (), 5),
    "property and static": Case("class A:\n    @property\n    def p(self): return 1\n    @staticmethod\n    def s(): return 2\n    def f(self): return self.p, self.s()\nf = A().f", (), (1, 2)),
    "instance in the arguments of a partial": Case("import functools\nclass A: x = 1\nf = functools.partial(lambda a: a[0]['k'].x, [{'k': A()}])", (), 1),
    "memoryview": Case("import functools\nf = functools.partial(lambda m: (m.format, m.tolist()), memoryview(b'ab'))", (), ("B", [97, 98])),
    "module": Case("import json, functools\nf = functools.partial(lambda m: m.dumps(1), json)", (), "1"),
}  # fmt: skip
del CASES["lru_cache kept"]


@pytest.mark.parametrize("name", CASES)
def test_call_elsewhere(receiver, name):
    """What is defined in __main__ does in another process what it does here."""
    case = CASES[name]
    f = main_module(case.source)["f"]
    assert receiver.call(f, *case.args) == case.result
    assert receiver.ask("names") == []  # nothing was left in the namespace


def test_lru_cache_keeps_its_parameters(receiver):
    """A cached function arrives with the same parameters and an empty cache."""
    ns = main_module(
        "import functools\n@functools.lru_cache(maxsize=7, typed=True)\ndef g(n): return n"
    )
    ns["g"](1)
    g = unpack_function(pack_function(ns["g"]).frames)
    assert g.cache_parameters() == {"maxsize": 7, "typed": True}
    assert g.cache_info().currsize == 0
    assert g.__wrapped__ is not ns["g"].__wrapped__


def test_wrapper_keeps_its_looks(receiver):
    """What functools.wraps copied is there, the wrapped function as well."""
    ns = main_module(CASES["decorator"].source)
    f = unpack_function(pack_function(ns["f"]).frames)
    assert (f.__name__, f.__doc__, f.__wrapped__(1)) == ("f", "doc", 2)


# --- globals ---


def test_globals_are_the_receivers(receiver):
    """A function sees the receiver's values, those of later too; the sender's never."""
    ns = main_module("CONSTANT = 1\nf = lambda: CONSTANT\ng = lambda: f()")
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
    ns = main_module("def f():\n    global made\n    made = 1")
    receiver.call(ns["f"])
    assert receiver.ask("names") == ["made"]
    assert "made" not in ns


def test_methods_see_the_receivers_globals(receiver):
    """The globals of methods are the receiver's namespace, too."""
    ns = main_module(
        "N = 1\nclass A:\n    def get(self): return N\n    @staticmethod\n    def s(): return N\nf = A().get\ng = A.s"
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
    ns = main_module("import threading\nlock = threading.Lock()\ndef f():\n    with lock: return 1")
    receiver.ask("execute", "import threading; lock = threading.Lock()")
    assert receiver.call(ns["f"]) == 1


def test_functions_of_one_task_share_the_namespace(receiver):
    """Functions in the arguments have the same globals as the function."""
    ns = main_module(
        "def f(g):\n    global seen\n    seen = 1\n    return g()\ndef g(): return seen"
    )
    assert receiver.call(ns["f"], ns["g"]) == 1


def test_receiver_functions_come_back(receiver):
    """A function made there and returned here has this side's namespace as globals."""
    ns = main_module("def f():\n    def g(): return HERE\n    return g")
    back = receiver.call(ns["f"])
    namespace = {"HERE": 3}
    set_namespace(namespace)
    assert receiver.call(ns["f"])() == 3
    assert back.__globals__ is not namespace  # arrived before, in the namespace of then


def test_found_in_main_is_not_by_reference(monkeypatch, receiver):
    """What plain pickle would name in __main__ is sent by value all the same."""
    main = sys.modules["__main__"]
    ns = main_module("class A:\n    x = 1\ndef f(a): return a.x")
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
            pickle.dump((list(map(bytes, frames)), function.self_name, packed.pickle, []), sys.stdout.buffer)
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
        "class A: pass\ndef keep(a):\n    global kept\n    kept = a\ndef same(a): return type(a) is type(kept)\ndef give(): return kept"
    )
    receiver.call(ns["keep"], ns["A"]())
    assert receiver.call(ns["same"], ns["A"]())
    assert type(receiver.call(ns["give"])) is ns["A"]


def test_returning_instance_does_not_undo_changes(receiver):
    """An instance that comes home does not bring old class attributes back."""
    ns = main_module(
        "class A:\n    n = 1\ndef keep(a):\n    global kept\n    kept = a\ndef give(): return kept"
    )
    receiver.call(ns["keep"], ns["A"]())
    ns["A"].n = 2
    assert receiver.call(ns["give"]).n == 2
    assert ns["A"].n == 2


def test_changed_class_arrives_changed(receiver):
    """A class that was changed since it was sent is changed there, too."""
    ns = main_module("class A:\n    n = 1\ndef f(a): return a.n")
    assert receiver.call(ns["f"], ns["A"]()) == 1
    ns["A"].n = 2
    assert receiver.call(ns["f"], ns["A"]()) == 2


def test_class_made_there_comes_here(receiver):
    """An instance of a class that only the receiver has arrives with its class."""
    receiver.ask(
        "execute", "class B:\n    def __init__(self): self.x = 5\n    def get(self): return self.x"
    )
    b = receiver.call(main_module("f = lambda: B()")["f"])
    assert (type(b).__name__, b.get()) == ("B", 5)


def test_exception_class_of_main(receiver):
    """Exceptions of __main__ can be sent as values."""
    ns = main_module(
        "class Oops(Exception):\n    def __init__(self, a): super().__init__(a); self.a = a\ndef f(e): return e.a, e.args"
    )
    assert receiver.call(ns["f"], ns["Oops"](3)) == (3, (3,))


# --- the pickler may be chosen ---


@pytest.fixture
def choice():
    yield
    use_pickle()


def test_use_cloudpickle(receiver, choice):
    """With use_cloudpickle functions bring their globals; use_pickle goes back."""
    ns = main_module("N = 4\ndef f(): return N")
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


# --- what is relied on in cloudpickle ---


class Reduced(ByValuePickler):
    """Keeps what cloudpickle's reducer_override gives for an object."""


def cloudpickle_reduces(obj: Any) -> Any:
    import io

    return cloudpickle.CloudPickler.reducer_override(Reduced(io.BytesIO()), obj)


def test_cloudpickle_leaves_what_is_importable():
    """Reliance: reducer_override is NotImplemented for functions and classes by reference."""
    assert cloudpickle_reduces(functools.wraps) is NotImplemented
    assert cloudpickle_reduces(Path) is NotImplemented


def test_cloudpickle_reduces_functions_to_six():
    """Reliance: the state of a function is a pair; the second has ``__globals__``, captured."""
    ns = main_module("N = 4\nf = lambda: N")
    reduced = cloudpickle_reduces(ns["f"])
    assert len(reduced) == 6
    assert reduced[2][1]["__globals__"] == {"N": 4}


def test_cloudpickle_reduces_classes_to_six():
    """Reliance: a class is made first, its state set later by the sixth part, as (cls, state)."""
    cls = main_module("class A: x = 1")["A"]
    make, args, state, items, pairs, set_state = cloudpickle_reduces(cls)
    assert callable(make)
    assert items is pairs is None
    made = type("A", (), {})
    set_state(made, state)
    assert made.x == 1
    assert make(*args) is cls  # tracked: the class that is here already


def test_cloudpickle_has_a_dispatch_table():
    """Reliance: the class attribute dispatch_table has the reducers for code and modules."""
    table = cloudpickle.CloudPickler.dispatch_table
    assert types.CodeType in table
    assert types.ModuleType in table
