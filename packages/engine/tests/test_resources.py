"""What engines say they have: texts, dictionaries, and what reaches the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from ipyfleet_engine.app import IPEngineApp
from ipyfleet_engine.resources import check_resources, format_resources, parse_resources


@pytest.mark.parametrize(
    ("text", "resources"),
    [
        ("gpu=1,mem=16", {"gpu": 1.0, "mem": 16.0}),
        ("gpu", {"gpu": 1.0}),
        (" gpu = 0.5 , big ", {"gpu": 0.5, "big": 1.0}),
        ("gpu=0,", {"gpu": 0.0}),
        ("", {}),
    ],
)
def test_texts(text: str, resources: dict[str, float]) -> None:
    """Names and amounts are separated by commas; a name alone has amount 1."""
    assert parse_resources(text) == resources


@pytest.mark.parametrize("text", ["gpu=", "gpu=one", "=1", "gpu=-1", "gpu=inf", "gpu=nan"])
def test_bad_texts(text: str) -> None:
    """What is no name with an amount from 0 on is refused."""
    with pytest.raises(ValueError, match=r"resource|amount"):
        parse_resources(text)


@pytest.mark.parametrize("resources", [{1: 1}, {"": 1}, {"gpu": "1"}, {"gpu": True}])
def test_bad_dictionaries(resources: dict[Any, Any]) -> None:
    """A dictionary has names and numbers."""
    with pytest.raises(ValueError, match=r"resource|amount"):
        check_resources(resources)


@given(
    st.dictionaries(st.text("abcäµ_-. ", min_size=1).map(str.strip).filter(bool), st.floats(0, 1e9))
)
def test_text_and_back(resources: dict[str, float]) -> None:
    """What one agent writes on a command line the engine reads the same."""
    assert parse_resources(format_resources(resources)) == resources


def test_options(tmp_path: Path) -> None:
    """The command line adds up what it says several times, and wins over the profile."""
    (tmp_path / "ipengine_config.py").write_text(
        "c.IPEngine.resources = {'gpu': 2}\nc.IPEngine.timeout = 7\n"
    )
    profile = f"--profile-dir={tmp_path}"
    app = IPEngineApp()
    app.initialize([profile])
    assert (app.resources, app.timeout) == ({"gpu": 2.0}, 7.0)
    app = IPEngineApp()
    app.initialize([profile, "--resources=gpu=1,mem=16", "--timeout=9"])
    assert (app.resources, app.timeout) == ({"gpu": 1.0, "mem": 16.0}, 9.0)
    (tmp_path / "ipengine_config.py").write_text("c.IPEngineApp.resources = 'gpu=3'\n")
    app = IPEngineApp()
    app.initialize([profile])
    assert app.resources == {"gpu": 3.0}
    with pytest.raises(TraitError, match="finite number from 0"):
        app.resources = {"gpu": -1}


@pytest.mark.parametrize("flags", [[], ["--no-fork"]])
def test_the_controller_is_told(controller: Any, flags: list[str]) -> None:
    """Each engine's Hello has the resources, whether it was forked or started by itself."""
    controller.start("-n", "2", "--resources", "gpu=1,mem=16", *flags)
    controller.until(lambda: len(controller.engines) == 2)
    for peer in controller.engines:
        assert controller.hellos[peer].resources == {"gpu": 1.0, "mem": 16.0}
