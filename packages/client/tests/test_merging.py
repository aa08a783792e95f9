import pytest

from ipyfleet_client.merging import ErrorReport, describe_engines, merge_texts
from ipyfleet_protocol.errors import RemoteError


@pytest.mark.parametrize(
    ("engines", "text"),
    [([3], "3"), ([0, 1], "0,1"), (range(16), "0-15"), ([5, 0, 1, 2, 7, 8], "0-2,5,7,8")],
)
def test_engines_are_written_as_ranges(engines, text):
    """Three and more in a row become a range."""
    assert describe_engines(engines) == text


def test_texts_of_few_engines_keep_their_lines():
    """With four engines each has a line of its own, also when they say the same."""
    assert merge_texts([(e, "hi") for e in range(4)]) == [(str(e), "hi") for e in range(4)]


def test_texts_of_many_engines_are_merged():
    """More than four that say the same have one line, at the place of the first of them."""
    texts = [(e, "odd" if e == 2 else "hi") for e in range(16)]
    assert merge_texts(texts) == [("0,1,3-15", "hi"), ("2", "odd")]
    assert merge_texts([(17, "first"), *texts]) == [("17", "first"), *merge_texts(texts)]


def _errors(engines, name, trace):
    return [
        RemoteError(
            name, "v", trace and [f"{trace} at 0x7f{e:02x}"], {"engine_id": e, "method": "execute"}
        )
        for e in engines
    ]


def test_same_errors_are_merged_and_many_shortened():
    """Each traceback once, four of them in full, then lines; repeated ones refer to the first."""
    report = ErrorReport(limit=4)
    assert report.render(_errors(range(8), "E", "lines")) == ["[0-7:execute]\nlines at 0x7f00"]
    others = [_errors([e], f"F{e}", "lines")[0] for e in range(8, 12)]
    texts = report.render(others)
    assert texts[:3] == [f"[{e}:execute]\nlines at 0x7f{e:02x}" for e in range(8, 11)]
    assert texts[3] == "[11:execute] F11: v"
    assert report.render(_errors([12, 13], "E", "lines")) == [
        "[12-13:execute] E: v (traceback as of [0-7:execute])"
    ]
    assert report.render(_errors([14], "G", "")) == ["[14:execute] G: v"]


def test_notes_of_errors_are_shown():
    """What an error advises (PEP 678) stands below its traceback."""
    error = _errors([3], "NameError", "lines")[0]
    error.add_note("do this")
    assert ErrorReport(limit=4).render([error]) == ["[3:execute]\nlines at 0x7f03\ndo this"]
