"""embed_files: the vectors of `encode` in a folder, and what makes another job of it."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nomicbert import Embedder, WorkerWarning
from nomicbert.bulk.embed_files import check_folder, embed_files
from nomicbert.bulk.encoding import EmbedderEncoder
from nomicbert.runtime import workers
from nomicbert.runtime.dispatch import Chunk, Dispatcher, Member
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same

WORDS = ["the river is long", "fox", "", "what is", "the " * 40, "fox river", "long " * 30]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "nomic-v1.5", n_layer=1))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"body": text, "id": n}) for n, text in enumerate(WORDS * 5))
    Path("texts.jsonl").write_text("\n".join(lines) + "\n")


def vectors(output: str) -> Any:
    column = pq.read_table(output)["embedding"].combine_chunks()
    found = column.flatten().to_numpy(zero_copy_only=False)
    return found.reshape(len(column), column.type.list_size)


def embed(embedder: Embedder, output: str = "out", **keywords: Any) -> Any:
    return embed_files(
        embedder, "texts.jsonl", output, field="body", prompt_name="search_document", **keywords
    )


def test_the_vectors_of_encode(embedder: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    report = embed(embedder, part_rows=8, truncate_dim=16, precision="float16")
    wanted = embedder.encode(
        WORDS * 5, prompt_name="search_document", truncate_dim=16, precision="float16"
    )
    assert (report.rows, report.parts, report.width, report.dtype) == (35, 5, 16, "float16")
    assert report.tokens == sum(embedder.token_count(WORDS * 5, "search_document"))
    same(vectors("out"), wanted)
    assert check_folder("out").ok
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.* texts were longer than 20 tokens")
def test_a_worker_that_is_killed(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one takes over its texts; the job goes on."""
    monkeypatch.setattr(workers, "LEAST_CHARACTERS", 8)
    killed, give = [], Dispatcher._give

    def giving(dispatcher: Dispatcher, member: Member, chunk: Chunk) -> None:
        give(dispatcher, member, chunk)
        if not killed:
            killed.append(member.process.pid)
            member.process.kill()

    monkeypatch.setattr(Dispatcher, "_give", giving)
    with pytest.warns(WorkerWarning, match="has died"):
        report = embed(embedder, part_rows=8, device=["cpu", "cpu"])
    assert len(killed) == 1
    assert (report.rows, check_folder("out").ok) == (35, True)
    same(vectors("out"), embedder.encode(WORDS * 5, prompt_name="search_document"))


@pytest.mark.filterwarnings("ignore:.* texts were longer than 20 tokens")
def test_an_interrupted_job_goes_on(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    from nomicbert.runtime import batches

    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    whole = embed(embedder, "whole", max_length=20, part_rows=8)
    windows, left = EmbedderEncoder.windows, [3]

    def interrupted(self: Any, *args: Any) -> Any:
        with closing(windows(self, *args)) as stream:
            for window in stream:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                yield window

    monkeypatch.setattr(EmbedderEncoder, "windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(embedder, max_length=20, part_rows=8)
    monkeypatch.setattr(EmbedderEncoder, "windows", windows)
    report = embed(embedder, max_length=20, part_rows=8)
    assert (report.kept, report.made, report.truncated) == (12, 23, whole.truncated)
    assert report.tokens == whole.tokens
    same(vectors("out"), vectors("whole"))


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"prompt_name": "search_query"}, "prompt was "),
        ({"truncate_dim": 16}, "dimension was "),
        ({"normalize_embeddings": True}, "vectors was "),
        ({"precision": "float16"}, 'precision was "float32", now it is "float16"'),
        ({"max_length": 30}, "max_length was "),
        ({"truncate": "error"}, 'truncate was "end", now it is "error"'),
    ],
)
def test_another_call_is_another_job(
    embedder: Embedder, keywords: dict[str, Any], said: str
) -> None:
    given = {"prompt_name": "search_document"}
    embed_files(embedder, ["texts.jsonl"], Path("out"), field="body", **given)
    with pytest.raises(ValueError, match=f"out holds another job: .*{said}"):
        embed_files(embedder, [Path("texts.jsonl")], "out", field="body", **{**given, **keywords})


def test_other_ranges_are_another_job(embedder: Embedder) -> None:
    ranges = np.stack([np.full(64, -1.0, np.float32), np.full(64, 1.0, np.float32)])
    assert embed(embedder, precision="int8", ranges=ranges).dtype == "int8"
    with pytest.raises(ValueError, match="ranges was "):
        embed(embedder, precision="int8", ranges=ranges * 2)


def test_another_model_is_another_job(embedder: Embedder, tmp_path: Path) -> None:
    embed(embedder)
    other = Embedder(build_checkpoint(tmp_path / "other", "nomic-v1.5", n_layer=2))
    with pytest.raises(ValueError, match=r"vectors was .*model was "):
        embed(other)
    assert embed(other, restart=True).made == 35


def test_mistakes(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="input_format must be one of text, jsonl"):
        embed(embedder, input_format="xml")
    with pytest.raises(TypeError, match="omit the keyword convert_to_tensor"):
        embed(embedder, convert_to_tensor=True)
    with pytest.raises(TypeError, match="did you mean 'part_rows'"):
        embed(embedder, part_row=5)
    with pytest.raises(ValueError, match="ranges"):
        embed(embedder, precision="int8")
    assert not Path("out").exists()


def test_a_progress_bar(embedder: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    embed(embedder, show_progress_bar=True)
    assert "35 rows (100% of input)" in capfd.readouterr().err


def test_a_check_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'out needs pyarrow: pip install ".*\[parquet\]"'):
        check_folder("out")
