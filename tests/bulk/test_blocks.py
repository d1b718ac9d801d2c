"""bulk from Python: inputs -> one file of vectors, with no output on stdout or stderr."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.bulk import blocks
from nomicbert.bulk.blocks import Written, embed_all
from nomicbert.bulk.encoding import EmbedderEncoder, Encoder
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Span
from nomicbert.bulk.inputs.sources import find_sources
from nomicbert.bulk.output import OutputFormat, choose_output_format, open_output, open_writer
from nomicbert.bulk.progress import BulkProgress
from tests.bulk.stand_in import StandIn, vectors_of
from tests.support.checkpoints import build_checkpoint

TEXTS = ["the river is long", "fox", "", "what is"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "minilm", num_hidden_layers=1))


def feed_of(*paths: Path, **policy: Any) -> Feed:
    sources = find_sources([str(path) for path in paths], None)
    return Feed(sources, [Span(index) for index in range(len(sources))], **policy)


def objects_of(
    encoder: Encoder, feed: Feed, **keywords: Any
) -> tuple[list[dict[str, Any]], Written]:
    """The objects of a JSONL output, and the summary."""
    file = io.BytesIO()
    with open_writer(OutputFormat.jsonl, [file], encoder.empty) as write:
        written = embed_all(encoder, feed, write, BulkProgress("none"), **keywords)
    return [json.loads(line) for line in file.getvalue().splitlines()], written


def test_text_lines_to_npy(
    embedder: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "texts.txt", str(tmp_path / "vectors.npy")
    source.write_text("\n".join(TEXTS) + "\n", "utf-8")
    encoder = EmbedderEncoder(embedder, truncate_dim=8, precision="float16")
    with open_output(target) as file:
        with open_writer(choose_output_format(target, None), [file], encoder.empty) as write:
            found = embed_all(encoder, feed_of(source), write, BulkProgress("none"))
    tokens = sum(embedder.token_count(TEXTS))
    assert found == Written(4, 8, "float16", tokens, 0, 0, 0, 0, "")
    wanted = embedder.encode(TEXTS, truncate_dim=8, precision="float16")
    assert np.array_equal(np.load(target), wanted)
    assert capfd.readouterr() == ("", "")


def test_jsonl_to_any_binary_file(
    embedder: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Vectors with NaN are counted, and the line of the first is returned; nothing is printed."""
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS), "utf-8")
    word = embedder.tokenizer.rust.token_to_id("fox")
    table = embedder.model.embeddings.word.weight
    kept = table[word].clone()
    with torch.no_grad():
        table[word] = torch.nan
        try:
            rows, found = objects_of(EmbedderEncoder(embedder), feed_of(source, field="body"))
        finally:
            table[word] = kept
    assert (found.vectors, found.broken) == (4, 1)
    assert found.first_broken == f"{source}, line 2"
    assert [row["body"] for row in rows] == TEXTS
    assert [bool(np.isnan(row["embedding"]).any()) for row in rows] == [False, True, False, False]
    assert capfd.readouterr() == ("", "")


