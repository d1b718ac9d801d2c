"""runtime.inputs: what a call embeds or scores is what its argument seems to hold, or an error."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert import CrossEncoder, Embedder
from nomicbert.errors import TextError
from nomicbert.runtime.inputs import as_iterator, checked
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

TEXTS = ["what is deep learning", "the river is long"]
PAIRS = [("what is", "the river"), ("deep", "learning is long")]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("e"), "minilm", num_hidden_layers=1))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    return CrossEncoder(build_reranker(tmp_path_factory.mktemp("r")))


class Table:
    """What all libraries' tables have: columns by name, and an iteration over something else."""

    def __init__(self, columns: dict[str, list[str]]) -> None:
        self._columns = columns

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)


def tables() -> Iterator[Any]:
    """One of each library that is installed, and one of none."""
    columns = {"text": TEXTS}
    yield Table(columns)
    for library, build in (
        ("pandas", "DataFrame"),
        ("polars", "DataFrame"),
        ("pyarrow", "table"),
        ("pyarrow", "record_batch"),
    ):
        try:
            yield getattr(__import__(library), build)(columns)
        except ImportError:
            continue
    try:
        import datasets
    except ImportError:
        return
    found = datasets.Dataset.from_dict(columns)
    yield from (found, found.to_iterable_dataset(), datasets.DatasetDict(train=found))


def calls(embedder: Embedder, reranker: CrossEncoder) -> dict[str, Callable[[Any], Any]]:
    """Every call that takes texts or pairs."""
    return {
        "encode": embedder.encode,
        "encode_query": embedder.encode_query,
        "encode_document": embedder.encode_document,
        "encode_iter": lambda x: list(embedder.encode_iter(x)),
        "token_count": embedder.token_count,
        "batch": embedder.batch,
        "predict": reranker.predict,
        "rank": lambda x: reranker.rank("what is", x),
    }


def test_as_iterator() -> None:
    assert list(as_iterator(("a", "b"))) == ["a", "b"]
    texts = iter("ab")
    assert as_iterator(texts) is texts
    for wrong in (b"a", bytearray(b"a"), {"a": 1}, OrderedDict(a=1), {"a"}, frozenset()):
        with pytest.raises(TypeError, match=f"collection of str, not {type(wrong).__name__}"):
            as_iterator(wrong)


@given(st.lists(st.text("a北😀\ud800\udfff", max_size=3), max_size=4))
def test_valid_unicode_passes(texts: list[str]) -> None:
    flawed = [i for i, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text)]
    if not flawed:
        assert list(checked(texts)) == texts
        return
    with pytest.raises(TextError) as caught:
        list(checked(texts))
    assert caught.value.index == flawed[0]
    place = next(i for i, c in enumerate(texts[flawed[0]]) if "\ud800" <= c <= "\udfff")
    assert str(caught.value).endswith(f"at character {place}")


@pytest.mark.parametrize("wrong", [None, 3, b"a", ["a"], {"a": 1}, float("nan")])
def test_invalid_inputs(wrong: Any) -> None:
    texts = checked(["a", "b", wrong])
    assert [next(texts), next(texts)] == ["a", "b"]
    with pytest.raises(TypeError, match=f"^input 2 must be a str, not {type(wrong).__name__}: "):
        next(texts)


def test_tables_are_refused(embedder: Embedder, reranker: CrossEncoder) -> None:
    """They yield the names of their columns, or rows, and one of their columns is meant."""
    for table in tables():
        for name, call in calls(embedder, reranker).items():
            argument = "documents" if name == "rank" else "inputs"
            remedy = "as in zip" if name == "predict" else rf"as in {argument}\['text'\]"
            wanted = rf"^{argument} must be .*, not {type(table).__name__}\. Give .*{remedy}"
            with pytest.raises(TypeError, match=wanted):
                call(table)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"text": TEXTS}, "Give .* of its"),
        ({"text": TEXTS}.keys(), r"Give list\(...\) of it"),
        (set(TEXTS), r"Give sorted\(...\) of it"),
        (bytearray(b"ab"), "Decode it"),
        (np.array("what is"), r"Give its .item\(\)"),
        (io.StringIO("a\nb"), r"keep their line ends. Give file.read\(\).splitlines\(\)"),
    ],
    ids=["dict", "keys", "set", "bytes", "array", "file"],
)
def test_other_arguments_that_mislead(
    wrong: Any, remedy: str, embedder: Embedder, reranker: CrossEncoder
) -> None:
    for call in calls(embedder, reranker).values():
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}.*{remedy}"):
            call(wrong)


