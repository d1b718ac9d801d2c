"""Parquet and Arrow IPC."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from nomicbert.bulk.inputs import arrow_rows  # noqa: E402
from nomicbert.bulk.inputs.rows import ArrowCells, Position, Span  # noqa: E402
from nomicbert.bulk.inputs.tables import objects_of  # noqa: E402
from tests.support.bulk_inputs import feed_of, read_all, rejects_of, rows_of  # noqa: E402


def write_parquet(path: Path, table: Any) -> None:
    pq.write_table(table, path, row_group_size=3)


def write_stream(path: Path, table: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 3)


def write_file(path: Path, table: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 3)


WRITERS = {"a.parquet": write_parquet, "a.arrow": write_stream, "b.arrow": write_file}
each_writer = pytest.mark.parametrize("name", WRITERS)


def write(folder: Path, name: str, table: Any) -> Path:
    WRITERS[name](folder / name, table)
    return folder / name


@each_writer
def test_rows_keep_their_cells(name: str, tmp_path: Path) -> None:
    records = [{"id": i, "text": f"text {i}", "tags": ["a"] * i} for i in range(10)]
    path = write(tmp_path, name, pa.Table.from_pylist(records))
    taken, rest = read_all(feed_of(path))
    rows = [entry.row for entry in taken]
    assert [row.text for row in rows] == [record["text"] for record in records]
    assert objects_of(rows) == records
    assert [row.where for row in rows] == [f"{path}, row {i + 1}" for i in range(10)]
    assert [row.after for row in rows] == [Position(0, i + 1, None) for i in range(10)]
    assert rest == (Position(0, 10, None), 0, [])
    chosen = rows_of(path, field="text", columns=["tags", "no", "id"])
    assert objects_of(chosen) == [{"id": r["id"], "tags": r["tags"]} for r in records]
    assert objects_of(rows_of(path, columns=())) == [{}] * 10
    assert [list(row.fields.batch.schema.names) for row in rows_of(path, columns=["text"])] == [
        ["text"]
    ] * 10


@each_writer
def test_spans(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, pa.table({"text": [str(i) for i in range(10)]}))
    for first in range(11):
        for stop in (*range(first, 12), None):
            taken, rest = read_all(feed_of(path, spans=[Span(0, first, None, stop)]))
            expected = list(range(10))[first:stop]
            assert [entry.row.number for entry in taken] == expected
            assert [entry.row.text for entry in taken] == list(map(str, expected))
            assert rest.after.row == min(10, stop or 0 if stop is not None else 10)


TYPES: dict[str, Callable[[Any], Any]] = {
    "string": lambda array: array,
    "large string": lambda array: array.cast(pa.large_string()),
    "dictionary": lambda array: array.dictionary_encode(),
    "dictionary of large strings": lambda array: array.cast(pa.large_string()).dictionary_encode(),
    "string view": lambda array: pa.array(array.to_pylist(), pa.string_view()),
}


@each_writer
@pytest.mark.parametrize("kind", TYPES)
def test_types_of_texts(kind: str, name: str, tmp_path: Path) -> None:
    array = TYPES[kind](pa.array(["a", None, "", "你😀", "a", "a"]))
    path = write(tmp_path, name, pa.table({"text": array, "id": range(6)}))
    assert [row.text for row in rows_of(path, on_null="empty")] == ["a", "", "", "你😀", "a", "a"]
    taken, _ = read_all(feed_of(path, on_null="skip"))
    assert [(t.row.text, t.row.number, t.skipped) for t in taken[:2]] == [("a", 0, 0), ("", 2, 1)]
    with pytest.raises(ValueError, match=f"{name}, row 2: the field 'text' must be .*, not null"):
        rows_of(path)
    (reject,) = rejects_of(path)
    assert (reject.number, reject.content) == (1, None)


@each_writer
def test_a_column_of_nulls(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, pa.table({"text": pa.nulls(4)}))
    assert read_all(feed_of(path, on_null="skip")) == ([], (Position(0, 4, None), 4, []))
    assert [row.text for row in rows_of(path, on_null="empty")] == [""] * 4


@each_writer
def test_sizes_add_up_to_the_file(name: str, tmp_path: Path) -> None:
    texts = [str(number) * 50 for number in range(3000)]
    path = write(tmp_path, name, pa.table({"text": texts}))
    if name == "a.parquet":
        pq.write_table(pq.read_table(path), path, row_group_size=1000)
    size = sum(row.size for row in rows_of(path))
    assert 0.5 * path.stat().st_size < size <= path.stat().st_size
    half = sum(row.size for row in rows_of(path, spans=[Span(0, 1500)]))
    assert half == pytest.approx(size / 2, rel=0.1)


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "int64": (lambda: {"text": [1]}, "'text' of .* must hold strings, not int64: .*--field"),
    "binary": (lambda: {"text": [b"a"]}, "must hold strings, not binary"),
    "list": (lambda: {"text": [["a"]]}, "must hold strings, not list<.*string>"),
    "dictionary": (
        lambda: {"text": pa.array([1]).dictionary_encode()},
        "must hold strings, not (dictionary<values=)?int64",
    ),
    "none": (lambda: {"id": [1], "a": [{"text": "a"}]}, "has no column 'text' among 'id', 'a': "),
}


@each_writer
@pytest.mark.parametrize("case", OTHERS)
def test_columns_that_hold_no_text(case: str, name: str, tmp_path: Path) -> None:
    make, message = OTHERS[case]
    path = write(tmp_path, name, pa.table(make()))
    with pytest.raises(ValueError, match=message):
        feed_of(path, on_error="skip").check_first_rows()


@each_writer
def test_nested_names_are_not_columns(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, pa.table({"a": [{"text": "x"}], "text": ["b"]}))
    with pytest.raises(ValueError, match=r"has no column 'a.text' among 'a', 'text'"):
        rows_of(path, field="a.text")
    assert objects_of(rows_of(path, columns=["a.text"])) == [{}]
    dotted = write(tmp_path, name, pa.table({"a.text": ["x"], "a": ["y"]}))
    (row,) = rows_of(dotted, field="a.text", columns=["a"])
    assert (row.text, objects_of([row])) == ("x", [{"a": "y"}])


@each_writer
def test_two_columns_of_one_name(name: str, tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    path = write(tmp_path, name, table)
    with pytest.raises(ValueError, match=f"{name} has two columns 'text': rename one"):
        rows_of(path)


@each_writer
@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_string_that_is_not_utf8(kind: str, name: str, tmp_path: Path) -> None:
    array = pa.array([b"a", b"bc\xff", None, b"d"]).view(pa.string())
    if kind == "large_string":
        array = array.cast(pa.large_binary()).view(pa.large_string())
    if kind == "dictionary":
        array = array.dictionary_encode()
    path = write(tmp_path, name, pa.table({"text": array}))
    with pytest.raises(ValueError, match=rf"{name}, row 2: byte 3 \(0xff\) is not UTF-8"):
        rows_of(path, on_null="empty")
    (reject,) = rejects_of(path, on_null="empty")
    assert (reject.number, reject.content) == (1, "bc\ufffd")
    rows = rows_of(path, on_error="skip", on_null="empty")
    assert [(row.text, row.number) for row in rows] == [("a", 0), ("", 2), ("d", 3)]


@each_writer
def test_no_rows(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, pa.table({"text": pa.array([], pa.string())}))
    feed_of(path).check_first_rows()
    assert read_all(feed_of(path)) == ([], (Position(0, 0, None), 0, []))


def test_row_groups_without_rows(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path := tmp_path / "a.parquet", schema) as writer:
        for texts in ([], ["a", "b"], [], ["c"], []):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert pq.read_metadata(path).num_row_groups == 5
    rows = rows_of(path)
    assert [row.text for row in rows] == ["a", "b", "c"]
    assert [row.text for row in rows_of(path, start=rows[1].after)] == ["c"]


@each_writer
def test_batches_are_bounded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "BATCH_ROWS", 2)
    path = write(tmp_path, name, pa.table({"text": list("abcdefg")}))
    rows = rows_of(path)
    assert [row.text for row in rows] == list("abcdefg")
    assert max(row.fields.batch.num_rows for row in rows) == 2


def test_parquet_batches_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_rows, "BATCH_BYTES", 4_000)
    texts = [str(number) * 1000 for number in range(9)]
    pq.write_table(pa.table({"text": texts}), path := tmp_path / "a.parquet", use_dictionary=False)
    rows = rows_of(path)
    assert [row.text for row in rows] == texts
    batches = [row.fields.batch for row in rows if isinstance(row.fields, ArrowCells)]
    assert {batch.num_rows for batch in batches[:6]} == {3}


@each_writer
def test_damaged_files(name: str, tmp_path: Path) -> None:
    table = pa.table({"text": [str(number) * 100 for number in range(30)]})
    whole = write(tmp_path, name, table).read_bytes()
    path = tmp_path / f"damaged-{name}"
    cuts = [len(whole) // 2, len(whole) - 20, 20, 0]
    if name == "a.arrow":
        cuts = [len(whole) // 2, 20, 0]  # a stream may end behind any batch
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"^{path} is damaged: "):
            read_all(feed_of(path, form="parquet" if name == "a.parquet" else "arrow"))
    other = "a.arrow" if name == "a.parquet" else "a.parquet"
    path.write_bytes(write(tmp_path, other, table).read_bytes())
    with pytest.raises(ValueError, match=f"^{path} is damaged: "):
        read_all(feed_of(path, form="parquet" if name == "a.parquet" else "arrow"))


def test_a_damaged_page(tmp_path: Path) -> None:
    texts = [str(number) * 100 for number in range(3000)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink, compression="zstd", use_dictionary=False)
    content = bytearray(sink.getvalue())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    (path := tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is damaged: "):
        rows_of(path, on_error="skip")
