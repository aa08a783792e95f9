"""Cutting a sequence into parts for engines, and joining the parts again.

What lives here: `partition` and `join` for the two distributions that users know: "b", contiguous
blocks, and "r", round robin. Works for whatever can be sliced; numpy is used only where data are
numpy's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal

from ipyfleet_protocol.mapping import concatenate

Dist = Literal["b", "r"]

_SLICED = frozenset((list, tuple, range))
"""A slice of these has the items that iterating gives, and is cheap."""


def check_dist(dist: str) -> Dist:
    """Return the distribution.

    Raises:
        ValueError: it is neither "b" nor "r".
    """
    if dist == "b":
        return "b"
    if dist == "r":
        return "r"
    raise ValueError(f"dist must be 'b' (blocks) or 'r' (round robin), not {dist!r}")


def as_sequence(data: Any) -> Any:
    """Return something that has a length and can be sliced; lists are made of other iterables.

    Raises:
        TypeError: it cannot even be iterated.
    """
    if isinstance(data, range):
        return list(data)
    if hasattr(data, "iloc"):
        return data
    if isinstance(data, dict | set | frozenset) or not hasattr(data, "__getitem__"):
        try:
            return list(data)
        except TypeError:
            raise TypeError(
                f"a sequence is needed, such as a list, range or array, not {type(data).__name__}"
            ) from None
    if not hasattr(data, "__len__"):
        return list(data)
    try:
        len(data)
    except TypeError:
        # A numpy array of no dimension.
        raise TypeError(f"a sequence is needed, not a scalar {type(data).__name__}") from None
    return data


def cut_in_chunks(
    sequences: Sequence[Iterable[Any]], size: int
) -> Iterator[tuple[Sequence[Any], ...]]:
    """Yield the next `size` items of each sequence, until the shortest ends; fewer at the end."""
    if all(type(sequence) in _SLICED for sequence in sequences):
        # A hundredth of the time that walking over the items takes.
        whole: Any = sequences
        count = min(map(len, whole))
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield tuple(sequence[start:stop] for sequence in whole)
    elif len(sequences) == 1:
        iterator = iter(sequences[0])
        while chunk := list(islice(iterator, size)):
            yield (chunk,)
    else:
        items = zip(*sequences)  # noqa: B905 - the shortest ends it
        while rows := list(islice(items, size)):
            yield tuple(map(list, zip(*rows, strict=True)))


def sizes(count: int, parts: int) -> list[int]:
    """Return how many of `count` items each of the parts gets: as even as can be, larger first."""
    base, extra = divmod(count, parts)
    return [base + (k < extra) for k in range(parts)]


def partition(data: Any, parts: int, dist: Dist = "b") -> list[Any]:
    """Cut a sequence into parts; slices of it, so arrays are not copied here."""
    sliced = data.iloc if hasattr(data, "iloc") else data
    if dist == "r":
        return [_slice(sliced, slice(k, None, parts)) for k in range(parts)]
    out = []
    start = 0
    for size in sizes(len(data), parts):
        out.append(_slice(sliced, slice(start, start + size)))
        start += size
    return out


def _slice(data: Any, part: slice) -> Any:
    try:
        return data[part]
    except TypeError:
        # Such as a deque: indexed, but not sliced.
        return [data[k] for k in range(*part.indices(len(data)))]


def join(parts: Sequence[Any], dist: Dist = "b") -> Any:
    """Join the parts that `partition` made; what is no sequence is listed."""
    if not parts:
        return []
    first = parts[0]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(first, numpy.ndarray) and first.ndim:
        return _join_arrays(numpy, parts, dist)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(first, pandas.DataFrame | pandas.Series):
        return pandas.concat(parts)
    if isinstance(first, str | bytes | bytearray):
        if not all(isinstance(part, type(first)) for part in parts):
            return list(parts)
        return first[:0].join(_interleaved_text(parts) if dist == "r" else parts)
    if not all(isinstance(part, list | tuple | range) for part in parts):
        return list(parts)
    joined = list(chain.from_iterable(parts)) if dist == "b" else _interleave(parts)
    return tuple(joined) if isinstance(first, tuple) else joined


def _interleave(parts: Sequence[Any]) -> list[Any]:
    rows = max(map(len, parts))
    return [part[k] for k in range(rows) for part in parts if k < len(part)]


def _interleaved_text(parts: Sequence[Any]) -> list[Any]:
    rows = max(map(len, parts))
    return [part[k : k + 1] for k in range(rows) for part in parts]


def _join_arrays(numpy: Any, parts: Sequence[Any], dist: Dist) -> Any:
    if dist == "b":
        joined = _join_in_place(numpy, parts)
        return numpy.concatenate(parts) if joined is None else joined
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    out = numpy.empty(shape, dtype=numpy.result_type(*parts))
    for k, part in enumerate(parts):
        out[k :: len(parts)] = part
    return out


def _join_in_place(numpy: Any, parts: Sequence[Any]) -> Any:
    """Join large arrays from shared memory without copying what need not be; None for others.

    Only those of which the bytes, one after the other, are what ``numpy.concatenate`` makes.
    """
    dtype, shape = parts[0].dtype, parts[0].shape[1:]
    if dtype.kind not in "biufcmMSU" or not dtype.isnative:
        return None
    for part in parts:
        if type(part) is not numpy.ndarray or part.dtype != dtype or part.shape[1:] != shape:
            return None
        if not part.flags.c_contiguous:
            return None
    joined = concatenate([memoryview(part.reshape(-1).view("u1")) for part in parts if part.size])
    if joined is None:
        return None
    return numpy.ndarray((sum(map(len, parts)), *shape), dtype, joined)