def test_error_names_the_line_of_a_long_text(embedder: Embedder, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("fox\n" + "fox " * 30 + "\n", "utf-8")
    encoder = EmbedderEncoder(embedder, max_length=8, truncate="error")
    with pytest.raises(ValueError, match=r"texts.txt, line 2: it is longer than 8 tokens"):
        objects_of(encoder, feed_of(source))


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three sources: texts, JSONL with blank lines, texts; each with rows that are refused."""
    contents = {
        "a.txt": b"a0\nlong one\na2\n\xff\na4\n",
        "b.jsonl": b'{"text": "b0 b b"}\n\n{"text": 1}\n{"text": "b3", "n": 3}\nno\n\n',
        "c.txt": b"long\nnan\nc2 c c c\nlong\n",
    }
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    return paths


KEPT = ["a0", "a2", "a4", "b0 b b", "b3", "nan", "c2 c c c"]
REFUSED = [
    ("a.txt", 1, "the text is too long", "long one"),
    ("a.txt", 3, "byte 1 (0xff) is not UTF-8: convert the input first", "\ufffd"),
    ("b.jsonl", 2, "the field 'text' must be a string, not a number", '{"text": 1}'),
    ("b.jsonl", 4, "not JSON: Expecting value at column 1", "no"),
    ("c.txt", 0, "the text is too long", "long"),
    ("c.txt", 3, "the text is too long", "long"),
]


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("window", [1, 2, 3, 100])
@pytest.mark.parametrize("block", [1, 2, 100])
def test_rows_that_cannot_be_used_are_left_out(
    block: int, window: int, ahead: int, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the encoder reads ahead: every other row once, in order, with its vector."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block)
    rejects = io.BytesIO()
    feed = feed_of(*three, on_error="skip")
    rows, found = objects_of(StandIn(window, ahead), feed, rejects=rejects)
    assert [row["text"] for row in rows] == KEPT
    np.testing.assert_array_equal([row["embedding"] for row in rows], vectors_of(KEPT))
    refused = sorted(map(json.loads, rejects.getvalue().splitlines()), key=lambda o: o["source"])
    assert [tuple(each.values()) for each in refused] == [
        (str(three[0].with_name(name)), *others) for name, *others in REFUSED
    ]
    assert list(refused[0]) == ["source", "row", "problem", "content"]
    assert (found.vectors, found.skipped, found.rejected) == (7, 2, 6)
    assert (found.truncated, found.tokens) == (0, 12)
    assert (found.broken, found.first_broken) == (1, f"{three[2]}, line 2")


def test_texts_that_were_cut_are_counted(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_text("a b c\nd\nlong\ne f\n")
    _, found = objects_of(StandIn(window=3, limit=2, refuses=False), feed_of(path))
    assert (found.vectors, found.truncated, found.tokens) == (4, 2, 7)


@pytest.mark.parametrize("ahead", [0, 5])
def test_a_row_that_cannot_be_used_is_an_error(ahead: int, three: list[Path]) -> None:
    """The first one, or the first that is read: an encoder reads ahead of what it embeds."""
    for first, message in (
        (0, "a.txt, line 4: byte 1" if ahead else "a.txt, line 2: it is too long"),
        (1, "b.jsonl, line 3: the field 'text' must be"),
        (2, "c.txt, line 1: it is too long"),
    ):
        with pytest.raises(ValueError, match=message):
            objects_of(StandIn(2, ahead), feed_of(*three[first:]))


def test_texts_are_numbered_by_their_place_in_the_output(three: list[Path]) -> None:
    names = {str(three[0]), str(three[2])}
    rows, _ = objects_of(
        StandIn(),
        feed_of(*three, on_error="skip"),
        rejects=io.BytesIO(),
        numbered=names,
    )
    for row in rows:
        row.pop("embedding")
    a, _, c = map(str, three)
    assert rows == [
        {"id": 0, "source": a, "text": "a0"},
        {"id": 1, "source": a, "text": "a2"},
        {"id": 2, "source": a, "text": "a4"},
        {"text": "b0 b b"},
        {"text": "b3", "n": 3},
        {"id": 5, "source": c, "text": "nan"},
        {"id": 6, "source": c, "text": "c2 c c c"},
    ]
    assert list(rows[0]) == ["id", "source", "text"]
    feed = feed_of(three[0], on_error="skip")
    rows, _ = objects_of(StandIn(), feed, rejects=io.BytesIO(), numbered={a})
    assert list(rows[2]) == ["id", "text", "embedding"]


def test_a_row_that_does_not_fit_the_output(tmp_path: Path) -> None:
    path, texts = tmp_path / "d.jsonl", tmp_path / "e.txt"
    lines = [{"text": "d0"}, {"text": "d1", "embedding": 1}, {"text": "d2"}]
    texts.write_text("e0\ne1\n")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"d.jsonl, line 2: the field 'embedding' is reserved"):
        objects_of(StandIn(), feed_of(path))
    rejects = io.BytesIO()
    rows, found = objects_of(
        StandIn(window=9),
        feed_of(path, texts, on_error="skip"),
        rejects=rejects,
        numbered={str(texts)},
    )
    kept = ["d0", "d2", "e0", "e1"]
    assert [row["text"] for row in rows] == kept
    assert [row.get("id") for row in rows] == [None, None, 2, 3]
    np.testing.assert_array_equal([row["embedding"] for row in rows], vectors_of(kept))
    assert json.loads(rejects.getvalue())["content"] == '{"text": "d1", "embedding": 1}'
    assert (found.vectors, found.rejected) == (4, 1)


def test_refused_rows_are_noted_in_their_order(tmp_path: Path) -> None:
    """Those that cannot be read, and those that do not fit the output."""
    path, bad = tmp_path / "d.jsonl", '{"text": "x", "embedding": 1}'
    path.write_text("\n".join(['{"text": "a"}', bad, "no", bad, '{"text": "b"}', "no", bad, "no"]))
    rejects = io.BytesIO()
    rows, found = objects_of(StandIn(9), feed_of(path, on_error="skip"), rejects=rejects)
    assert [row["text"] for row in rows] == ["a", "b"]
    refused = [json.loads(line)["row"] for line in rejects.getvalue().splitlines()]
    assert refused == [1, 2, 3, 5, 6, 7]
    assert found.rejected == 6


def test_long_lines_are_written_in_smaller_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 3)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    path = tmp_path / "texts.txt"
    texts = ["a", "b", "c", "d", "x" * 300, "e", "f", "g"]
    path.write_text("".join(text + "\n" for text in texts))
    sizes = []

    def write(rows: Any, vectors: Any) -> None:
        sizes.append(len(rows))
        np.testing.assert_array_equal(vectors, vectors_of([row.text for row in rows]))

    embed_all(StandIn(window=4), feed_of(path), write, BulkProgress("none"))
    # three rows, or fewer where they come to a hundred bytes: the fifth has 300
    assert sizes == [3, 2, 3]


def test_progress_counts_rows_bytes_and_tokens(three: list[Path]) -> None:
    progress = BulkProgress("none", total=three[1].stat().st_size)
    encoder = StandIn()
    with open_writer(OutputFormat.jsonl, [io.BytesIO()], encoder.empty) as write:
        feed = feed_of(three[1], on_error="skip")
        embed_all(encoder, feed, write, progress, rejects=io.BytesIO())
    assert (progress.rows, progress.tokens) == (2, 4)
    # all but what follows the last row that has a vector
    assert progress.fraction == 1 - len(b"no\n\n") / three[1].stat().st_size


def test_an_encoder_that_gives_fewer_vectors_than_texts(tmp_path: Path) -> None:
    class Short(StandIn):
        def windows(self, *arguments: Any) -> Any:
            *found, _ = super().windows(*arguments)
            yield from found

    (path := tmp_path / "a.txt").write_text("a\n" * 7)
    with pytest.raises(RuntimeError, match="before all of its texts had vectors"):
        objects_of(Short(window=3), feed_of(path))
