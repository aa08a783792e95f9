import sys

import pytest

import ipyfleet
from ipyfleet import compat


@pytest.fixture
def installed():
    """The old names, for one test."""
    compat.install()
    yield
    compat.uninstall()


def test_names_are_the_same_objects(installed):
    """An old module has ipyfleet's own objects."""
    import ipyparallel as ipp  # type: ignore[import-not-found,unused-ignore]
    from ipyparallel.error import CompositeError  # type: ignore[import-not-found,unused-ignore]

    assert CompositeError is ipyfleet.CompositeError
    assert ipp.error.RemoteError is ipyfleet.RemoteError
    assert ipp.version_info == ipyfleet.version_info


def test_unknown_names(installed):
    """What has no counterpart is refused as Python refuses it, and the text says why."""
    import ipyparallel as ipp  # type: ignore[import-not-found,unused-ignore]

    with pytest.raises(AttributeError, match="stands in for ipyfleet, which has no 'Klient'"):
        _ = ipp.Klient
    with pytest.raises(ModuleNotFoundError, match="no counterpart"):
        import ipyparallel.nowhere  # type: ignore[import-not-found,unused-ignore] # noqa: F401


def test_uninstall_leaves_nothing():
    """After `uninstall` no old module is loaded and none is found by us; twice is once."""
    compat.install()
    compat.install()
    import ipyparallel.error  # type: ignore[import-not-found,unused-ignore] # noqa: F401

    compat.uninstall()
    compat.uninstall()
    assert not [name for name in sys.modules if name.split(".")[0] == "ipyparallel"]
    assert compat._finder not in sys.meta_path


def test_every_root_and_submodule_is_known():
    """Names outside the two old packages are left to others."""
    assert compat._submodule("ipyparallel") == ""
    assert compat._submodule("IPython.parallel.client.view") == "client.view"
    assert compat._submodule("ipyparallelism") is None
    assert compat._submodule("IPython.paralle") is None


def test_dates():
    """`extract_dates` finds ISO dates at any depth and leaves other strings alone."""
    from ipyfleet.util import extract_dates, utc

    found = extract_dates({"a": ["2020-01-02T03:04:05", "2020-T"], "b": ("x", 1)})
    assert found["a"][0].tzinfo is utc and found["a"][1] == "2020-T" and found["b"] == ("x", 1)
