"""EmbedBatch without Ray: the vectors of `encode` as an Arrow column, nulls by policy, refusals."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nomicbert import Embedder
from nomicbert.bulk.embed_batch import BatchKeywords, EmbedBatch
from nomicbert.bulk.ray_data import embed_dataset
from nomicbert.loading.pretrained import EmbedderKeywords
from nomicbert.runtime.request import Request
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import HAS_ONEDNN, nearly_equal

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the river is long", "fox", "", "what is the name of the town in the north", "fox"]
DOCUMENT = {"prompt_name": "search_document"}
WIDTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("m"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


def ranges(embedder: Embedder) -> np.ndarray:
    vectors = embedder.encode(TEXTS, **DOCUMENT)
    return np.stack([vectors.min(0), vectors.max(0)])


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """(n, width) of a column without nulls."""
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    if not HAS_ONEDNN and found.dtype == np.float32:
        return nearly_equal(found, wanted)
    return found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"matryoshka_dim": 32, "precision": "float16"},
        {"truncate_dim": 24, "normalize_embeddings": True},
        {"prompt": "clustering: ", "prompt_name": None, "max_length": 16, "truncate": "mean"},
        {"precision": "int8", "ranges": ...},
        {"precision": "uint8", "ranges": ..., "batch_size": 2, "batch_tokens": 64},
        {"precision": "ubinary"},
    ],
    ids=str,
)
def test_the_column_has_the_bits_of_encode(
    keywords: dict[str, Any], folder: Path, embedder: Embedder
) -> None:
    keywords = {**DOCUMENT, **keywords}
    if "ranges" in keywords:
        keywords["ranges"] = ranges(embedder)
    chunked = pa.chunked_array([TEXTS[:2], [], TEXTS[2:]], pa.string())
    table = pa.table({"id": [5, 3, 4, 1, 2], "body": chunked})
    embed = EmbedBatch(folder, column="body", output="v", **keywords)
    found = embed(table)
    assert found.select(["id", "body"]).equals(table)
    wanted = np.asarray(embedder.encode(TEXTS, **keywords))
    assert found.schema.field("v").type == pa.list_(
        pa.from_numpy_dtype(wanted.dtype), wanted.shape[1]
    )
    assert same(vectors_of(found["v"]), wanted)
    empty = embed(table.slice(0, 0))
    assert empty.schema == found.schema
    assert empty.num_rows == 0


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_all_kinds_of_strings(kind: pa.DataType, folder: Path, embedder: Embedder) -> None:
    table = pa.table({"text": pa.array(TEXTS).cast(kind)})
    found = EmbedBatch(folder, **DOCUMENT)(table)["embedding"]
    assert same(vectors_of(found), embedder.encode(TEXTS, **DOCUMENT))


WITH_NULLS = pa.table({"id": [7, 8, 9], "text": ["fox", None, "the river"]})


def test_a_null_is_an_error_that_names_the_row(folder: Path) -> None:
    embed = EmbedBatch(folder, **DOCUMENT)
    message = r"^row 1 of a block \(\{'id': 8\}\): the text in column 'text' is null: give on_null="
    with pytest.raises(ValueError, match=message):
        embed(WITH_NULLS)


def test_nulls_by_policy(folder: Path, embedder: Embedder, tmp_path: Path) -> None:
    wanted = embedder.encode(["fox", "", "the river"], **DOCUMENT)
    found = EmbedBatch(folder, on_null="empty", **DOCUMENT)(WITH_NULLS)
    assert same(vectors_of(found["embedding"]), wanted)
    assert found["text"].null_count == 1

    found = EmbedBatch(folder, on_null="null", **DOCUMENT)(WITH_NULLS)
    pq.write_table(found, tmp_path / "vectors.parquet")
    column = pq.read_table(tmp_path / "vectors.parquet")["embedding"]
    # pyarrow before 26 cannot read nulls among lists of fixed size
    assert column.type == found.schema.field("embedding").type == pa.list_(pa.float32())
    assert column.is_null().to_pylist() == [False, True, False]
    assert same(np.stack(column.drop_null().to_numpy()), wanted[[0, 2]])

    nothing = pa.table({"text": pa.nulls(2)})  # a block of JSON without a single text
    embed = EmbedBatch(folder, on_null="null", **DOCUMENT)
    assert embed(nothing)["embedding"].null_count == 2
    assert embed(WITH_NULLS.slice(0, 0)).schema == found.schema


def test_what_is_refused_in_a_table(folder: Path) -> None:
    embed = EmbedBatch(folder, max_length=8, truncate="error", **DOCUMENT)
    for table, message in (
        ({"body": ["a"]}, "there is no column 'text', only 'body'"),
        ({"text": [1, 2]}, "column 'text' has the type int64, not strings"),
        ({"text": [["a"]]}, "column 'text' has the type list"),
        ({"text": ["a"], "embedding": [1]}, "there is a column 'embedding' already"),
        (
            {"text": ["fox", "fox " * 9], "page": [3, 4]},
            r"row 1 of a block \({'page': 4}\): the text in column 'text' is longer than 8 tokens",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            embed(pa.table(table))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"promt_name": "x"}, TypeError, "EmbedBatch has no keyword 'promt_name': did you mean"),
        ({"output_value": "x"}, TypeError, "EmbedBatch has no keyword 'output_value'"),
        ({"devise": "cpu"}, TypeError, "did you mean 'device'"),
        ({"on_null": "skip"}, ValueError, "on_null must be one of error, empty, null, not 'skip'"),
        ({"precision": "int8"}, ValueError, "precision 'int8' needs ranges, the same for all"),
        ({"precision": "int4"}, ValueError, "precision must be one of float32, "),
        ({"threads": 0}, ValueError, "threads must be at least 1, not 0"),
        ({"threads": 1.5}, TypeError, "threads must be an integer"),
        ({"matryoshka_dim": 999}, ValueError, "matryoshka_dim"),
        ({"prompt_name": "no"}, ValueError, "prompt"),
    ],
    ids=str,
)
def test_what_is_refused_at_once(
    keywords: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        EmbedBatch(folder, **keywords)


def test_keywords_of_loading(folder: Path) -> None:
    embed = EmbedBatch(folder, dtype="bfloat16", **DOCUMENT)
    found = vectors_of(embed(pa.table({"text": TEXTS}))["embedding"])
    wanted = Embedder(folder, dtype="bfloat16").encode(TEXTS, **DOCUMENT)
    assert found.tobytes() == wanted.tobytes()  # of one batch
    assert embed.embedder.model.dtype is torch.bfloat16


def test_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # so that it is as before afterwards
    monkeypatch.delenv("RAYON_NUM_THREADS")
    EmbedBatch(folder)
    assert torch.get_num_threads() == 1  # the test's
    assert "RAYON_NUM_THREADS" not in os.environ
    EmbedBatch(folder, threads=2)
    assert torch.get_num_threads() == 2
    assert os.environ["RAYON_NUM_THREADS"] == "2"


def test_the_keywords_are_those_of_embedder_and_encode() -> None:
    """A new keyword of `encode` is taken too, or named here."""
    not_here = {
        "chunk_size",  # of several processes
        "convert_to_numpy",
        "convert_to_tensor",
        "device",  # that of loading
        "output_value",
        "pool",
        "processing_kwargs",  # max_length is
        "show_progress_bar",
        "task",
    }
    encode = set(Request.__dataclass_fields__) - not_here
    assert set(BatchKeywords.__annotations__) == encode | set(EmbedderKeywords.__annotations__)
    for function in (EmbedBatch.__init__, EmbedBatch.__call__, embed_dataset):
        said = {name: str(kind) for name, kind in inspect.get_annotations(function).items()}
        assert said
        assert not [kind for kind in said.values() if re.search(r"\bAny\b", kind)]


def test_without_ray_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"embed_dataset needs Ray Data: pip install .*\[ray\]"):
        embed_dataset(None, folder, workers=1)  # type: ignore[arg-type]


def test_it_does_not_import_ray() -> None:
    code = "import sys, nomicbert.bulk.ray_data; print('ray' in sys.modules)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "False\n"
