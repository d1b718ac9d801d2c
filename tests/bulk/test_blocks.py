"""bulk from Python: a file of texts into a file of vectors, without a word on any stream."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.bulk.blocks import Written, embed_all
from nomicbert.bulk.output import OutputFormat, choose_output_format, open_output
from nomicbert.bulk.reading import InputFormat, open_reader
from tests.support.checkpoints import build_checkpoint

TEXTS = ["the river is long", "fox", "", "what is"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "minilm", num_hidden_layers=1))


def test_lines_into_an_array(
    embedder: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "texts.txt", str(tmp_path / "vectors.npy")
    source.write_text("\n".join(TEXTS) + "\n", "utf-8")
    reader = open_reader(str(source), InputFormat.text, "text")
    with open_output(target) as file:
        form = choose_output_format(target, None)
        found = embed_all(embedder, reader, form, [file], truncate_dim=8, precision="float16")
    reader.close()
    assert found == Written(4, 8, "float16", 0, "")
    wanted = embedder.encode(TEXTS, truncate_dim=8, precision="float16")
    assert np.array_equal(np.load(target), wanted)
    assert capfd.readouterr() == ("", "")


def test_objects_into_any_binary_file(
    embedder: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A vector that is none is counted, and its line told; nothing is said."""
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS), "utf-8")
    reader = open_reader(str(source), InputFormat.jsonl, "body")
    word = embedder.tokenizer.rust.token_to_id("fox")
    table = embedder.model.embeddings.word.weight
    kept = table[word].clone()
    file = io.BytesIO()
    with torch.no_grad():
        table[word] = torch.nan
        try:
            found = embed_all(embedder, reader, OutputFormat.jsonl, [file], "body")
        finally:
            table[word] = kept
            reader.close()
    assert (found.vectors, found.broken) == (4, 1)
    assert found.first_broken == f"{source}, line 2"
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [row["body"] for row in rows] == TEXTS
    assert [bool(np.isnan(row["embedding"]).any()) for row in rows] == [False, True, False, False]
    assert capfd.readouterr() == ("", "")


def test_a_text_that_is_too_long_is_named_by_its_line(embedder: Embedder, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("fox\n" + "fox " * 30 + "\n", "utf-8")
    reader = open_reader(str(source), InputFormat.text, "text")
    with pytest.raises(ValueError, match=r"texts.txt, line 2: it is longer than 8 tokens"):
        embed_all(
            embedder,
            reader,
            OutputFormat.jsonl,
            [io.BytesIO()],
            max_length=8,
            truncate="error",
        )
    reader.close()


@pytest.mark.parametrize("name", ["convert_to_tensor", "convert_to_numpy", "output_value"])
def test_what_is_no_array_of_vectors(name: str, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("fox\n", "utf-8")
    reader = open_reader(str(tmp_path / "texts.txt"), InputFormat.text, "text")
    with pytest.raises(TypeError, match=f"{name} has no meaning here"):
        embed_all(embedder, reader, OutputFormat.jsonl, [io.BytesIO()], **{name: True})  # type: ignore[arg-type]
    reader.close()
