import pickle
import sys
from types import SimpleNamespace

import pytest

from ipyfleet_protocol.namespace import (
    Reference,
    current_namespace,
    import_names,
    pull_names,
    push_names,
    set_namespace,
)


@pytest.fixture
def ns():
    """A namespace for the test; ``__main__`` is back afterwards."""
    namespace = {}
    set_namespace(namespace)
    yield namespace
    set_namespace(None)


def test_default_is_main():
    """A process that sets no namespace uses that of __main__."""
    assert current_namespace() is sys.modules["__main__"].__dict__


def test_set_keeps_the_dict(ns):
    """The namespace is the very dict that was set, not a copy."""
    assert current_namespace() is ns


def test_push_plain_names(ns):
    """Plain names are assigned in the namespace, and nothing else appears there."""
    push_names({"a": 1, "größe": 2})
    assert ns == {"a": 1, "größe": 2}


def test_push_into_what_is_there(ns):
    """Attributes and items, at any depth, are assignment targets."""
    ns.update(obj=SimpleNamespace(inner={"k": [0, 0]}))
    push_names({"obj.x": 1, "obj.inner['k'][1]": 2, "obj.inner['new']": 3})
    assert ns["obj"].x == 1
    assert ns["obj"].inner == {"k": [0, 2], "new": 3}
    assert {name for name in ns if name != "__builtins__"} == {"obj"}


def test_push_in_order_of_the_dict(ns):
    """A later key may use what an earlier one pushed."""
    push_names({"d": {}, "d['k']": 1})
    assert ns["d"] == {"k": 1}


@pytest.mark.parametrize(
    "key", ["", "1", "a b", "f()", "a, b", "a = b", "a; b", "x\ny", "(a)[0] +"]
)
def test_push_refuses_what_is_no_target(ns, key):
    """A key that is no single target is refused before anything is assigned."""
    with pytest.raises(ValueError, match="cannot assign to"):
        push_names({"good": 1, key: 2})
    assert "good" not in ns


def test_push_refuses_other_keys(ns):
    """A key that is no string is refused by name."""
    with pytest.raises(TypeError, match="must be a str, not int: 3"):
        push_names({3: 1})


def test_push_to_something_missing(ns):
    """An item of a missing name gives Python's own NameError."""
    with pytest.raises(NameError, match="name 'nothing' is not defined"):
        push_names({"nothing.x": 1})


def test_pull_one_and_many(ns):
    """A string gives its value, a tuple or list a list of values."""
    ns.update(a=1, b=[10, 20])
    assert pull_names("a") == 1
    assert pull_names(("a", "b[1]")) == [1, 20]
    assert pull_names(["a"]) == [1]


def test_pull_missing_name(ns):
    """A missing name gives Python's own NameError."""
    with pytest.raises(NameError, match="name 'nothing' is not defined"):
        pull_names("nothing")


def test_import_names(ns):
    """Import statements run in the namespace."""
    import_names("import os.path as p, math\nfrom json import dumps")
    assert ns["math"].sqrt(4) == 2
    assert ns["p"].sep
    assert ns["dumps"](1) == "1"


def test_import_names_refuses_other_code(ns):
    """Anything but imports is refused and not run."""
    with pytest.raises(ValueError, match="not an import"):
        import_names("import math; x = 1")
    assert ns == {}
    with pytest.raises(ValueError, match="not an import"):
        import_names("")


def test_reference_resolves_where_it_arrives(ns):
    """A Reference is evaluated in the receiver's namespace at each unpickling."""
    sent = pickle.dumps({"deep": [Reference("a.b[0]")]})
    ns["a"] = SimpleNamespace(b=[1])
    assert pickle.loads(sent) == {"deep": [1]}
    ns["a"].b[0] = 2
    assert pickle.loads(sent) == {"deep": [2]}


@pytest.mark.parametrize("name", [1, None, b"a", len])
def test_reference_takes_a_name(name):
    """A Reference to anything but a string is refused."""
    with pytest.raises(TypeError, match="takes a name"):
        Reference(name)


@pytest.mark.parametrize("name", ["", "a b", "a = 1", "import os"])
def test_reference_takes_an_expression(name):
    """What is no expression is refused where it is written, not where it arrives."""
    with pytest.raises(SyntaxError):
        Reference(name)


def test_reference_shows_its_name():
    """The repr of a Reference is how to write it."""
    assert repr(Reference("a.b[0]")) == "Reference('a.b[0]')"
