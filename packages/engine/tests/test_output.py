"""Output belongs to its task, in order, and is bounded."""

from __future__ import annotations

import threading

import msgspec

from ipyfleet_engine.output import OutputBatch, OutputCollector
from ipyfleet_protocol.messages import OutputItem

CLIENT = b"c" * 16


def items_of(batches: list[OutputBatch]) -> list[OutputItem]:
    """Return the items of all batches."""
    return [item for batch in batches for item in batch.items]


def test_text_of_a_stream_is_put_together_in_order() -> None:
    """Consecutive writes to one stream are one item; a change of stream begins another."""
    collector = OutputCollector()
    task = collector.begin(CLIENT, 5)
    for kind, text in (("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")):
        collector.write(kind, text)  # type: ignore[arg-type]
    items = items_of(collector.finish(task))
    assert [(i.seq, i.index, i.kind, i.content) for i in items] == [
        (5, 0, "stdout", b"ab"),
        (5, 1, "stderr", b"c"),
        (5, 2, "stdout", b"d"),
    ]
    assert task.n_items == 3


def test_indices_go_on_between_drain_and_finish() -> None:
    """What was drained live and what is left at the end are numbered without a gap."""
    collector = OutputCollector()
    task = collector.begin(CLIENT, 0)
    collector.write("stdout", "live")
    live = items_of(collector.drain(1 << 20))
    collector.publish("display_data", {"data": {"text/plain": "x"}}, [b"buffer"])
    [batch] = collector.finish(task)
    assert [i.index for i in live + batch.items] == [0, 1]
    assert batch.items[0].buffers == 1 and batch.frames == [b"buffer"]
    assert msgspec.msgpack.decode(batch.items[0].content) == {"data": {"text/plain": "x"}}


def test_output_belongs_to_the_task_that_runs() -> None:
    """Each task gets its own; what is written after the last one has ended is still its."""
    collector = OutputCollector()
    first = collector.begin(CLIENT, 0)
    collector.write("stdout", "first")
    assert [i.content for i in items_of(collector.finish(first))] == [b"first"]
    second = collector.begin(b"d" * 16, 9)
    collector.write("stdout", "second")
    collector.finish(second)
    collector.write("stdout", "late")
    [batch] = collector.drain(1 << 20)
    assert batch.client == b"d" * 16
    assert [(i.seq, i.index, i.content) for i in batch.items] == [(9, 1, b"late")]


def test_the_oldest_is_dropped_beyond_the_bound_and_counted() -> None:
    """Memory is bounded; the newest text is kept and says how much is missing before it."""
    collector = OutputCollector(max_bytes=300_000)
    task = collector.begin(CLIENT, 0)
    written = 0
    for i in range(1000):
        written += 1000
        collector.write("stdout", f"{i:999d}\n")
    assert collector.n_bytes <= 300_000
    items = items_of(collector.finish(task))
    kept = b"".join(i.content for i in items)
    assert kept.endswith(b"999\n")
    assert items[0].dropped_bytes + len(kept) == written
    assert [i.index for i in items] == list(range(len(items)))


def test_one_huge_text_is_cut() -> None:
    """A single write beyond the bound keeps its end."""
    collector = OutputCollector(max_bytes=10_000)
    task = collector.begin(CLIENT, 0)
    collector.write("stdout", "x" * 1_000_000 + "end")
    [item] = items_of(collector.finish(task))
    assert item.content.endswith(b"end") and len(item.content) == 5000
    assert item.dropped_bytes == 1_000_003 - 5000


def test_what_was_dropped_last_is_said_by_an_empty_item() -> None:
    """If nothing follows the dropped text, an item without text carries the count."""
    collector = OutputCollector(max_bytes=50_000)
    task = collector.begin(CLIENT, 0)
    collector.write("stdout", "x" * 10_000)
    collector.begin(CLIENT, 1)
    for _ in range(20):
        collector.write("stdout", "y" * 5_000)
    [item] = items_of(collector.finish(task))
    assert (item.seq, item.content, item.dropped_bytes) == (0, b"", 10_000)


def test_errors_and_results_are_never_dropped() -> None:
    """Only streams and displays give way."""
    collector = OutputCollector(max_bytes=10_000)
    task = collector.begin(CLIENT, 0)
    collector.publish("error", {"ename": "E"})
    for _ in range(100):
        collector.write("stderr", "z" * 1000)
    assert items_of(collector.finish(task))[0].kind == "error"


def test_lone_surrogates_can_be_sent() -> None:
    """Text that UTF-8 has no form for becomes escapes."""
    collector = OutputCollector()
    task = collector.begin(CLIENT, 0)
    collector.write("stdout", "a\ud800b")
    assert items_of(collector.finish(task))[0].content == rb"a\ud800b"


def test_the_second_thread_is_told_once_per_batch() -> None:
    """`on_first` is called when output begins to wait, not for each write."""
    collector = OutputCollector()
    calls: list[int] = []
    collector.on_first = lambda: calls.append(1)
    collector.begin(CLIENT, 0)
    for _ in range(3):
        collector.write("stdout", "x")
    assert len(calls) == 1
    collector.drain(1 << 20)
    collector.write("stdout", "x")
    assert len(calls) == 2


def test_many_threads_lose_nothing() -> None:
    """Writes from threads at once all arrive, each whole."""
    collector = OutputCollector()
    task = collector.begin(CLIENT, 0)

    def write(name: str) -> None:
        for _ in range(500):
            collector.write("stdout", f"{name}\n")

    threads = [threading.Thread(target=write, args=(c * 5,)) for c in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    lines = b"".join(i.content for i in items_of(collector.finish(task))).split()
    assert sorted(set(lines)) == [b"aaaaa", b"bbbbb", b"ccccc", b"ddddd"]
    assert len(lines) == 2000
