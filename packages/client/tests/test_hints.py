import json
import traceback

import pytest

from ipyfleet_client.hints import add_hint
from ipyfleet_protocol.errors import RemoteError

in_module = 1


def missing(name, method="apply"):
    """A remote NameError."""
    where = {"engine_id": 0, "method": method}
    return RemoteError("NameError", f"name '{name}' is not defined", ["trace"], where)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("in_function", "view['in_function'] = in_function"),
        ("in_module", "view.push(dict(in_module=in_module))"),
        ("json", "with view.sync_imports(): import json"),
    ],
)
def test_a_name_that_exists_here(name, advice):
    """The hint says how to send a variable, or how to import a module."""
    in_function = 2
    error = missing(name)
    add_hint([error])
    assert advice in error.__notes__[0]
    assert error.render_traceback()[-1] == error.__notes__[0]
    assert advice in "".join(traceback.format_exception(error))
    assert (in_function, json.loads("1")) == (2, 1)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("in_module", "view.push(dict(in_module=in_module))"), ("json", "`%px import json`")],
)
def test_code_is_no_function(name, advice):
    """For code that was executed nothing is said of arguments and decorators."""
    error = missing(name, "execute")
    add_hint([error])
    assert advice in error.__notes__[0]
    assert "@require" not in error.__notes__[0]


def test_a_hint_is_given_once():
    """Asking again for a result does not repeat the hint."""
    error = missing("in_module")
    add_hint([error])
    add_hint([error])
    assert len(error.__notes__) == 1


def test_no_hint_without_a_reason():
    """Names that exist nowhere, and other errors, are left alone."""
    errors = [
        missing("nowhere"),
        RemoteError("ValueError", "name 'in_module' is not defined"),
        ValueError("name 'in_module' is not defined"),
    ]
    add_hint(errors)
    assert not any(hasattr(error, "__notes__") for error in errors)
