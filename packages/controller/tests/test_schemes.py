"""The schemes, one by one and all alike."""

from __future__ import annotations

import tomllib
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ipyfleet_controller.scheduler.engine_queue import EngineQueue
from ipyfleet_controller.scheduler.group import TaskGroup
from ipyfleet_controller.scheduler.runs import ANYWHERE, Run
from ipyfleet_controller.scheduler.schemes import SCHEMES, load_scheme
from ipyfleet_controller.scheme_names import GROUP, find_scheme
from ipyfleet_protocol.ids import EngineId, PeerId

every_scheme = pytest.mark.parametrize("name", SCHEMES)


@pytest.fixture
def engines(make_bench: Any, wire: Any) -> list[EngineQueue]:
    """Engines 0 … 5; number n has n tasks of a second each and was used n seconds before 10."""
    group, frames = wire.make_group(0, 100)
    tasks = TaskGroup(PeerId(b"c" * 16), group, frames.payload)
    engines = []
    for number in range(6):
        engine = EngineQueue(EngineId(number), PeerId(b"%016d" % number), 0.0)
        for index in range(number):
            engine.place(Run(tasks, index, index + 1), 1.0, ANYWHERE, 10.0 - number)
        engine.used_at = 10.0 - number
        engines.append(engine)
    return engines


@every_scheme
def test_a_scheme_gives_every_engine_a_place(name: str, engines: list[EngineQueue]) -> None:
    """Whatever its order, each engine is in it once; none and one are no special cases."""
    scheme = load_scheme(name, Random(3).randrange)
    for some in (engines, engines[2:3], []):
        assert sorted(e.engine_id for e in scheme.rank(set(some), 10.0)) == [
            e.engine_id for e in some
        ]


@every_scheme
def test_a_scheme_can_be_repeated(name: str, engines: list[EngineQueue]) -> None:
    """With equal lots the order is the same, whatever order the engines came in."""
    orders = []
    for given in (engines, engines[::-1]):
        scheme = load_scheme(name, Random(7).randrange)
        orders.append([[e.engine_id for e in scheme.rank(given, 10.0)] for _ in range(5)])
    assert orders[0] == orders[1]


@every_scheme
def test_with_any_scheme_all_work_is_done_by_all_engines(name: str, make_bench: Any) -> None:
    """No scheme loses a task or leaves an engine without work; `Bench` checks the rest."""
    bench = make_bench(scheme=load_scheme(name, Random(1).randrange))
    bench.join(0, 1, 2, 3)
    bench.submit(0, 2000, retries=1)
    bench.submit(0, 20, bench.OTHER, targets=[1, 2])
    first = True
    while len(bench.ended) < 2020:
        for engine in range(4):
            bench.answer(engine, 30, status=1 if first else 0, task_s=1e-4)
            first = False
        bench.now += 0.004
        bench.feed(bench.tick)
        for engine in list(bench.recalls):
            bench.give_back(engine)
    assert min(sum(bench.sizes[engine]) for engine in range(4)) > 200


def _first_counts(name: str, engines: list[EngineQueue], n: int = 3000) -> Counter[int]:
    scheme = load_scheme(name, Random(0).randrange)
    return Counter(scheme.rank(engines, 10.0)[0].engine_id for _ in range(n))


def test_leastload_takes_the_engine_with_the_least_to_do(engines: list[EngineQueue]) -> None:
    """Ranked by load; among equals the one that has waited for longest."""
    scheme = load_scheme("leastload")
    assert [e.engine_id for e in scheme.rank(engines, 10.0)] == [0, 1, 2, 3, 4, 5]
    idle = [EngineQueue(EngineId(n), PeerId(b"%016d" % n), 0.0) for n in range(3)]
    for engine, used_at in zip(idle, (3.0, 1.0, 2.0), strict=True):
        engine.used_at = used_at
    assert [e.engine_id for e in scheme.rank(idle, 10.0)] == [1, 2, 0]


def test_lru_takes_the_engine_that_was_used_longest_ago(engines: list[EngineQueue]) -> None:
    """Ranked by the time of the last task, not by load."""
    assert [e.engine_id for e in load_scheme("lru").rank(engines, 10.0)] == [5, 4, 3, 2, 1, 0]


def test_plainrandom_takes_any(engines: list[EngineQueue]) -> None:
    """Each engine is first about as often as any other."""
    counts = _first_counts("plainrandom", engines)
    assert all(400 < counts[number] < 600 for number in range(6))


def test_twobin_takes_the_longer_unused_of_two(engines: list[EngineQueue]) -> None:
    """Of six the least recently used is first in 11 of 36 lots, the most recently used in one."""
    counts = _first_counts("twobin", engines, 3600)
    assert [counts[number] for number in range(6)] == sorted(counts.values())
    assert 1000 < counts[5] < 1200
    assert 50 < counts[0] < 150


def test_weighted_favours_those_with_little_to_do(engines: list[EngineQueue]) -> None:
    """An idle engine is nearly always first beside busy ones, which come by their loads."""
    counts = _first_counts("weighted", engines)
    assert counts[0] > 2950
    counts = _first_counts("weighted", engines[1:])
    assert [counts[number] for number in range(1, 6)] == sorted(counts.values(), reverse=True)
    assert counts[5] > 0


def test_pure_takes_engines_in_turn(engines: list[EngineQueue]) -> None:
    """Each is first in turn, by number; one that is missing is passed over."""
    scheme = load_scheme("pure")
    firsts = [scheme.rank(engines, 10.0)[0].engine_id for _ in range(8)]
    assert firsts == [0, 1, 2, 3, 4, 5, 0, 1]
    assert [e.engine_id for e in scheme.rank(engines[3:], 10.0)] == [3, 4, 5]


@every_scheme
def test_our_schemes_are_entry_points(name: str) -> None:
    """Each scheme is declared like one of another package, and is what its name says."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["entry-points"][GROUP]
    assert declared.keys() == set(SCHEMES)
    module, _, factory = declared[name].partition(":")
    made = getattr(import_module(module), factory)(Random(0).randrange)
    assert type(made) is type(find_scheme(name))


def test_a_scheme_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are not ours are entry points; what is wrong with one is told in a sentence."""
    from importlib import metadata

    entries = metadata.EntryPoints(
        metadata.EntryPoint(name, f"ipyfleet_controller.scheduler.schemes.{value}", GROUP)
        for name, value in (("theirs", "lru:make"), ("broken", "lru:nothing"))
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries.select(group=group))
    assert type(find_scheme("theirs")) is type(find_scheme("lru"))
    with pytest.raises(ValueError, match=r"'broken' .*cannot be used"):
        find_scheme("broken")
    with pytest.raises(ValueError, match=r"no scheduling scheme 'fastest'.*pure, broken, theirs"):
        find_scheme("fastest")
    with pytest.raises(ValueError, match="no scheduling scheme 'fastest'"):
        load_scheme("fastest")
