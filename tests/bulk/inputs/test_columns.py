"""Carried columns: one schema for all sources, and rows as tables without a loss."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from nomicbert.bulk.inputs import columns, tables  # noqa: E402
from nomicbert.bulk.inputs.columns import (  # noqa: E402
    Misfit,
    carried_schema,
    infer,
    objects_of,
    renamed,
    table_of,
)
from nomicbert.bulk.inputs.formats import InputFormat  # noqa: E402
from nomicbert.bulk.inputs.rows import Position, Row  # noqa: E402
from nomicbert.bulk.inputs.sources import find_sources  # noqa: E402
from tests.support.bulk_inputs import SUFFIXES, feed_of, read_all, rows_of, write  # noqa: E402


def jsonl(path: Path, *objects: Any) -> Path:
    path.write_text("".join(json.dumps(found) + "\n" for found in objects))
    return path


def parquet(path: Path, **fields: Any) -> Path:
    pq.write_table(pa.table(fields), path)
    return path


def schema_of(*paths: Path, form: str | None = None, **options: Any) -> dict[str, str]:
    sources = find_sources([str(path) for path in paths], form and InputFormat(form))
    return {field.name: str(field.type) for field in carried_schema(sources, **options)}


def row_of(fields: dict[str, Any], number: int = 0) -> Row:
    after = Position(0, number + 1, None)
    return Row("a.jsonl", "line", number, "", fields, None, 0, after)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_states_its_columns(suffix: str, tmp_path: Path) -> None:
    records = [{"id": number, "text": f"text {number}", "b": [1.5]} for number in range(10)]
    path = write(tmp_path / f"a{suffix}", records)
    found = schema_of(path)
    if suffix.startswith(".txt"):
        assert found == {"text": "string"}
        records = [{"text": record["text"]} for record in records]
    elif suffix.startswith((".csv", ".tsv")):
        assert found == {"id": "string", "text": "string", "b": "string"}
        records = [{name: str(value) for name, value in record.items()} for record in records]
    else:
        assert found.pop("b") in ("list<item: double>", "list<element: double>")
        assert found == {"id": "int64", "text": "string"}
    rows = rows_of(path)
    schema = carried_schema(find_sources([str(path)], None))
    assert table_of(rows, schema).to_pylist() == records
    assert table_of(rows, schema).schema == schema
    assert infer(rows) == schema
    assert objects_of(rows) == records
    assert table_of([], schema).schema == schema
    if not suffix.startswith(".txt"):
        assert list(schema_of(path, columns=["b", "id"])) == ["b", "id"]
        assert schema_of(path, columns=()) == {}
        with pytest.raises(
            ValueError, match="no input has the column 'x': there are 'id', 'text', 'b'"
        ):
            schema_of(path, columns=["id", "x"])
        few = rows_of(path, columns=["b", "id"])
        chosen = carried_schema(find_sources([str(path)], None), columns=["b", "id"])
        assert table_of(few, chosen).to_pylist() == [
            {"b": record["b"], "id": record["id"]} for record in records
        ]


def test_the_columns_of_all_sources(tmp_path: Path) -> None:
    paths = [
        jsonl(
            tmp_path / "a.jsonl",
            {"text": "a", "id": 1, "tags": [], "none": None, "s": {}, "z": [[]]},
        ),
        jsonl(tmp_path / "b.jsonl", {"text": "b", "id": 1.5, "tags": ["x"], "s": {"k": 1}}),
        parquet(tmp_path / "c.parquet", more=pa.array([1], pa.int8()), text=["c"], tags=[["y"]]),
        parquet(tmp_path / "d.parquet", more=pa.array([1], pa.int16()), text=["d"]),
        write(tmp_path / "e.txt", [{"text": "e"}]),
        write(tmp_path / "f.csv", [{"text": "f", "label": "1"}]),
        tmp_path / "empty.jsonl",
    ]
    paths[-1].touch()
    found = schema_of(*paths)
    assert found == {
        "text": "string",
        "id": "double",
        "tags": "list<item: string>",
        "none": "string",
        "s": "struct<k: int64>",
        "z": "list<item: list<item: string>>",
        "more": "int16",
        "label": "string",
    }
    sources = find_sources([str(path) for path in paths], None)
    rows = [entry.row for entry in read_all(feed_of(*paths))[0]]
    table = table_of(rows, carried_schema(sources))
    assert table["text"].to_pylist() == list("abcdef")
    assert table["id"].to_pylist() == [1, 1.5, None, None, None, None]
    assert table["tags"].to_pylist() == [[], ["x"], ["y"], None, None, None]
    assert table["s"].to_pylist() == [{"k": None}, {"k": 1}, None, None, None, None]
    assert table["more"].to_pylist() == [None, None, 1, 1, None, None]
    assert table["label"].to_pylist() == [None] * 5 + ["1"]


def test_sources_that_differ(tmp_path: Path) -> None:
    paths = [
        jsonl(tmp_path / "a.jsonl", {"text": "a", "id": None}),
        jsonl(tmp_path / "b.jsonl", {"text": "b", "id": 1}),
        parquet(tmp_path / "c.parquet", id=["x"], text=["c"]),
    ]
    with pytest.raises(
        ValueError,
        match=r"the column 'id' is int64 in \S+/b.jsonl, but string in \S+/c.parquet: leave it out",
    ):
        schema_of(*paths)
    assert schema_of(*paths, columns=["text"]) == {"text": "string"}


def test_types_of_arrow_files_that_are_carried_otherwise(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "a", None])
    identities = pa.array([b"0" * 16] * 4, pa.binary(16))
    path = tmp_path / "a.arrow"
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    fields = {
        "text": texts.dictionary_encode(),
        "view": pa.array(texts.to_pylist(), pa.string_view()),
        "bytes": pa.array([b"a\xff"] * 4, pa.binary_view()),
        "extension": pa.ExtensionArray.from_storage(pa.uuid(), identities),
        "time": pa.array([moment] * 4),
        "decimal": pa.array([1, 2, 3, 4]).cast(pa.decimal128(25, 2)),
    }
    table = pa.table(fields).replace_schema_metadata({"pandas": "{}"})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    schema = carried_schema(find_sources([str(path)], None))
    assert {field.name: str(field.type) for field in schema} == {
        "text": "string",
        "view": "string",
        "bytes": "binary",
        "extension": "fixed_size_binary[16]",
        "time": "timestamp[us, tz=UTC]",
        "decimal": "decimal128(25, 2)",
    }
    assert schema.metadata is None
    rows = rows_of(path, on_null="skip")
    found = table_of([rows[0], rows[2]], schema)  # not the row between
    assert found["text"].to_pylist() == ["a", "a"]
    assert found["view"].to_pylist() == ["a", "a"]
    assert found["extension"].to_pylist() == [b"0" * 16] * 2
    assert found["time"].to_pylist() == [moment] * 2
    pq.write_table(found, tmp_path / "b.parquet")


def test_columns_that_parquet_cannot_hold(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a", "s": {}})
    with pytest.raises(ValueError, match=r"Parquet does not support the column 's': .*--columns"):
        schema_of(path)
    assert schema_of(path, columns=["text"]) == {"text": "string"}


def test_first_rows_that_cannot_be_used(tmp_path: Path) -> None:
    (broken := tmp_path / "a.jsonl").write_text(
        '{"text": "a", "b": 1}\nno\n{"text": "a", "c": 2}\n'
    )
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: not JSON"):
        schema_of(broken)
    assert list(schema_of(broken, on_error="skip")) == ["text", "b", "c"]
    mixed = jsonl(tmp_path / "b.jsonl", *({"text": "a", "b": b} for b in (1, 2, "x", 3, "y")))
    with pytest.raises(ValueError, match=r"b.jsonl, line 3: the field 'b', 'x', does not fit "):
        schema_of(mixed)
    assert schema_of(mixed, on_error="skip") == {"text": "string", "b": "int64"}
    nulls = jsonl(tmp_path / "c.jsonl", {"text": None, "b": 1})
    assert schema_of(nulls) == {"text": "string", "b": "int64"}


def test_very_many_misfits_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_MISFITS", 2)
    path = jsonl(tmp_path / "a.jsonl", *({"text": "a", "b": b} for b in (1, "x", "y", "z")))
    with pytest.raises(ValueError, match=r"a.jsonl, line 4: the field 'b'"):
        schema_of(path, on_error="skip")


def test_only_first_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": "a", f"f{i}": i} for i in range(20)))
    size = os.path.getsize(path)
    monkeypatch.setattr(columns, "LEAST_BYTES", 1)
    monkeypatch.setattr(columns, "SAMPLE_BYTES", size // 2)
    assert 9 <= len(schema_of(path)) - 1 <= 11
    monkeypatch.setattr(columns, "SAMPLE_BYTES", size)
    monkeypatch.setattr(columns, "SAMPLE_ROWS", 7)
    assert len(schema_of(path)) == 8
    monkeypatch.setattr(columns, "ALL_BYTES", size // 2)
    other = jsonl(tmp_path / "b.jsonl", {"text": "a"})
    assert 4 <= len(schema_of(path, other)) - 1 <= 6


def test_columns_of_a_pipe_are_unknown(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe.jsonl")
    keep = os.open(path, os.O_RDWR)
    with pytest.raises(ValueError, match=r"columns of .*pipe.jsonl are known only when it is read"):
        schema_of(path)
    os.close(keep)


def test_columns_of_the_output_are_renamed() -> None:
    schema = pa.schema(
        [("source", "string"), ("id", "int64"), ("row", "int64"), ("embedding", "string")]
    )
    found = renamed(schema)
    assert found.names == ["input_source", "id", "input_row", "input_embedding"]
    assert found.types == schema.types
    with pytest.raises(ValueError, match="'row' is carried as 'input_row', which is a column too"):
        renamed(pa.schema([("row", "int64"), ("input_row", "int64")]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


def holds(stored: Any, value: Any) -> bool:
    """Whether a value was stored completely; structs have the keys of other rows too."""
    if isinstance(value, dict) and isinstance(stored, dict):
        return all(key in stored and holds(stored[key], value[key]) for key in value) and all(
            stored[key] is None for key in stored.keys() - value.keys()
        )
    if isinstance(value, list) and isinstance(stored, list):
        return len(value) == len(stored) and all(map(holds, stored, value))
    if isinstance(value, float) and value != value:
        return bool(stored != stored)
    return isinstance(stored, bool) == isinstance(value, bool) and bool(stored == value)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
def test_json_values_are_stored_completely_or_refused(first: list[Any], later: list[Any]) -> None:
    rows = [row_of({"a": value}, i) for i, value in enumerate(first)]
    try:
        schema = infer(rows)
    except Misfit:
        return
    rows += [row_of({"a": value}, i) for i, value in enumerate(later)] if first else []
    while True:
        try:
            found = table_of(rows, schema)
            break
        except Misfit as error:
            del rows[error.index]
    stored = found.to_pylist()
    kept = [row.fields for row in rows]
    assert len(stored) == len(kept) >= len(first)
    assert all(holds(s, k) for s, k in zip(stored, kept, strict=True))


MISFITS: dict[str, tuple[list[Any], str]] = {
    "a float among integers": ([1, 2.5], "does not fit a column of type int64"),
    "a string among integers": ([1, "a"], "the field 'a', 'a', does not fit"),
    "true among integers": ([1, True], "does not fit"),
    "a list among strings": (["a", ["b"]], "does not fit"),
    "another key": ([{"x": 1}, {"y": 1}], "does not fit a column of type struct<x: int64>"),
    "too large": ([1, 2**64], "does not fit"),
    "true among floats": ([0.5, True], "the field 'a', True, does not fit a column of type double"),
    "a large integer among floats": ([0.5, 2**53 + 1], "does not fit a column of type double"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_values_that_do_not_fit(case: str) -> None:
    (first, second), message = MISFITS[case]
    schema = infer([row_of({"a": first})])
    rows = [row_of({"a": first}, 0), row_of({"a": None}, 1), row_of({"a": second}, 2)]
    with pytest.raises(Misfit, match=message) as caught:
        table_of(rows, schema)
    assert caught.value.index == 2
    assert table_of(rows[:2], schema).to_pylist() == [{"a": first}, {"a": None}]


def test_fields_that_first_rows_did_not_have(tmp_path: Path) -> None:
    schema = infer([row_of({"a": 1, "b": "x"})])
    with pytest.raises(
        Misfit, match="field 'c' is not among those of the first rows, which are the columns: 'a', "
    ) as caught:
        table_of([row_of({"b": None}), row_of({"a": 1, "c": 1})], schema)
    assert caught.value.index == 1
    rows = [row_of({"a": 1}), *rows_of(parquet(tmp_path / "a.parquet", text=["x"], c=[1]))]
    with pytest.raises(Misfit, match="field 'c' is not among") as caught:
        table_of(rows, schema)
    assert caught.value.index == 1


def test_values_that_are_no_columns() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    for value in (2**80, deep):
        with pytest.raises(Misfit, match=r"does not fit any column of Parquet|does not fit a "):
            infer([row_of({"a": value})])
    with pytest.raises(Misfit, match="does not fit the values before it") as caught:
        infer([row_of({"a": 1}), row_of({}), row_of({"a": "x"})])
    assert caught.value.index == 2


def test_very_many_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_COLUMNS", 3)
    rows = [row_of({f"f{number}": 1}) for number in range(4)]
    assert len(infer(rows[:3])) == 3
    with pytest.raises(ValueError, match="first 4 rows have 4 different fields, but at most 3 can"):
        infer(rows)


def test_cells_that_do_not_fit(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=list("abcd"), id=[1, 2**53 + 1, 3, 2**53 + 1])
    rows = rows_of(path)
    schema = pa.schema([("text", pa.string()), ("id", pa.float64())])
    with pytest.raises(Misfit, match="the field 'id', 9007199254740993, does not") as caught:
        table_of([row_of({"id": 1.0}), *rows], schema)
    assert caught.value.index == 2
    # a misfit between rows that are taken does not count
    assert table_of([rows[0], rows[2]], schema)["id"].to_pylist() == [1.0, 3.0]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_cells_that_are_not_utf8(kind: str, tmp_path: Path) -> None:
    array = pa.array([b"a", b"b\xff", b"c"]).view(pa.string())
    if kind == "large_string":
        array = array.cast(pa.large_binary()).view(pa.large_string())
    if kind == "dictionary":
        array = array.dictionary_encode()
    rows = rows_of(parquet(tmp_path / "a.parquet", text=list("abc"), title=array))
    schema = infer(rows)
    with pytest.raises(Misfit, match=r"the field 'title', b'b\\xff', does not fit a col") as caught:
        table_of(rows, schema)
    assert caught.value.index == 1
    assert table_of([rows[0], rows[2]], schema)["title"].to_pylist() == ["a", "c"]


def test_rows_of_several_batches_and_formats(tmp_path: Path) -> None:
    records = [{"text": str(number), "id": number} for number in range(10)]
    a = write(tmp_path / "a.parquet", records)
    b = write(tmp_path / "b.jsonl", records)
    c = write(tmp_path / "c.feather", records)
    rows = [entry.row for entry in read_all(feed_of(a, b, c))[0]]
    schema = infer(rows)
    few = [row for number, row in enumerate(rows) if number % 3 != 1]
    assert table_of(few, schema).to_pylist() == [
        record for number, record in enumerate(records * 3) if number % 3 != 1
    ]
    assert objects_of(few) == table_of(few, schema).to_pylist()
