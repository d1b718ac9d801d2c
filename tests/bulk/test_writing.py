"""Outputs of vectors: round trips, and files that are complete or absent."""

import datetime
import decimal
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert.bulk import output
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import ArrowCells, Misfit, Position, Row, Span
from nomicbert.bulk.inputs.sources import find_sources
from nomicbert.bulk.output import OutputFormat, choose_output_format, is_stream, open_output
from nomicbert.bulk.writing import (
    Vectors,
    Write,
    _npy_header,
    as_json,
    fields_of,
    jsonl_writer,
    npy_writer,
)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/full")
DTYPES = ("float32", "float16", "int8", "uint8")


def rows_of(folder: Path, lines: list[str], field: str = "text") -> list[Row]:
    """The rows of these JSONL lines."""
    path = folder / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    feed = Feed(find_sources([str(path)], None), [Span(0)], field=field)
    return [feed.take().row for _ in feed]


def some_vectors(rows: int, width: int, dtype: str, seed: int) -> Vectors:
    numbers = np.random.default_rng(seed).normal(size=(rows, width)) * 40
    return numbers.astype(np.int64).astype(dtype) if "int" in dtype else numbers.astype(dtype)


def write_all(writer: AbstractContextManager[Write], rows: list[Row], vectors: Vectors) -> None:
    """Write three rows a block; the message of a Misfit names its row."""
    with writer as write:
        for start in range(0, len(vectors), 3):
            some = rows[start : start + 3]
            try:
                write(some, vectors[start : start + 3])
            except Misfit as error:
                raise ValueError(f"{some[error.index].where}: {error.problem}") from error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_npy(dtype: str, rows: int, tmp_path: Path, seed: int) -> None:
    vectors = some_vectors(rows, 5, dtype, seed)
    records = rows_of(tmp_path, [json.dumps({"n": i, "text": ""}) for i in range(rows)])
    path = tmp_path / "vectors.npy"
    with path.open("wb") as file:
        write_all(npy_writer(file, vectors[:0]), records, vectors)
    for loaded in (np.load(path), np.load(path, mmap_mode="r") if rows else np.load(path)):
        assert loaded.dtype == dtype
        assert loaded.shape == (rows, 5)
        np.testing.assert_array_equal(loaded, vectors)
    assert path.stat().st_size == 128 + vectors.nbytes


