"""Files as memory: several as one buffer, and buffers that are joined by mapping them again."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipyfleet_protocol import mapping
from ipyfleet_protocol.mapping import PAGE, File, concatenate, map_files

np = pytest.importorskip("numpy")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="files are mapped like this on Linux only"
)

MapSizes = Callable[..., memoryview]


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[MapSizes]:
    """Returns what maps new files of some sizes, with content that is different everywhere."""
    count = 0

    def make(*sizes: int) -> memoryview:
        nonlocal count
        files = []
        for size in sizes:
            path = tmp_path / str(count)
            path.write_bytes(os.urandom(size))
            files.append(File(os.open(path, os.O_RDONLY), size))
            path.unlink()
            count += 1
        view = map_files(files)
        for file in files:
            os.close(file.fd)
        return view

    yield make
    gc.collect()
    assert not mapping._open_fds


def resident_bytes(buffer: memoryview) -> int:
    """Return how much of a buffer has been given pages in this process."""
    first = np.frombuffer(buffer, "u1").__array_interface__["data"][0]
    last = first + buffer.nbytes
    total, is_in = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_in = first < int(found[2], 16) and int(found[1], 16) < last
        elif is_in and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def joined(*parts: memoryview) -> memoryview:
    """Return the parts joined; there must be something that was mapped among them."""
    whole = concatenate(parts)
    assert whole is not None
    return whole


def test_files_are_one_buffer(tmp_path: Path) -> None:
    """Files are there one behind the other, and no page of them before somebody looks."""
    pieces = [os.urandom(2 * PAGE), os.urandom(5 * PAGE), os.urandom(17)]
    paths = [tmp_path / str(k) for k in range(3)]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    handles = [path.open("rb") for path in paths]
    view = map_files([File(h.fileno(), len(p)) for h, p in zip(handles, pieces, strict=True)])
    for handle in handles:
        handle.close()
    assert resident_bytes(view) == 0
    assert bytes(view) == b"".join(pieces)
    view[2 * PAGE : 2 * PAGE + 4] = b"mine"
    assert [path.read_bytes() for path in paths] == pieces


def test_without_room_for_mappings_files_are_read(
    mapped: MapSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has too many mappings already gets a copy, and nothing else is different."""

    def refuse(address: int, files: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(mapping, "_put_files", refuse)
    refused = mapped(2 * PAGE, PAGE + 1)
    monkeypatch.undo()
    monkeypatch.setattr(mapping, "MAPPINGS_MAX", 1)
    views = [mapped(PAGE), mapped(2 * PAGE, PAGE + 1), refused]
    assert [resident_bytes(view) > 0 for view in views] == [False, True, True]
    for view in views[1:]:
        assert (view.nbytes, view.readonly) == (3 * PAGE + 1, False)
        assert len(set(view)) > 100
    assert len(mapping._mappings) == 1


def test_without_room_for_descriptors_nothing_is_joined_by_mapping(
    mapped: MapSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are mapped also when their descriptors cannot be kept; whoever joins them copies."""
    monkeypatch.setattr(mapping, "_descriptors_max", lambda: 3)
    first, second = mapped(PAGE, PAGE), mapped(2 * PAGE, PAGE)
    assert (resident_bytes(second), len(mapping._open_fds)) == (0, 2)
    assert concatenate([second]) is None
    assert bytes(joined(first, second)) == bytes(first) + bytes(second)


def test_whole_pages_are_joined_without_a_copy(mapped: MapSizes) -> None:
    """Where parts end with a page the joined buffer has not a page of its own."""
    parts = [mapped(64 * PAGE, 64 * PAGE), mapped(32 * PAGE), mapped(100)]
    whole = joined(*parts)
    assert resident_bytes(whole) == 0
    assert bytes(whole) == b"".join(parts)


@pytest.mark.parametrize(
    "sizes",
    [
        (PAGE, 1, PAGE),
        (3 * PAGE + 8, 2 * PAGE),
        (1, 1, 1),
        (5, PAGE - 5, 7 * PAGE),
        (PAGE, 0, PAGE),
    ],
    ids=str,
)
def test_any_sizes_are_joined(mapped: MapSizes, sizes: tuple[int, ...]) -> None:
    """Parts of any sizes, mapped or not, are joined byte by byte."""
    views = [mapped(size) if size else memoryview(b"") for size in sizes]
    expected = b"".join(views)
    assert bytes(joined(*views)) == expected
    for k, view in enumerate(views):
        mixed = [*views[:k], memoryview(bytearray(view)), *views[k + 1 :]]
        assert bytes(joined(*mixed)) == expected
    assert bytes(joined(memoryview(b"inline"), *views)) == b"inline" + expected


def test_large_parts_are_copied_in_pieces(
    mapped: MapSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has to be copied is cut among threads; they put every byte in its place."""
    monkeypatch.setattr(mapping, "threads_for", lambda size: 3)
    views = [mapped(10 * PAGE + 1), mapped(20 * PAGE, 9 * PAGE), memoryview(os.urandom(50_000))]
    assert bytes(joined(*views)) == b"".join(views)


def test_joining_when_no_more_can_be_mapped(
    mapped: MapSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is reached on the way makes the joined buffer a copy."""
    views = [mapped(2 * PAGE), mapped(3 * PAGE)]
    put, calls = mapping._put_files, 0

    def put_once(address: int, files: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("one too many")
        put(address, files)

    monkeypatch.setattr(mapping, "_put_files", put_once)
    assert bytes(joined(*views)) == b"".join(views)
    assert calls == 2


def test_joined_and_parts_are_private(mapped: MapSizes) -> None:
    """What is written into a part is not in the joined buffer, and the other way round."""
    views = [mapped(2 * PAGE), mapped(PAGE + 4)]
    before = b"".join(views)
    whole = joined(*views)
    whole[:4] = whole[-4:] = b"mine"
    assert b"".join(views) == before
    views[1][:4] = b"part"
    assert bytes(whole[2 * PAGE : 2 * PAGE + 4]) == before[2 * PAGE : 2 * PAGE + 4]


def test_joined_outlives_its_parts(mapped: MapSizes) -> None:
    """The pages are there for as long as somebody has the joined buffer, and no longer."""
    views = [mapped(2 * PAGE), mapped(2 * PAGE)]
    expected = b"".join(views)
    whole = joined(*views)
    del views
    gc.collect()
    assert not mapping._open_fds and not mapping._mappings
    assert bytes(whole) == expected


def test_a_piece_of_a_mapping_is_memory_like_any_other(mapped: MapSizes) -> None:
    """Only the whole of a mapping is what its files are."""
    view = mapped(4 * PAGE)
    assert concatenate([view[PAGE:], view[:PAGE]]) is None
    assert concatenate([memoryview(b"one"), memoryview(b"two")]) is None
    assert concatenate([view[: 2 * PAGE]]) is None
    assert bytes(joined(view[:PAGE], view)) == bytes(view[:PAGE]) + bytes(view)
