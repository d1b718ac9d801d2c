"""`nomicbert embed --chunks`: a row per chunk, in each kind of file."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert import Embedder
from nomicbert.bulk.chunks import ChunkedEncoder
from nomicbert.bulk.encoding import EmbedderEncoder
from tests.cli.embed_cases import checkpoint  # noqa: F401
from tests.support.command_line import one_line, run_cli
from tests.support.sameness import same
from tests.support.vocabularies import WORDS

TEXTS = [" ".join(WORDS), "", "a short text", "  fox\r\n" * 9]


@pytest.fixture
def wanted(checkpoint: Path) -> list[tuple[int, int, int, str, np.ndarray]]:
    """Row, start, end, characters and vector of each chunk."""
    chunks = Embedder(checkpoint).encode_chunks(TEXTS, chunk_tokens=9, chunk_overlap=3, prompt="")
    places = zip(chunks.texts.tolist(), chunks.starts.tolist(), chunks.ends.tolist(), strict=True)
    return [
        (t, a, b, TEXTS[t][a:b], v) for (t, a, b), v in zip(places, chunks.vectors, strict=True)
    ]


def _run(source: Path, checkpoint: Path, out: Path, *more: str) -> str:
    args = ("-m", str(checkpoint), "--prompt", "", "--chunks", "9", "--chunk-overlap", "3", *more)
    code, _, err = run_cli("embed", str(source), *args, "-o", str(out))
    assert code == 0, err
    return one_line(err)


def test_jsonl(
    checkpoint: Path, tmp_path: Path, wanted: list[tuple[int, int, int, str, np.ndarray]]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"text": text, "n": i} for i, text in enumerate(TEXTS)]
    source.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert f"{len(wanted)} vectors" in _run(source, checkpoint, out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == len(wanted) > len(TEXTS)
    for row, (number, start, end, text, vector) in zip(found, wanted, strict=True):
        assert same(np.array(row.pop("embedding"), np.float32), vector)
        own = {"chunk_row": number, "chunk_start": start, "chunk_end": end}
        assert row == {"text": text, "n": number, **own}


def test_parquet(
    checkpoint: Path, tmp_path: Path, wanted: list[tuple[int, int, int, str, np.ndarray]]
) -> None:
    """Other columns keep their types."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    days = [datetime.date(2026, 1, 1 + i) for i in range(len(TEXTS))]
    times = pa.array(range(1, len(TEXTS) + 1), pa.time64("ns"))  # too fine for Python's times
    kinds = pa.array(["a", "b", "a", None]).dictionary_encode()
    table = {"day": days, "text": TEXTS, "time": times, "kind": kinds}
    pq.write_table(pa.table(table), source, row_group_size=3)
    _run(source, checkpoint, out)
    table = pq.read_table(out)
    assert table.schema.field("day").type == pa.date32()
    assert table["day"].to_pylist() == [days[number] for number, *_ in wanted]
    assert table["time"].cast(pa.int64()).to_pylist() == [number + 1 for number, *_ in wanted]
    assert table["kind"].to_pylist() == [kinds[number].as_py() for number, *_ in wanted]
    assert table["text"].to_pylist() == [text for _, _, _, text, _ in wanted]
    for name, place in (("chunk_row", 0), ("chunk_start", 1), ("chunk_end", 2)):
        assert table[name].to_pylist() == [one[place] for one in wanted]
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert all(map(same, vectors, (one[4] for one in wanted)))


def test_npy(
    checkpoint: Path, tmp_path: Path, wanted: list[tuple[int, int, int, str, np.ndarray]]
) -> None:
    """The places are in the second file, also of a lone text file; float16 is rounded."""
    source, out = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("\n".join(TEXTS[:3]) + "\n")
    _run(source, checkpoint, out, "--precision", "float16")
    kept = [one for one in wanted if one[0] < 3]
    vectors = np.load(out)
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, [one[4] for one in kept], rtol=1e-3, atol=1e-4)
    lines = (tmp_path / "out.meta.jsonl").read_text().splitlines()
    places = [[json.loads(line)[f"chunk_{x}"] for x in ("row", "start", "end")] for line in lines]
    assert places == [[*one[:3]] for one in kept]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--chunk-overlap", "3"], "--chunk-overlap is of the chunks that --chunks asks for"),
        (["--chunks", "9", "--truncate", "mean"], "--truncate mean is for a vector per text"),
        (["--chunks", "9", "--device", "cpu", "--device", "cpu"], "give --device once"),
        (["--chunks", "9", "--chunk-overlap", "9"], "--chunk-overlap must be 0 to 8, not 9"),
        (["--chunks", "99999"], "--chunks must be 1 to "),
        (
            ["--chunks", "9", "--max-length", "3", "--prompt", "a long prompt"],
            "no token of a text fits into 3 tokens beside the prompt and the special tokens: raise "
            "--max-length",
        ),
    ],
)
def test_mistakes(args: list[str], message: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    words = ("embed", f"{tmp_path}/in.txt", "-m", str(checkpoint), "--prompt", "", *args)
    code, _, err = run_cli(*words, "-o", f"{tmp_path}/v.npy")
    assert code == 2
    assert message in one_line(err)
    assert not (tmp_path / "v.npy").exists()


def test_chunks_are_part_of_what_vectors_are(checkpoint: Path) -> None:
    embedder = Embedder(checkpoint)
    whole = EmbedderEncoder(embedder, prompt="")
    cut = ChunkedEncoder(embedder, chunk_tokens=9, chunk_overlap=2, prompt="")
    assert cut.identity == {**whole.identity, "chunk_tokens": 9, "chunk_overlap": 2}
    assert cut.description == whole.description
    with pytest.raises(ValueError, match="batch_size does not go with chunks"):
        ChunkedEncoder(embedder, chunk_tokens=9, batch_size=3)


def test_not_to_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    words = ("embed", f"{tmp_path}/in.txt", "-m", str(checkpoint), "--chunks", "9")
    code, _, err = run_cli(*words, "-o", f"{tmp_path}/v/")
    assert code == 2
    assert f"--chunks is for an output that is a file: end {tmp_path}/v/ in .jsonl" in one_line(err)