def test_npy_takes_non_contiguous_rows(tmp_path: Path, seed: int) -> None:
    vectors = some_vectors(8, 10, "float32", seed)[::2, ::2]
    path = tmp_path / "vectors.npy"
    with path.open("wb") as file:
        write_all(npy_writer(file, vectors[:0]), [], vectors)
    np.testing.assert_array_equal(np.load(path), vectors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_header_fits_any_number_of_rows(dtype: str) -> None:
    empty = np.empty((0, 1792), dtype)
    assert {len(_npy_header(empty, 10**power)) for power in range(19)} == {128}
    assert len(_npy_header(empty, 0)) == 128


def test_npy_with_a_file_of_other_fields(tmp_path: Path, seed: int) -> None:
    lines = ['{"id": 7, "body": "a", "tags": ["é"]}', '{"body": "b"}', '{"body": "", "text": "t"}']
    records = rows_of(tmp_path, lines, "body")
    vectors = some_vectors(3, 4, "float32", seed)
    with (tmp_path / "v.npy").open("wb") as file, (tmp_path / "v.meta.jsonl").open("wb") as meta:
        write_all(npy_writer(file, vectors[:0], meta, "body"), records, vectors)
    written = (tmp_path / "v.meta.jsonl").read_text("utf-8")
    assert written == '{"id": 7, "tags": ["é"]}\n{}\n{"text": "t"}\n'


def jsonl_numbers(vectors: Vectors, folder: Path) -> list[Any]:
    records = rows_of(folder, ['{"text": ""}'] * len(vectors))
    path = folder / "vectors.jsonl"
    with path.open("wb") as file:
        write_all(jsonl_writer(file, vectors[:0]), records, vectors)
    return [json.loads(line)["embedding"] for line in path.read_bytes().splitlines()]


def bits(vectors: Vectors) -> Any:
    return vectors.view(f"u{vectors.itemsize}")


def test_float32_round_trips_through_jsonl(tmp_path: Path, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 2**32, (500, 40), dtype=np.uint32)
    # 0, -0, extremes, and an integer that needs all digits
    drawn[0, :7] = [0, 0x80000000, 1, 0x7F7FFFFF, 0x00800000, 0x007FFFFF, 0x4CEB79A3]
    vectors = drawn.view(np.float32)
    vectors = np.where(np.isfinite(vectors), vectors, np.float32(0.1))
    read = np.array(jsonl_numbers(vectors, tmp_path), dtype=np.float32)
    np.testing.assert_array_equal(bits(read), bits(vectors))
    # one digit less is too few, so the test depends on the number of digits
    short = np.array([[float(f"{x:.8g}") for x in row] for row in vectors.tolist()], np.float32)
    assert (bits(short) != bits(vectors)).any()


def test_every_float16_round_trips_through_jsonl(tmp_path: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    vectors = every[np.isfinite(every)].reshape(-1, 64)
    read = np.array(jsonl_numbers(vectors, tmp_path), dtype=np.float16)
    np.testing.assert_array_equal(bits(read), bits(vectors))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_stay_integers_in_jsonl(dtype: str, tmp_path: Path) -> None:
    vectors = np.arange(256).astype(np.uint8).view(dtype).reshape(16, 16)
    read = jsonl_numbers(vectors, tmp_path)
    assert read == vectors.tolist()
    assert {type(number) for row in read for number in row} == {int}


def test_nan_and_infinity_in_jsonl(tmp_path: Path) -> None:
    vectors = np.array([[np.nan, np.inf, -np.inf, 1], [1, 2, 3, 4]], np.float32)
    (broken, whole) = jsonl_numbers(vectors, tmp_path)
    assert np.isnan(broken[0])
    assert broken[1:] == [np.inf, -np.inf, 1]
    assert whole == [1, 2, 3, 4]


def test_jsonl_repeats_the_line(tmp_path: Path) -> None:
    lines = [
        '{"text":"a","score": 1.50,  "big": 123456789012345678901234567890}',
        '{"text": "\\u4f60好", "o": {"embedding": 1}}',
    ]
    path = tmp_path / "vectors.jsonl"
    with path.open("wb") as file:
        empty = np.empty((0, 2), np.int8)
        write_all(jsonl_writer(file, empty), rows_of(tmp_path, lines), np.ones((2, 2), np.int8))
    expected = "".join(line[:-1] + ', "embedding": [1, 1]}\n' for line in lines)
    assert path.read_text("utf-8") == expected


def arrow_rows(columns: dict[str, Any], order: list[int]) -> list[Row]:
    """Rows of a Parquet file, a record batch per two rows."""
    pa = pytest.importorskip("pyarrow")
    batches = pa.table(columns).to_batches(max_chunksize=2)
    assert len(batches) > 1
    return [
        Row(
            name="a.parquet",
            unit="row",
            number=row,
            text="a",
            fields=ArrowCells(batches[row // 2], row % 2),
            line=None,
            size=1,
            after=Position(0, row + 1, None),
        )
        for row in order
    ]


def arrow_columns() -> dict[str, Any]:
    pa = pytest.importorskip("pyarrow")
    day, at = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, 0, 5)
    return {
        "text": ["a", "b", "c"],
        "day": pa.array([day, None, day]),
        "at": pa.array([at, at.replace(tzinfo=datetime.timezone.utc), at]),
        "time": pa.array([at.time()] * 3),
        "price": pa.array([decimal.Decimal("1.50")] * 3),
        "tags": [["x", None], [], None],
        "o": [{"p": 1, "day": day}, None, {"p": None, "day": None}],
    }


ARROW_OBJECTS = [
    '{"text": "a", "day": "2024-02-29", "at": "2024-02-29T12:30:00.000005", '
    '"time": "12:30:00.000005", "price": "1.50", "tags": ["x", null], '
    '"o": {"p": 1, "day": "2024-02-29"}',
    '{"text": "b", "day": null, "at": "2024-02-29T12:30:00.000005", "time": "12:30:00.000005", '
    '"price": "1.50", "tags": [], "o": null',
    '{"text": "c", "day": "2024-02-29", "at": "2024-02-29T12:30:00.000005", '
    '"time": "12:30:00.000005", "price": "1.50", "tags": null, "o": {"p": null, "day": null}',
]


def test_rows_of_parquet_as_json() -> None:
    """Rows of other formats become objects, in their order, also beside lines of JSONL."""
    file, meta, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    rows = arrow_rows(arrow_columns(), [2, 0, 1])
    rows.insert(1, replace(rows[0], fields={"text": "d", "n": 1.5}, line='{"text":"d", "n": 1.50}'))
    vectors = np.arange(4, dtype=np.int8).reshape(4, 1)
    write_all(jsonl_writer(file, vectors[:0]), rows, vectors)
    objects = [ARROW_OBJECTS[2], '{"text":"d", "n": 1.50', ARROW_OBJECTS[0], ARROW_OBJECTS[1]]
    expected = "".join(f'{text}, "embedding": [{i}]}}\n' for i, text in enumerate(objects))
    assert file.getvalue().decode() == expected
    write_all(npy_writer(array, vectors[:0], meta), rows, vectors)
    found = [line + "\n" for line in meta.getvalue().decode().splitlines()]
    assert found[1] == '{"n": 1.5}\n'
    assert found[2] == "{" + ARROW_OBJECTS[0].removeprefix('{"text": "a", ') + "}\n"


def test_fewer_fields_as_json(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, ['{"text": "a",  "n": 1.50}'])
    vectors = np.zeros((1, 1), np.int8)
    for fields, expected in (
        ({"n": 1.5}, '{"n": 1.5, "embedding": [0]}\n'),
        ({}, '{"embedding": [0]}\n'),
    ):
        file = io.BytesIO()
        write_all(jsonl_writer(file, vectors, whole=False), [replace(row, fields=fields)], vectors)
        assert file.getvalue().decode() == expected


@pytest.mark.parametrize("value", [b"x", datetime.timedelta(1), [{"a": b"x"}]])
def test_values_without_a_form_in_json(value: Any) -> None:
    """The row is named, and nothing of its block is written."""
    rows = arrow_rows({"text": ["a", "b", "c"], "v": [None, None, value]}, [0, 1, 2])
    vectors = np.zeros((3, 1), np.float32)
    file, meta = io.BytesIO(), io.BytesIO()
    kind = type(value).__name__
    with refused(rf"a.parquet, row 3: the field 'v' \({kind}\) has no form in JSON.*--columns"):
        write_all(jsonl_writer(file, vectors), rows, vectors)
    assert file.getvalue() == b""
    with refused("a.parquet, row 3: the field 'v'"):
        write_all(npy_writer(file, vectors[:0], meta), rows, vectors)
    assert meta.getvalue() == b""
    assert len(file.getvalue()) == 128


def test_a_string_of_parquet_that_is_not_utf8() -> None:
    pa = pytest.importorskip("pyarrow")
    raw = pa.array([b"a", b"b", b"c", b"\xff"], pa.binary()).view(pa.string())
    rows = arrow_rows({"text": ["a"] * 4, "raw": raw}, [1, 2, 3])
    file, vectors = io.BytesIO(), np.zeros((3, 1), np.float32)
    with refused("a.parquet, row 4: the field 'raw': a string is not UTF-8: .*0xff"):
        write_all(jsonl_writer(file, vectors), rows, vectors)
    write_all(jsonl_writer(file, vectors), rows[:2], vectors[:2])
    assert [json.loads(line)["raw"] for line in file.getvalue().splitlines()] == ["b", "c"]


def arrow_of(kind: str, value: Any) -> Any:
    """Four values, the third of them without a form in Python or JSON."""
    pa = pytest.importorskip("pyarrow")
    fine, bad = pa.array([0], pa.int64()), pa.array([value], pa.int64())
    column = pa.concat_arrays([fine, fine, bad, fine])
    if kind == "date32":
        return column.cast(pa.int32()).cast(pa.date32())
    if kind == "no zone":
        return pa.array([None, None, value, None], pa.timestamp("us", "No/Where"))
    if kind == "equal names":
        both = pa.StructArray.from_arrays([column, column], names=["a", "a"])
        none = pa.nulls(2, both.type)
        return pa.concat_arrays([none, both.slice(2, 1), none.slice(1)])
    return column.cast(pa.timestamp(kind))


UNUSABLE = {"us": 2**60, "date32": 2**30, "no zone": 1, "equal names": 1}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_values_of_arrow_that_python_has_not(kind: str) -> None:
    """Each is the error of its row; the others are written."""
    rows = arrow_rows({"text": ["a"] * 4, "v": arrow_of(kind, UNUSABLE[kind])}, [0, 1, 2, 3])
    file, vectors = io.BytesIO(), np.zeros((4, 1), np.float32)
    with jsonl_writer(file, vectors) as write:
        with pytest.raises(Misfit, match=r"the field 'v' \(.*\) has no form in JSON") as found:
            write(rows, vectors)
        assert found.value.index == 2
        others = rows[:2] if kind == "equal names" else [*rows[:2], rows[3]]
        write(others, vectors[: len(others)])
    assert len(file.getvalue().splitlines()) == len(others)


def test_run_ends_as_json() -> None:
    pa, pc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.compute")
    batch = pa.record_batch({"v": pc.run_end_encode(pa.array(["x", "x", "y"]))})
    assert [each["v"] for each in fields_of(batch_rows(batch, [0, 2]))] == ["x", "y"]


def batch_rows(batch: Any, numbers: list[int]) -> list[Row]:
    after = Position(0, 0, None)
    return [Row("a", "row", n, "a", ArrowCells(batch, n), None, 1, after) for n in numbers]


def test_nanoseconds_as_json() -> None:
    """Python's types have none: they are digits of the string."""
    pa = pytest.importorskip("pyarrow")
    time, at = pa.time64("ns"), pa.timestamp("ns")
    batch = pa.record_batch(
        {
            "time": pa.array([45_000_000_000_005, 45_000_000_000_000, None], time),
            "at": pa.array([5, -1, 0], at),
            "zone": pa.array([1_700_000_000_000_000_001] * 3, pa.timestamp("ns", "+02:00")),
            "list": pa.array([[5, None], [], None], pa.list_(time)),
            "fixed": pa.array([[5]] * 3, pa.list_(time, 1)),
            "large": pa.array([[5]] * 3, pa.large_list(at)),
            "map": pa.array([[("a", 5)]] * 3, pa.map_(pa.string(), time)),
            "o": pa.array([{"p": 5, "q": "[ns"}] * 3, pa.struct({"p": at, "q": pa.string()})),
            "dictionary": pa.array([5, 5, None], at).dictionary_encode(),
        }
    )
    first, second, third = (
        json.loads(line) for line in as_json(fields_of(batch_rows(batch, [0, 1, 2])))
    )
    day = "1970-01-01T00:00:00.000000005"
    assert first == {
        "time": "12:30:00.000000005",
        "at": day,
        "zone": "2023-11-15T00:13:20.000000001+02:00",
        "list": ["00:00:00.000000005", None],
        "fixed": ["00:00:00.000000005"],
        "large": [day],
        "map": [["a", "00:00:00.000000005"]],
        "o": {"p": day, "q": "[ns"},
        "dictionary": day,
    }
    assert (second["time"], second["at"]) == ("12:30:00", "1969-12-31T23:59:59.999999999")
    assert (third["time"], third["at"], third["dictionary"]) == (None, "1970-01-01T00:00:00", None)


def test_a_field_with_the_name_of_the_vector(tmp_path: Path, to_table: Callable[..., Any]) -> None:
    lines = ['{"text": "a"}', '{"text": "b", "embedding": []}']
    vectors = np.zeros((2, 1), np.float32)
    file = io.BytesIO()
    with refused("line 2: the field 'embedding' is reserved for the vector: rename it, or choose"):
        write_all(jsonl_writer(file, vectors), rows_of(tmp_path, lines), vectors)
    assert file.getvalue() == b""
    with refused("line 2: the field 'embedding' is reserved"):
        to_table(lines)


@pytest.fixture
def to_table(tmp_path: Path) -> Callable[..., Any]:
    """Write JSONL lines as Parquet, three rows a block, and read the table."""
    pq = pytest.importorskip("pyarrow.parquet")
    from nomicbert.bulk.parquet import parquet_writer

    def write(lines: list[str], vectors: Vectors | None = None) -> Any:
        path = tmp_path / "vectors.parquet"
        vectors = np.zeros((len(lines), 2), np.float32) if vectors is None else vectors
        with path.open("wb") as file:
            write_all(parquet_writer(file, vectors[:0]), rows_of(tmp_path, lines), vectors)
        return pq.ParquetFile(path)

    return write


def test_parquet_has_a_column_for_each_field(to_table: Callable[..., Any], seed: int) -> None:
    lines = [
        '{"text": "a", "n": 1, "score": 1, "tags": ["x"], "o": {"p": 1}}',
        '{"text": "b", "score": 0.5, "none": null, "yes": true}',
        '{"n": null, "text": "", "tags": [], "o": {"q": {"r": "s"}}}',
        '{"text": "d", "score": 2, "n": 3.0}',
        '{"text": "e", "o": null, "tags": [null, "z"]}',
        '{"text": "f", "score": NaN}',
        '{"text": "g", "o": {"p": 2, "q": {}}}',
    ]
    vectors = some_vectors(7, 6, "float32", seed)
    file = to_table(lines, vectors)
    assert file.num_row_groups == 3
    table = file.read()
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "text": "string",
        "n": "int64",
        "score": "double",
        "tags": "list<element: string>",
        "o": "struct<p: int64, q: struct<r: string>>",
        "none": "string",
        "yes": "bool",
        "embedding": "fixed_size_list<element: float>[6]",
    }
    assert table["text"].to_pylist() == ["a", "b", "", "d", "e", "f", "g"]
    assert table["n"].to_pylist() == [1, None, None, 3, None, None, None]
    score = table["score"].to_pylist()
    assert score[:5] == [1.0, 0.5, None, 2.0, None]
    assert np.isnan(score[5])
    assert table["tags"].to_pylist() == [["x"], None, [], None, [None, "z"], None, None]
    assert table["o"].to_pylist()[2] == {"p": None, "q": {"r": "s"}}
    assert table["yes"].to_pylist() == [None, True, None, None, None, None, None]
    read = table["embedding"].combine_chunks().values.to_numpy().reshape(7, 6)
    np.testing.assert_array_equal(read, vectors)


PLAIN = '{"text": "a", "n": 1, "x": 0.5, "s": "s", "b": true, "l": ["m"], "o": {"p": 1}, "z": null}'
# A line of the second block -> the error message.
MISFITS = {
    '{"text": "b", "n": 2.5}': "'n', 2.5, does not fit a column of type int64",
    '{"text": "b", "n": true}': "'n', True, does not fit a column of type int64",
    '{"text": "b", "n": "2"}': "'n', '2', does not fit a column of type int64",
    '{"text": "b", "n": 9223372036854775808}': "'n', 9223372036854775808, does not fit",
    '{"text": "b", "x": true}': "'x', True, does not fit a column of type double",
    '{"text": "b", "x": 9007199254740993}': "'x', 9007199254740993, does not fit",
    '{"text": "b", "s": 1}': "'s', 1, does not fit a column of type string",
    '{"text": "b", "b": 1}': "'b', 1, does not fit a column of type bool",
    '{"text": "b", "l": "mn"}': "'l', 'mn', does not fit a column of type list<.*string>",
    '{"text": "b", "l": [1]}': r"'l', \[1\], does not fit",
    '{"text": "b", "o": []}': r"'o', \[\], does not fit a column of type struct<p: int64>",
    '{"text": "b", "o": {"p": 1, "q": 2}}': r"'o', \{'p': 1, 'q': 2\}, does not fit",
    '{"text": "b", "z": 0}': "'z', 0, does not fit a column of type string",
    '{"text": "b", "new": 1}': "'new' is not among those of the first rows.*'text', 'n', 'x'",
}


@pytest.mark.parametrize("line", MISFITS)
def test_parquet_error_names_the_value_that_does_not_fit(
    line: str, to_table: Callable[..., Any]
) -> None:
    fine = '{"text": "b"}'
    with pytest.raises(ValueError, match=f"line 5: the field {MISFITS[line]}.*jsonl"):
        to_table([PLAIN, PLAIN, PLAIN, fine, line, fine])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", '"a"'], "line 2: the field 'v', 'a', does not fit the values before it"),
        (["1", "2", "[3]"], r"line 3: the field 'v', \[3\], does not fit the values before it"),
        (["1", "9223372036854775808"], "line 2: the field 'v', 9223372036854775808, does not fit"),
        (["1.5", "true"], "line 2: the field 'v', True, does not fit a column of type double"),
        (["{}", "{}"], "Parquet does not support a column"),
    ],
)
def test_parquet_error_names_a_value_of_the_first_block(
    values: list[str], message: str, to_table: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=f"{message}.*jsonl"):
        to_table([f'{{"text": "", "v": {value}}}' for value in values])


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_keeps_the_type_of_numbers(
    dtype: str, to_table: Callable[..., Any], seed: int
) -> None:
    vectors = some_vectors(4, 3, dtype, seed)
    column = to_table(['{"text": ""}'] * 4, vectors).read()["embedding"].combine_chunks()
    assert column.type.list_size == 3
    assert column.values.to_numpy().dtype == dtype
    np.testing.assert_array_equal(column.values.to_numpy().reshape(4, 3), vectors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_encodings(dtype: str, to_table: Callable[..., Any], seed: int) -> None:
    """Bytes of floats are split; what repeats has a dictionary; everything is compressed."""
    lines = ['{"text": "a", "tags": ["t"], "o": {"p": 1.5}}'] * 4
    group = to_table(lines, some_vectors(4, 3, dtype, seed)).metadata.row_group(0)
    columns = {(c := group.column(i)).path_in_schema: c for i in range(group.num_columns)}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    vectors = columns.pop("embedding.list.element")
    is_float = dtype.startswith("float")
    assert ("BYTE_STREAM_SPLIT" in vectors.encodings) == is_float
    assert ("RLE_DICTIONARY" in vectors.encodings) == (not is_float)
    kinds = {"float32": "FLOAT", "float16": "FIXED_LEN_BYTE_ARRAY"}
    assert vectors.physical_type == kinds.get(dtype, "INT32")
    assert {*columns} == {"text", "tags.list.element", "o.p"}
    assert all("RLE_DICTIONARY" in c.encodings for c in columns.values())


def test_parquet_of_vectors_is_smaller_than_their_bytes(tmp_path: Path, seed: int) -> None:
    """As the sign and exponent of a unit vector's values take few forms."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from nomicbert.bulk.parquet import open_parquet, vectors_column

    vectors = np.random.default_rng(seed).normal(size=(400, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path = tmp_path / "v.parquet"
    table = pa.table({"embedding": vectors_column(vectors)})
    with path.open("wb") as file, open_parquet(file, table.schema) as writer:
        writer.write_table(table)
    read = pq.read_table(path)["embedding"].combine_chunks().values.to_numpy()
    np.testing.assert_array_equal(read.reshape(400, 384), vectors)
    assert path.stat().st_size < 0.9 * vectors.nbytes  # compressed without the split: 0.925


def test_parquet_has_checksums(to_table: Callable[..., Any], tmp_path: Path, seed: int) -> None:
    """A changed byte is an error where a reader looks at them."""
    pq = pytest.importorskip("pyarrow.parquet")
    vectors = some_vectors(3, 64, "float16", seed)
    chunk = to_table(['{"text": ""}'] * 3, vectors).metadata.row_group(0).column(1)
    path = tmp_path / "vectors.parquet"
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_parquet_columns_may_have_any_name(to_table: Callable[..., Any]) -> None:
    names = ["a.b", "embedding.list.element", "embedding.list", ""]
    lines = [json.dumps({"text": "", **dict.fromkeys(names, "x")})] * 2
    table = to_table(lines).read()
    assert [table[name].to_pylist() for name in names] == [["x", "x"]] * 4


def test_parquet_without_rows(to_table: Callable[..., Any]) -> None:
    table = to_table([], np.empty((0, 5), np.int8)).read()
    assert table.num_rows == 0
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: int8>[5]"


@pytest.mark.parametrize(
    ("path", "given_format", "expected"),
    [
        ("a.npy", None, "npy"),
        ("a.b.NPY", None, "npy"),
        ("a.jsonl", None, "jsonl"),
        ("a.ndjson", None, "jsonl"),
        ("a.parquet", None, "parquet"),
        ("a", OutputFormat.parquet, "parquet"),
        ("a.npy", OutputFormat.jsonl, "jsonl"),
        ("-", None, "jsonl"),
        ("/dev/null", None, "jsonl"),
    ],
)
def test_formats_by_suffix(path: str, given_format: OutputFormat | None, expected: str) -> None:
    assert choose_output_format(path, given_format) is OutputFormat(expected)


def test_outputs_without_a_format(tmp_path: Path) -> None:
    for name in ("a.txt", "a", "a.npz", ".npy"):
        with pytest.raises(ValueError, match=r"no known suffix: end it in \.npy, \.jsonl or \.par"):
            choose_output_format(str(tmp_path / name), None)
    for form in (OutputFormat.npy, OutputFormat.parquet):
        with pytest.raises(ValueError, match=f"/dev/null is a stream.*{form.value} needs a file"):
            choose_output_format("/dev/null", form)
    with pytest.raises(ValueError, match=f"the output {tmp_path} is a folder"):
        choose_output_format(str(tmp_path), OutputFormat.npy)


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with open_output(str(path)) as file:
        file.write(b"af")
        file.flush()
        assert path.read_bytes() == b"before"
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.read_bytes() == b"af"
        file.write(b"ter")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failed_output_leaves_no_file(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with open_output(str(tmp_path / "out")) as file:
            file.write(b"half")
            file.flush()
            assert len(list(tmp_path.iterdir())) == 1
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_failing_rename(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(OSError, match=f"^cannot write {path}: Is a directory$"):
        with open_output(str(path)):
            path.mkdir()
    assert list(tmp_path.iterdir()) == [path]


def test_two_concurrent_writers(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_output(str(path)) as first:
        first.write(b"first")
        with open_output(str(path)) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_new_file_has_default_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with open_output(str(tmp_path / "out")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_symbolic_link_is_kept(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    link, target = tmp_path / "here/link", tmp_path / "there/file"
    link.symlink_to(target)
    for content in (b"new", b"again"):
        with open_output(str(link)) as file:
            file.write(content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [len(list((tmp_path / folder).iterdir())) for folder in ("here", "there")] == [1, 1]


def test_long_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("字" * 85)  # 255 bytes, the longest there are
    with open_output(str(path)) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=message):
        yield


def test_invalid_outputs(tmp_path: Path) -> None:
    with refused(f"the output {tmp_path} is a folder"), open_output(str(tmp_path)):
        pass
    none = tmp_path / "none/out"
    with refused(f"the output's folder {none.parent} does not exist"), open_output(str(none)):
        pass
    beneath = tmp_path / "file/out"
    beneath.parent.touch()
    with refused(f"the output's folder {beneath.parent} does not"), open_output(str(beneath)):
        pass


@on_linux
def test_folder_without_files() -> None:
    with refused("^cannot write /proc/self/out: "), open_output("/proc/self/out"):
        pass  # not even root can create files there


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with refused(f"^cannot write {tmp_path}/out: Permission denied$"):
        with open_output(str(tmp_path / "out")):
            pass


@on_linux
def test_full_disk() -> None:
    with pytest.raises(OSError, match=r"^cannot write /dev/full: No space left on device$"):
        with open_output("/dev/full") as file:
            file.write(b"x")
    with pytest.raises(OSError, match=r"^cannot write /dev/full: No space left on device$"):
        with open_output("/dev/full") as file:
            file.write(b"x" * (output.BUFFER + 1))


@on_linux
def test_first_error_is_raised() -> None:
    """Closing the file fails again for the data still buffered; the first error is raised."""

    def fail() -> None:
        with open_output("/dev/full") as file:
            file.write(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_pipe_is_written_directly(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert is_stream(str(path))
    with open_output(str(path)) as file:
        file.write(b"now")
        file.flush()
        assert os.read(reader, 10) == b"now"
        os.close(reader)
        file.write(b"too late")
        with pytest.raises(BrokenPipeError):
            file.flush()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(b"private")
    path.chmod(0o600)
    with open_output(str(path)) as file:
        file.write(b"private too")
    assert path.read_bytes() == b"private too"
    assert path.stat().st_mode & 0o777 == 0o600


def test_parquet_refuses_unsupported_values(
    to_table: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert to_table(['{"text": "a", "n": ' + "[" * 30 + "]" * 30 + "}"]).metadata.num_rows == 1
    with pytest.raises(ValueError, match="line 2: the field 'n'"):  # not line 1
        to_table(['{"text": "a", "n": []}', '{"text": "a", "n": ' + "[" * 31 + "]" * 31 + "}"])
    for value in ("[" * 31 + "]" * 31, "[" * 500 + "]" * 500, "9" * 25):
        with pytest.raises(ValueError, match=r"line 1: the field 'n', .* does not fit") as caught:
            to_table([f'{{"text": "a", "n": {value}}}'])
        assert "the values before it" not in str(caught.value)
    from nomicbert.bulk.inputs import tables

    monkeypatch.setattr(tables, "MOST_COLUMNS", 3)
    lines = ['{"text": "a", "b": 1}', '{"text": "a", "c": 1}']
    assert to_table(lines).metadata.num_rows == 2
    with pytest.raises(ValueError, match="the first 3 rows have 4 different fields, but at most"):
        to_table([*lines, '{"text": "a", "d": 1}'])
