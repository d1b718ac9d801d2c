"""Feeds: order, exactly-once, resuming, rejects and skips between rows, sizes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomicbert.bulk.inputs import feed as feed_module
from nomicbert.bulk.inputs import open_rows
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Position, Reject, Row, Span, Taken
from nomicbert.bulk.inputs.sources import find_sources
from tests.support.bulk_inputs import (
    SUFFIXES,
    encode,
    feed_of,
    needs_pyarrow,
    read_all,
    rows_of,
    write,
)

BAD = b"{no json}\n"


def lines_of(*items: str | bytes) -> bytes:
    """JSONL of texts; "" is a blank line."""
    encoded = [b"\n" if item == "" else json.dumps({"text": item}).encode() + b"\n"
               for item in items if not isinstance(item, bytes)]  # fmt: skip
    found = iter(encoded)
    return b"".join(item if isinstance(item, bytes) else next(found) for item in items)


def told(taken: Sequence[Taken]) -> list[tuple[str, int, list[int]]]:
    return [(t.row.text, t.skipped, [reject.number for reject in t.rejects]) for t in taken]


def test_skips_and_rejects_belong_to_the_next_row(tmp_path: Path) -> None:
    (a := tmp_path / "a.jsonl").write_bytes(lines_of("", BAD, "a", "b", BAD, ""))
    (b := tmp_path / "b.jsonl").write_bytes(lines_of("", BAD, BAD, "c", "", BAD))
    feed = feed_of(a, b, on_error="skip")
    taken, rest = read_all(feed)
    assert told(taken) == [("a", 1, [1]), ("b", 0, []), ("c", 2, [4, 1, 2])]
    assert [reject.name for reject in taken[2].rejects] == [str(a), str(b), str(b)]
    assert (rest.skipped, [reject.number for reject in rest.rejects]) == (1, [5])
    assert rest.after == Position(1, 6, b.stat().st_size)
    # reading on behind any row gives the same rest
    for index, entry in enumerate(taken):
        again, after = read_all(feed_of(a, b, on_error="skip", start=entry.row.after))
        assert (again, after) == (taken[index + 1 :], rest)


def test_taking_while_reading(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_bytes(b"a\nb\nc\nd\n")
    feed = feed_of(path)
    assert [next(feed), next(feed)] == ["a", "b"]
    assert feed.take().row.text == "a"
    assert next(feed) == "c"
    assert [feed.take().row.text, feed.take().row.text] == ["b", "c"]
    assert next(feed) == "d"
    assert list(feed) == []
    assert not feed.finished  # d was not taken
    assert feed.take().row.number == 3
    assert feed.finished


def test_nothing_to_read(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_bytes(b"a\n")
    for spans, start, after in [
        ([], Position(0, 0, None), Position(0, 0, None)),
        ([Span(0)], Position(1, 0, None), Position(1, 0, None)),
        ([Span(0)], Position(0, 1, 2), Position(0, 1, 2)),
        ([Span(0, 0, 0, 0)], Position(0, 0, None), Position(0, 0, 0)),
    ]:
        assert read_all(feed_of(path, spans=spans, start=start)) == ([], (after, 0, []))


def test_an_error_does_not_finish_a_feed(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_bytes(lines_of("a", BAD, "b"))
    feed = feed_of(path)
    with pytest.raises(ValueError, match="line 2"):
        list(feed)
    feed.take()
    assert list(feed) == []
    assert not feed.finished


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_spans(suffix: str, tmp_path: Path) -> None:
    """Two files in pieces, in any order; positions count the spans."""
    records = [
        {"text": f"text {i}" if suffix.startswith(".txt") else f"text\n{i}"} for i in range(10)
    ]
    a = write(tmp_path / f"a{suffix}", records)
    b = write(tmp_path / f"b{suffix}", records[:4])
    offsets = [None, *(row.after.offset for row in rows_of(a))]
    spans = [
        Span(1, 0, None, None),
        Span(0, 7, offsets[7], None),
        Span(0, 0, None, 3),
        Span(0, 3, offsets[3], 7),
    ]
    taken, rest = read_all(feed_of(a, b, spans=spans))
    expected = [0, 1, 2, 3, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6]
    assert [entry.row.number for entry in taken] == expected
    assert [entry.row.text for entry in taken] == [records[i]["text"] for i in expected]
    assert [entry.row.after.unit for entry in taken] == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 4
    assert rest.after == Position(3, 7, offsets[7])
    for index, entry in enumerate(taken):
        again, end = read_all(feed_of(a, b, spans=spans, start=entry.row.after))
        assert [t.row.after for t in again] == [t.row.after for t in taken[index + 1 :]]
        assert end == rest
    unknown = [span._replace(offset=None) for span in spans]
    assert told(read_all(feed_of(a, b, spans=unknown))[0]) == told(taken)


def same(first: Row, second: Row) -> bool:
    """Whether two readings gave the same row; those of Arrow in batches of their own."""
    fields = [row.fields if isinstance(row.fields, dict) else None for row in (first, second)]
    return fields[0] == fields[1] and (first.name, first.number, first.text, first.after) == (
        second.name,
        second.number,
        second.text,
        second.after,
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=9), st.data())
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_goes_on_behind_every_row(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[str], data: Any
) -> None:
    if suffix.startswith(".txt"):
        texts = [text.replace("\n", " ").rstrip("\r") for text in texts]
    if suffix.startswith((".csv", ".tsv")):
        texts = [text.replace("\r", " ") for text in texts]  # Python's writer changes it
    path = tmp_path_factory.getbasetemp() / f"resume{suffix}"
    write(path, [{"text": text, "id": str(index)} for index, text in enumerate(texts)])
    taken, rest = read_all(feed_of(path))
    assert [entry.row.text for entry in taken] == texts
    assert rest.after.row == len(texts)
    for index, entry in enumerate(taken):
        again, end = read_all(feed_of(path, start=entry.row.after))
        assert len(again) == len(taken) - index - 1
        assert all(same(a.row, b.row) for a, b in zip(again, taken[index + 1 :], strict=True))
        assert end == rest
    stop = data.draw(st.integers(0, len(texts)))
    head, middle = read_all(feed_of(path, spans=[Span(0, 0, None, stop)]))
    assert [entry.row.text for entry in head] == texts[:stop]
    tail, _ = read_all(feed_of(path, spans=[Span(0, stop, middle.after.offset)]))
    assert [entry.row.text for entry in tail] == texts[stop:]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "", BAD]), max_size=12),
    st.lists(st.sampled_from(["next", "next", "next", "take", "reject"]), max_size=40),
    st.data(),
)
def test_rejecting_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[str | bytes],
    steps: list[str],
    data: Any,
) -> None:
    """Whatever is done, every line is a row, a skip or a reject once, and in order."""
    path = tmp_path_factory.getbasetemp() / "steps.jsonl"
    path.write_bytes(lines_of(*items))
    feed = feed_of(path, on_error="skip")
    out: list[str] = []  # handed out and not taken
    seen: list[tuple[int, str]] = []
    skipped = 0

    def take() -> None:
        nonlocal skipped
        row, skips, rejects = feed.take()
        assert row.text == out.pop(0)
        skipped += skips
        seen.extend((reject.number, "reject") for reject in rejects)
        seen.append((row.number, "row"))

    dropped = 0
    for step in steps:
        if step == "next":
            out += [text for text in [next(feed, None)] if text is not None]
        elif step == "take" and out:
            take()
        elif step == "reject" and out:
            index = data.draw(st.integers(0, len(out) - 1))
            feed.reject(index, "too long")
            del out[index]
            dropped += 1
    for text in feed:
        out.append(text)
    while out:
        take()
    assert feed.finished
    rest = feed.rest()
    seen.extend((reject.number, "reject") for reject in rest.rejects)
    assert skipped + rest.skipped == items.count("")
    used = [number for number, item in enumerate(items) if item != ""]
    assert [number for number, _ in seen] == used
    assert [kind for _, kind in seen].count("reject") == items.count(BAD) + dropped


def test_a_rejected_row_says_why(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_bytes(lines_of("a", "b", "c", ""))
    feed = feed_of(path, on_error="skip")
    assert list(feed) == ["a", "b", "c"]
    feed.reject(1, "it is too long")
    feed.reject(1, "it too")
    assert told([feed.take()]) == [("a", 0, [])]
    assert feed.finished
    assert feed.rest() == (
        Position(0, 4, path.stat().st_size),
        1,
        [
            Reject(str(path), 1, "it is too long", '{"text": "b"}'),
            Reject(str(path), 2, "it too", '{"text": "c"}'),
        ],
    )


def test_first_rows_are_checked_and_read_again(tmp_path: Path) -> None:
    (a := tmp_path / "a.jsonl").write_bytes(lines_of("a", BAD))
    (b := tmp_path / "b.jsonl").write_bytes(lines_of("", "b"))
    (c := tmp_path / "c.jsonl").write_bytes(b"")
    feed = feed_of(a, b, c, on_error="skip")
    feed.check_first_rows()
    assert list(feed) == ["a", "b"]
    (wrong := tmp_path / "d.jsonl").write_bytes(b'{"body": "a"}\n')
    feed_of(a, wrong, on_error="skip").check_first_rows()
    with pytest.raises(ValueError, match=r"d.jsonl, line 1: there is no field 'text' among 'body'"):
        feed_of(a, wrong).check_first_rows()
    wrong.unlink()
    wrong.mkdir()
    feed = Feed(find_sources([str(a)], None), [Span(0)])
    a.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*a.jsonl: No such file"):
        feed.check_first_rows()


def test_only_so_many_first_rows_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CHECKED", 2)
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        path.write_bytes(b'{"text": "a"}\n')
    paths[2].write_bytes(BAD)
    feed_of(*paths).check_first_rows()
    feed_of(*paths, spans=[Span(0), Span(0, 3), Span(1)]).check_first_rows()
    with pytest.raises(ValueError, match=r"2.jsonl, line 1"):
        feed_of(*paths, spans=[Span(2), Span(0)]).check_first_rows()


def test_very_many_rejects_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_REJECTS", 3)
    (path := tmp_path / "a.jsonl").write_bytes(lines_of(BAD, BAD, BAD, "a", BAD, BAD, BAD, BAD))
    feed = feed_of(path, on_error="skip")
    assert next(feed) == "a"
    with pytest.raises(
        ValueError, match=r"3 rows were refused and none between.*a.jsonl, line 8: not JSON"
    ):
        next(feed)


def test_bytes_of_whole_and_partial_spans(tmp_path: Path) -> None:
    a = tmp_path / "a.txt"
    a.write_bytes(b"four\n" * 100)
    b = tmp_path / "b.txt"
    b.write_bytes(b"four\n" * 60)
    assert feed_of(a, b).total_bytes == 800
    assert feed_of(a, b, start=Position(0, 40, 200)).total_bytes == 600
    assert feed_of(a, b, start=Position(1, 40, 200)).total_bytes == 100
    partial = feed_of(a, b, spans=[Span(0, 10, 50, 30), Span(1), Span(0, 90)])
    assert [next(partial), partial.total_bytes] == ["four", 20 * 5 + 300 + 50]
    assert sum(row.size for row in rows_of(a, b, start=Position(0, 40, 200))) == 600


def test_sources_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path in paths:
        path.write_bytes(b"a\nb\n")
    opened = []
    original = open_rows.open_source

    def open_source(source: Any) -> Any:
        context = original(source)
        opened.append(context)
        return context

    monkeypatch.setattr(open_rows, "open_source", open_source)
    feed = feed_of(*paths)
    assert [next(feed) for _ in range(5)] == ["a", "b", "a", "b", "a"]
    feed.close()
    assert len(opened) == 3
    assert all(context.gen.gi_frame is None for context in opened)
    assert not feed.finished


LARGE = [
    ".txt",
    ".csv",
    ".json",
    *(
        pytest.param(suffix, marks=needs_pyarrow)
        for suffix in (".jsonl.gz", ".json.zst", ".parquet", ".arrow", ".feather")
    ),
]


@pytest.mark.parametrize("suffix", LARGE)
def test_memory_does_not_grow_with_a_file(suffix: str, tmp_path: Path) -> None:
    """Python's own memory; that of Arrow is a batch."""

    def peak(rows: int) -> int:
        records = [{"text": f"some words of text {number}"} for number in range(rows)]
        (path := tmp_path / f"{rows}{suffix}").write_bytes(encode(suffix, records, 1000))
        del records
        feed = feed_of(path)
        tracemalloc.start()
        for _ in feed:
            feed.take()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40_000) < 1.3 * peak(10_000) + 50_000
