"""bulk from Python: a file of texts -> a file of vectors, with no output on stdout or stderr."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert import Embedder, VectorWarning
from nomicbert.bulk.blocks import Written, embed_all
from nomicbert.bulk.output import OutputFormat, choose_output_format, open_output
from nomicbert.bulk.reading import InputFormat, open_reader
from tests.support.checkpoints import build_checkpoint

TEXTS = ["the river is long", "fox", "", "what is"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "minilm", num_hidden_layers=1))


def test_text_lines_to_npy(
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


def test_jsonl_to_any_binary_file(
    embedder: Embedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Vectors with NaN are counted, and the line of the first is returned; nothing is printed."""
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
            with pytest.warns(VectorWarning, match="1 rows computed from 4 texts"):
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


def test_error_names_the_line_of_a_long_text(embedder: Embedder, tmp_path: Path) -> None:
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
def test_keywords_not_for_files(name: str, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("fox\n", "utf-8")
    reader = open_reader(str(tmp_path / "texts.txt"), InputFormat.text, "text")
    with pytest.raises(TypeError, match=f"omit the keyword {name}"):
        embed_all(embedder, reader, OutputFormat.jsonl, [io.BytesIO()], **{name: True})  # type: ignore[arg-type]
    reader.close()
