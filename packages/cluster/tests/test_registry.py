import pytest

from ipyfleet_cluster.launchers import (
    abbreviate_launcher_class,
    all_launchers,
    find_launcher_class,
)
from ipyfleet_cluster.launchers.local import LocalControllerLauncher, LocalEngineLauncher


def test_launchers_are_found_by_class_path_and_name():
    """Class, import string and short name in any case name the same launcher."""
    path = "ipyfleet_cluster.launchers.local.LocalEngineLauncher"
    for name in (LocalEngineLauncher, path, "local", "LOCAL"):
        assert find_launcher_class("engine", name) is LocalEngineLauncher
    assert find_launcher_class("controller", "local") is LocalControllerLauncher


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nope", "no engine launcher is called 'nope'; installed: .*local"),
        ("no.such.Thing", "cannot import"),
        ("ipyfleet_cluster.launchers.local.LocalControllerLauncher", "is no engine launcher"),
        (int, "is no engine launcher"),
    ],
)
def test_what_is_no_launcher_is_refused(name: object, why: str):
    """A name that is not a launcher of the wanted kind is a ValueError that says why."""
    with pytest.raises(ValueError, match=why):
        find_launcher_class("engine", name)


def test_short_names():
    """Installed launchers are listed, and a class without a name is called by its path."""

    class Mine(LocalEngineLauncher):
        pass

    assert "local" in all_launchers("engine")
    assert abbreviate_launcher_class("engine", LocalEngineLauncher) == "local"
    assert abbreviate_launcher_class("engine", Mine).endswith("Mine")
