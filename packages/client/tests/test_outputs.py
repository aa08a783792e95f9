import re

import msgspec
import pytest

from ipyfleet_client.outputs import TaskOutput, collapse_returns
from ipyfleet_protocol.messages import OutputItem
from ipyfleet_protocol.serialize import pack


def item(index, kind="stdout", content=b"", **more):
    """An item of output of task 0."""
    return OutputItem(0, index, kind, content, **more)


def test_items_are_put_in_order():
    """Items that come out of order, or twice, are shown in order and once."""
    output = TaskOutput()
    for index in (2, 0, 0, 1, 2):
        output.add(item(index, content=str(index).encode()), ())
    assert output.text("stdout") == "012"
    assert output.received == 3


def test_items_wait_for_those_before():
    """What is missing holds back what comes after."""
    output = TaskOutput()
    output.add(item(1, content=b"b"), ())
    assert output.text("stdout") == ""
    output.add(item(0, content=b"a"), ())
    assert output.text("stdout") == "ab"


def test_attempts_follow_one_another():
    """Each attempt counts its items anew; what a new one prints comes after what others have."""
    output = TaskOutput()
    output.add(item(0, content=b"a0 "), (), 3)
    output.add(item(2, content=b"a2 "), (), 3)
    output.add(item(0, content=b"b0 ", attempt=1), (), 5)
    output.add(item(1, content=b"late"), (), 3)
    output.add(item(0, content=b"b0 ", attempt=1), (), 5)
    assert (output.text("stdout"), output.received) == ("a0 a2 b0 ", 1)
    # Turned down by one engine, run by another: the same attempt.
    output.add(item(0, content=b"c0", attempt=1), (), 4)
    assert (output.text("stdout"), output.received) == ("a0 a2 b0 c0", 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\n", "a\nb\n"),
        ("10%\r20%\r30%\n", "30%\n"),
        ("x\r\ny\r\n", "x\ny\n"),
        ("start\n1\r2", "start\n2"),
        ("", ""),
    ],
)
def test_carriage_returns(text, shown):
    """A carriage return replaces its line, as a terminal does."""
    assert collapse_returns(text) == shown


def test_displays_are_updated_in_place():
    """`update_display_data` replaces the display with the same id; `clear_output` removes all."""
    output = TaskOutput()

    def content(text, display_id=None):
        return msgspec.msgpack.encode(
            {"data": {"text/plain": text}, "transient": {"display_id": display_id}}
        )

    output.add(item(0, "display_data", content("one", "a")), ())
    output.add(item(1, "display_data", content("two")), ())
    output.add(item(2, "update_display_data", content("three", "a")), ())
    assert [d["data"]["text/plain"] for d in output.displays()] == ["three", "two"]
    output.add(item(3, "clear_output", msgspec.msgpack.encode({"wait": False})), ())
    assert output.displays() == []


@pytest.mark.parametrize(("wait", "text"), [(False, ""), (True, "old")])
def test_clear_that_waits(wait, text):
    """Text is gone when it was cleared; with wait only once something has come after it."""
    output = TaskOutput()
    output.add(item(0, content=b"old"), ())
    output.add(item(1, "clear_output", msgspec.msgpack.encode({"wait": wait})), ())
    assert output.visible_text("stdout") == text
    output.add(item(2, content=b"new"), ())
    assert output.visible_text("stdout") == "new"
    assert output.text("stdout") == "oldnew"


def test_dropped_output_is_told():
    """Output that was dropped on the way is mentioned where it is missing."""
    output = TaskOutput()
    output.add(item(0, content=b"a\n"), ())
    output.add(item(1, content=b"b\n", dropped_bytes=99), ())
    assert "99 bytes of output were dropped" in output.text("stdout")
    assert output.dropped_bytes == 99


@pytest.mark.parametrize("order", ["before", "after"])
def test_output_of_tasks(rc, controller, order):
    """What tasks print is in ``ar.stdout``, whether it comes before or after the results."""
    controller.output_order = order
    ar = rc[:].apply_async(print, "hello")
    assert ar.get(5) == [None, None]
    assert ar.wait_for_output(5)
    assert ar.stdout == ["hello\n", "hello\n"]
    assert ar.stderr == ["", ""]


@pytest.mark.parametrize("order", ["before", "after"])
def test_execute_reply(rc, controller, order):
    """The value of an execute has the text of its last expression and its number."""
    controller.output_order = order
    reply = rc[0].execute("6 * 7", silent=False).get(5)
    assert repr(reply) == "<ExecuteReply[7]: 42>"
    assert reply.execution_count == 7
    assert reply.data == {"text/plain": "42"}
    assert reply["status"] == reply.status == "ok"
    assert repr(rc[0].execute("pass").get(5)) == "<ExecuteReply[7]: >"
    with pytest.raises(AttributeError):
        _ = reply.nonsense


def test_display_outputs(rc, capsys):
    """Outputs are shown behind their prefixes, grouped by type or by engine."""
    rc[:].execute("print('hi'); 5", silent=False, block=True).display_outputs()
    shown = re.sub(r":\d+\]: ", ":n]: ", capsys.readouterr().out)
    assert shown == "[stdout:0] hi\n[stdout:1] hi\nOut[0:n]: 5\nOut[1:n]: 5\n"
    rc[:].execute("print('a\\nb')", block=True).display_outputs("engine")
    assert capsys.readouterr().out == "[stdout:0] a\nb\n[stdout:1] a\nb\n"
    rc[0].execute("print('alone')", block=True).display_outputs("order")
    assert capsys.readouterr().out == "alone\n"
    with pytest.raises(ValueError, match="groupby"):
        rc[0].execute("1").display_outputs("nonsense")


def test_stream_output(rc, controller, capsys):
    """Output is shown while the result is waited for, also what had arrived before."""
    ar = rc[:].execute("print('one'); print('two'); 9", silent=False)
    with ar.stream_output():
        ar.get(5)
    shown = capsys.readouterr().out
    assert "[stdout:0] one\ntwo\n" in shown
    assert "[stdout:1] one\ntwo\n" in shown
    assert "Out[0:" in shown
    again = rc[0].execute("print('later')", block=True)
    with again.stream_output():
        pass
    assert capsys.readouterr().out == "later\n"


@pytest.mark.filterwarnings("error")
def test_what_is_published_is_unpickled_for_who_asks():
    """What cannot be unpickled here holds back nothing after it, and is told to who asks."""
    output = TaskOutput()
    output.add(item(0, "data"), pack({"a": 1})[:1])
    output.add(item(1, "data"), [b"cno_such_module\nThing\n."])
    output.add(item(2, content=b"after"), ())
    output.add(item(3, "data"), pack({"b": 2})[:1])
    output.add(item(4, "data"), ())
    assert output.text("stdout") == "after"
    with pytest.warns(RuntimeWarning, match="No module named 'no_such_module'"):
        assert output.published() == {"a": 1, "b": 2}


def test_what_is_published_is_unpickled_once():
    """Who asks twice is given the same value, and one for itself to change."""
    output = TaskOutput()
    output.add(item(0, "data"), pack({"a": [1]})[:1])
    first = output.published()
    first["b"] = 2
    assert output.published() == {"a": [1]}
    assert output.published()["a"] is first["a"]
