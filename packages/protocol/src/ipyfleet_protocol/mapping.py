"""Files as memory: those of a blob as one buffer, and several blobs as one.

What lives here: `map_files` and `concatenate`. What must not: names, rights, who may map what
(`blobs.py`).

Theory of operation. A range of addresses is reserved, and freed in the end, by the `mmap` module.
Over it go the files, one behind the other, which takes the C library's ``mmap``: the module does
not let one choose the address. Everything is private: what is written here is seen here only, and
what is not is in pages that all who map the file share.

A mapping keeps descriptors of its files, as long as there are not too many. With them buffers that
are to be one can be mapped once more, at addresses that follow each other: joining large arrays
moves nothing. That takes files that begin where a page does; what does not is copied, and from the
file rather than from its mapping, which would have to be filled with pages first.

A file that was mapped is neither changed nor made shorter; that is for its writer to see to.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .copying import cut, read_file, run_together, threads_for

PAGE = mmap.PAGESIZE

MAPPINGS_MAX = 1 << 13
"""Of some files each; a process may have 65,530, and others need some, too."""

_MAP_FIXED = 0x10

_close = os.close


class File(NamedTuple):
    """An open file and how much of it is meant, from its beginning."""

    fd: int
    size: int


class _Mapping(mmap.mmap):
    """A range of addresses, and the files that are there, in their order."""

    files: Sequence[File] = ()

    def __del__(self) -> None:
        for file in self.files:
            _open_fds.discard(file.fd)
            _close(file.fd)


_open_fds: set[int] = set()

# By their first address; only those that are made of files and nothing else.
_mappings: WeakValueDictionary[int, _Mapping] = WeakValueDictionary()


def map_files(files: Sequence[File]) -> memoryview:
    """Return the content of files, one after the other: writable, private, not copied.

    All but the last must be multiples of `PAGE`. The pages live as long as the view, or anything
    made of it; the files can be closed. A process that has very many mappings gets a copy instead,
    and so does one whose system cannot map like this.

    Raises:
        EOFError: a file is shorter than it is said to be.
        OSError: a file cannot be read.
    """
    size = sum(file.size for file in files)
    if len(_mappings) >= MAPPINGS_MAX:
        return _read(files, size)
    try:
        mapping = _reserve(size)
        start = _address(mapping)
        _put_files(start, files)
    except (OSError, ImportError):
        # No room for one more mapping, or a system that has no such thing: reading needs neither.
        return _read(files, size)
    _keep(mapping, files)
    _mappings[start] = mapping
    return memoryview(mapping)


def concatenate(parts: Sequence[memoryview]) -> memoryview | None:
    """Join buffers to one, writable and private, by mapping where that can be.

    Where a part is the whole of what `map_files` returned, what comes of it is the files' content,
    even if somebody has written into that mapping since.

    Args:
        parts: contiguous and of bytes.

    Returns:
        None if none of them is a mapping: there is nothing to be gained then.
    """
    parts = [part for part in parts if part.nbytes]
    if not any(_source_of(part) for part in parts):
        return None
    try:
        return _concatenate(parts, by_mapping=True)
    except OSError:
        # One mapping too many. What was begun is not to be relied on.
        return _concatenate(parts, by_mapping=False)


def _concatenate(parts: Sequence[memoryview], by_mapping: bool) -> memoryview:
    joined = _reserve(sum(part.nbytes for part in parts))
    with suppress(OSError, AttributeError):  # a system without huge pages
        joined.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(joined)
    start = _address(joined)
    copies: list[Iterator[object]] = []
    position = 0
    for part in parts:
        target = whole[position : position + part.nbytes]
        source = _source_of(part)
        if source is None:
            copies += _copy_memory(target, part)
        elif position % PAGE or not by_mapping:
            copies += _copy_files(target, source.files)
        else:
            _put_files(start + position, source.files)
        position += part.nbytes
    # After all files are in their places: a page that ends one and begins the next is a copy of its
    # own, and a mapping over it would take that away.
    if copies:
        count = min(len(copies), threads_for(position))
        run_together([itertools.chain.from_iterable(copies[k::count]) for k in range(count)])
    return whole


def _reserve(size: int) -> _Mapping:
    return _Mapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _put_files(address: int, files: Sequence[File]) -> None:
    """Map files one behind the other over a range that is reserved."""
    place = _libc_mmap()
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    for file in files:
        found = place(address, file.size, protection, mmap.MAP_PRIVATE | _MAP_FIXED, file.fd, 0)
        if found != address:
            raise OSError(f"a file cannot be mapped at {address:#x}")
        address += file.size


@cache
def _libc_mmap() -> Callable[[int, int, int, int, int, int], int | None]:
    import ctypes

    if sys.platform != "linux":
        raise OSError("mapping at an address is done as on Linux, and only there")
    place = ctypes.CDLL(None).mmap
    place.restype = ctypes.c_void_p
    place.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    function: Callable[[int, int, int, int, int, int], int | None] = place
    return function


def _keep(mapping: _Mapping, files: Sequence[File]) -> None:
    """Give a mapping descriptors of its own for all its files, or for none if there is no room."""
    if len(_open_fds) + len(files) > _descriptors_max():
        return
    kept: list[File] = []
    try:
        for file in files:
            kept.append(File(os.dup(file.fd), file.size))
    except OSError:
        for file in kept:
            os.close(file.fd)
    else:
        _open_fds.update(file.fd for file in kept)
        mapping.files = kept


def _address(buffer: Any) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _source_of(part: memoryview) -> _Mapping | None:
    """Return the mapping that a part is the whole of, if the files are at hand."""
    if part.readonly or not _mappings:
        return None
    source = _mappings.get(_address(part))
    if source is None or not source.files or len(source) != part.nbytes:
        return None
    return source


def _copy_memory(target: memoryview, source: memoryview) -> Iterator[Iterator[object]]:
    """Yield jobs that copy a piece each."""
    for start, end in cut(source.nbytes, threads_for(source.nbytes), PAGE):
        yield _move(target[start:end], source[start:end])


def _move(target: memoryview, source: memoryview) -> Iterator[None]:
    import ctypes

    if source.readonly:
        target[:] = source
    else:
        # Other than an assignment it lets go of the interpreter's lock.
        ctypes.memmove(_address(target), _address(source), source.nbytes)
    yield


def _copy_files(target: memoryview, files: Sequence[File]) -> Iterator[Iterator[object]]:
    """Yield jobs that copy a piece each."""
    position = 0
    for file in files:
        for start, end in cut(file.size, threads_for(file.size), PAGE):
            yield read_file(file.fd, target[position + start : position + end], start)
        position += file.size


def _read(files: Sequence[File], size: int) -> memoryview:
    view = memoryview(bytearray(size))
    for job in _copy_files(view, files):
        for _ in job:
            continue
    return view


def _descriptors_max() -> int:
    """Return how many descriptors mappings may hold: a quarter of what the process may open."""
    if sys.platform == "win32":
        return 0
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 14 if limit == resource.RLIM_INFINITY else min(1 << 14, limit // 4)