def test_an_open_file(tmp_path: Path, embedder: Embedder) -> None:
    path = tmp_path / "texts"
    path.write_text("\n".join(TEXTS), "utf-8")
    with path.open(encoding="utf-8") as file, pytest.raises(TypeError, match="not TextIOWrapper"):
        embedder.encode(file)
    np.testing.assert_array_equal(
        embedder.encode(path.read_text("utf-8").splitlines()), embedder.encode(TEXTS)
    )


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ([TEXTS], "Give one flat list of texts; pairs are for CrossEncoder"),
        ([("a", "b")], "Give one flat list of texts"),
        (np.array([TEXTS]), "Give one flat list of texts"),
        ([{"text": "a"}], r"Give the texts under one of its keys, as in \[row\['text'\] for row"),
        (np.array([b"a"]), "Decode it"),
        ([None], "Leave it out, or give '' in its place"),
        ([float("nan")], "Leave it out, or give '' in its place"),
        ([np.int64(3)], r"not int64: [^.]*(np.int64\()?3\)?$"),
    ],
)
def test_elements_that_are_no_texts(wrong: Any, remedy: str, embedder: Embedder) -> None:
    with pytest.raises(TypeError, match=f"input 0 must be a str, .*{remedy}"):
        embedder.encode(wrong)


def test_columns_are_texts(embedder: Embedder) -> None:
    """A Series by its values, whatever its index; a column of Arrow is not of str."""
    wanted = embedder.encode(TEXTS)
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": TEXTS}, index=[7, 3])
    columns = [frame["text"], frame["text"].astype("category"), pandas.Index(TEXTS)]
    columns += [polars.Series(TEXTS), datasets.Dataset.from_dict({"text": TEXTS})["text"]]
    for column in columns:
        np.testing.assert_array_equal(embedder.encode(column), wanted)
        np.testing.assert_array_equal(np.stack([*embedder.encode_iter(column)]), wanted)
        assert embedder.token_count(column) == embedder.token_count(TEXTS)
    column = arrow.table({"text": TEXTS})["text"]
    with pytest.raises(TypeError, match=r"not StringScalar.* Give the column's .to_pylist\(\)"):
        embedder.encode(column)
    np.testing.assert_array_equal(embedder.encode(column.to_pylist()), wanted)
    with pytest.raises(TypeError, match=r"input 1 must be a str, not .* Leave it out"):
        embedder.encode(pandas.Series(["a", pandas.NA], dtype="string"))


def test_forms_of_pairs(reranker: CrossEncoder) -> None:
    wanted = reranker.predict(PAIRS)
    columns = [[pair[side] for pair in PAIRS] for side in (0, 1)]
    objects = np.empty(2, object)
    objects[:] = PAIRS
    for pairs in (tuple(PAIRS), iter(PAIRS), np.array(PAIRS), zip(*columns, strict=True), objects):
        np.testing.assert_array_equal(reranker.predict(pairs), wanted)
    for pair in (PAIRS[0], list(PAIRS[0]), np.array(PAIRS[0]), np.array(PAIRS[0], object)):
        found = reranker.predict(pair)
        assert np.ndim(found) == 0
        np.testing.assert_allclose(found, wanted[0], atol=1e-6)
    loose = tuple(np.array(PAIRS[0]))
    assert type(loose[0]) is not str
    np.testing.assert_allclose(reranker.predict(loose), wanted[0], atol=1e-6)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(PAIRS, columns=["query", "text"])
    for pairs in (frame.to_numpy(), frame.itertuples(index=False), pandas.Series(PAIRS)):
        np.testing.assert_array_equal(reranker.predict(pairs), wanted)


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        ("a", "abc", r"documents must be a collection of str, not one text: give \[text\]"),
        (["a"], ["b"], r"query must be one str, not list: \['a'\]"),
        (None, ["b"], "query must be one str, not NoneType"),
        ("a", [b"b"], "input 0 must be a str, not bytes: b'b'. Decode it"),
        ("a", 3, "documents must be an ordered collection of str, not int"),
    ],
)
def test_mistaken_documents(
    query: Any, documents: Any, message: str, reranker: CrossEncoder
) -> None:
    with pytest.raises(TypeError, match=message):
        reranker.rank(query, documents)


def test_forms_of_documents(reranker: CrossEncoder) -> None:
    wanted = reranker.rank("what is", TEXTS, return_documents=True)
    for documents in (iter(TEXTS), np.array(TEXTS), tuple(TEXTS)):
        assert reranker.rank("what is", documents, return_documents=True) == wanted
