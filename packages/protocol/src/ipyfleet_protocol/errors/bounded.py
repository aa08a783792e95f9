"""Text that fits: any object's text, of bounded size and always encodable.

What lives here: the three functions that make an error's name, text and traceback safe to put into
a message, whatever the exception does. What must not: knowledge of messages or errors.
"""

from __future__ import annotations

from collections.abc import Iterable

TEXT_MAX_BYTES = 64 * 1024
"""Bytes of UTF-8 that the text of an error, and its traceback, may have."""


def safe_text(value: object) -> str:
    """Return ``str(value)``, or a placeholder in angle brackets if that raises."""
    try:
        return str(value)
    except (Exception, SystemExit, GeneratorExit) as failure:  # noqa: BLE001 - see below
        # User code runs here: a broken __str__ must not hide the error that it belongs to.
        return f"<{type(value).__name__}: its text cannot be shown, str() raised {_name(failure)}>"


def shorten(text: str, max_bytes: int = TEXT_MAX_BYTES) -> str:
    """Return the text, without its middle if it is too long, encodable as UTF-8 in any case.

    Three quarters of what is kept come from the start. Lone surrogates become backslash escapes.
    """
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    tail_bytes = max_bytes // 4
    head = data[: max_bytes - tail_bytes].decode("utf-8", "ignore")
    tail = data[len(data) - tail_bytes :].decode("utf-8", "ignore")
    return f"{head} …[shortened: {len(data) - max_bytes} bytes left out]… {tail}"


def shorten_lines(lines: Iterable[str], max_bytes: int = TEXT_MAX_BYTES) -> list[str]:
    """Return the lines, without some of the middle if they are too long together.

    Three quarters of what is kept come from the end: that is where a traceback says what happened.
    A single line gets at most a quarter of `max_bytes`. Each line counts one byte more than it has.
    """
    kept = [shorten(safe_text(line), max_bytes // 4) for line in lines]
    sizes = [len(line.encode()) + 1 for line in kept]
    if sum(sizes) <= max_bytes:
        return kept
    first = _fitting(sizes, max_bytes // 4)
    last = _fitting(sizes[: first - 1 if first else None : -1], max_bytes - max_bytes // 4)
    left_out = len(kept) - first - last
    if not left_out:
        return kept
    note = f"…[shortened: {left_out} lines of the traceback left out]…"
    return [*kept[:first], note, *kept[len(kept) - last :]]


def _fitting(sizes: Iterable[int], max_bytes: int) -> int:
    """Return how many of the first sizes fit into max_bytes together."""
    count = total = 0
    for size in sizes:
        total += size
        if total > max_bytes:
            break
        count += 1
    return count


def _name(value: object) -> str:
    return type(value).__name__
