"""The pytest plugin: a test that leaks fails, and what was skipped is listed with its reason.

What lives here: hooks. What counts as a leak is in `leaks`; where a run keeps its files in
`surroundings`.

The check runs after a test and all its own fixtures are torn down. What a fixture of a wider scope
makes (a module's cluster) belongs to that fixture while it lives; when it is finalized it must all
be gone, and if it is not, the test after which it was finalized fails with the fixture's name.

``@pytest.mark.may_leak("thread", "socket", reason="…")`` excuses a test.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

import hypothesis
import pytest

from ipyfleet_testing.cluster import client, cluster, cluster_factory
from ipyfleet_testing.leaks import LeakDetector, Resource, cluster_of
from ipyfleet_testing.surroundings import TOKEN_NAME, Surroundings

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

__all__ = ["client", "cluster", "cluster_factory"]

_PLUGIN_NAME = "ipyfleet-leak-check"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest first of all."""
    group = parser.getgroup("ipyfleet")
    group.addoption(
        "--no-leak-check", action="store_true", help="do not fail tests that leave things behind"
    )
    group.addoption(
        "--leak-grace",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="how long what a test leaves behind may take to disappear (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest before anything is collected."""
    config.addinivalue_line(
        "markers", "may_leak(*kinds, reason): the test may leave resources of these kinds behind"
    )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's background job; tests of Ctrl-C, and what they start, would wait for ever.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A deadline for each example would measure the machine; the test as a whole has a timeout.
    hypothesis.settings.register_profile("ipyfleet", deadline=None)
    hypothesis.settings.load_profile("ipyfleet")
    surroundings = Surroundings()
    surroundings.enter()
    config.add_cleanup(surroundings.leave)
    if not config.getoption("no_leak_check"):
        folders = (surroundings.runtime, surroundings.shm)
        detector = LeakDetector(TOKEN_NAME, surroundings.token, folders)
        config.pluginmanager.register(
            LeakCheck(detector, config.getoption("leak_grace")), _PLUGIN_NAME
        )


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Called by pytest at the end: list what was skipped, by name and with the reason."""
    reports = terminalreporter.stats.get("skipped", [])
    if not reports:
        return
    terminalreporter.section("skipped, and why")
    for report in reports:
        terminalreporter.line(f"{report.nodeid}: {_skip_reason(report)}")


def _skip_reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return cast("str", report.longrepr[2]).removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", "") or report.longrepr)


class LeakCheck:
    """The hooks that look before and after each test and each fixture of a wider scope."""

    def __init__(self, detector: LeakDetector, grace_s: float) -> None:
        self._detector = detector
        self._grace_s = grace_s
        self._before: dict[Resource, str] = {}
        self._owned: dict[pytest.FixtureDef[Any], set[Resource]] = {}
        self._left_by_fixtures: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Called by pytest before the fixtures of a test are made."""
        self._before = self._detector.list_resources()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Called by pytest around the making of a fixture."""
        if fixturedef.scope == "function":
            return (yield)
        before = self._detector.list_resources()
        try:
            return (yield)
        finally:
            made = self._detector.find_leaks(before, set())
            self._owned[fixturedef] = set(made)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Called by pytest when a fixture is torn down; for some fixtures more than once."""
        made = self._owned.pop(fixturedef, None)
        if not made:
            return
        clusters = {cluster_of(resource) for resource in made} - {""}
        there_before = {
            resource
            for resource in self._detector.list_resources()
            if resource not in made and cluster_of(resource) not in clusters
        }
        leaks = self._detector.wait_leaks(there_before, self._all_owned(), self._grace_s)
        leaks = {
            resource: text
            for resource, text in leaks.items()
            if resource in made or cluster_of(resource) in clusters
        }
        if leaks:
            self._detector.remove(leaks)
            name = f"the {fixturedef.scope}'s fixture {fixturedef.argname!r}"
            self._left_by_fixtures.append(_tell(name, leaks))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Called by pytest around the teardown of a test and of its fixtures."""
        try:
            result = yield
        except BaseException as error:
            for text in self._find_left(item):
                error.add_note(text)
            raise
        left = self._find_left(item)
        if left:
            pytest.fail("\n".join(left), pytrace=False)
        return result

    def _find_left(self, item: pytest.Item) -> list[str]:
        excused = {kind for mark in item.iter_markers("may_leak") for kind in mark.args}
        leaks = self._detector.wait_leaks(
            _With(self._before, excused), self._all_owned(), self._grace_s
        )
        self._detector.remove(leaks)
        left, self._left_by_fixtures = self._left_by_fixtures, []
        if leaks:
            left.append(_tell(item.nodeid, leaks))
        return left

    def _all_owned(self) -> set[Resource]:
        return {resource for made in self._owned.values() for resource in made}


class _With:
    """A container of resources that also holds every resource of some kinds."""

    def __init__(self, resources: dict[Resource, str], kinds: set[str]) -> None:
        self._resources = resources
        self._kinds = kinds

    def __contains__(self, resource: object) -> bool:
        return resource in self._resources or (
            isinstance(resource, Resource) and resource.kind in self._kinds
        )

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources)


def _tell(who: str, leaks: dict[Resource, str]) -> str:
    return "\n".join([f"{who} left behind:", *(f"  {text}" for text in leaks.values())])
