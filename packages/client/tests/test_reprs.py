import pytest

from ipyfleet_client import Client
from ipyfleet_client.reprs import duration


def fail():
    """What a task does that fails."""
    raise ZeroDivisionError


def test_a_running_result_shows_its_progress(rc, controller):
    """Done and total, as text and as a bar."""
    controller.paused.set()
    ar = rc.load_balanced_view().map_async(abs, range(4))
    assert '<progress value="0" max="4">' in ar._repr_html_()
    assert "0 of 4 done" in ar._repr_html_()
    controller.paused.clear()
    ar.get(5)


def test_a_finished_result_shows_its_times(rc):
    """Wall and serial time, and what failed."""
    ar = rc[:].apply_async(abs, -1)
    ar.get(5)
    assert "wall time" in ar._repr_html_()
    assert "failed" not in ar._repr_html_()
    failed = rc[:].apply_async(fail)
    failed.wait(5)
    assert "finished with errors" in failed._repr_html_()
    assert "<td>failed</td><td>2</td>" in failed._repr_html_()


def test_names_are_escaped(rc):
    """A lambda's name is not taken for a tag."""
    ar = rc[0].apply_async(lambda: 1)
    ar.get(5)
    assert "&lt;lambda&gt;" in ar._repr_html_()


def test_a_gathered_sequence_needs_no_waiting_for_its_repr(rc, controller):
    """Showing a pending result does not wait for it."""
    controller.paused.set()
    ar = rc[:].gather("x", block=False)
    assert "<progress" in ar._repr_html_()
    controller.paused.clear()
    ar.wait(5)


def test_a_client_shows_its_engines(rc, controller):
    """Each engine with host and load; a closed client says so."""
    html = rc._repr_html_()
    assert "2 engines" in html
    assert html.count("<tr>") == 3
    with Client(controller.info, timeout=5) as other:
        pass
    assert "closed" in other._repr_html_()


def test_a_client_shows_what_its_engines_have(rc, controller):
    """Resources, and which engines have them; nothing about them where there are none."""
    assert repr(rc) == "<Client: 2 engines>"
    assert "resources" not in rc._repr_html_()
    for _ in range(12):
        controller.resources[len(controller.peers)] = {"gpu": 1.0, "<mem>": 0.5}
        controller.add_engine()
    rc.wait_for_engines(14, timeout=5)
    few = "[2, 3, 4, 5, 6, 7, 8, 9, … 12 in all]"
    assert repr(rc) == f"<Client: 14 engines; <mem>=0.5 on {few}, gpu=1 on {few}>"
    assert rc._repr_html_().count("<td>gpu=1, &lt;mem&gt;=0.5</td>") == 12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00123, "1.23 ms"), (1.5, "1.5 s"), (90, "1 min 30 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds, text):
    """Durations are written as people do."""
    assert duration(seconds) == text
