"""`nomicbert search` on notes and on vectors, with a small model."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert.cli import demo, search
from nomicbert.embedder import Embedder
from tests.cli.embed_cases import needs_pyarrow
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import one_line, run_cli
from tests.support.rerankers import build_reranker

pytestmark = needs_pyarrow

NOTES = {
    "cats.md": "# Cats\nThey purr when they are content.\n\n# Dogs\nThey bark at the postman.\n",
    "more/river.txt": "The river is long and wide.\r\n\r\nIt ends in the sea.\r\n",
    "rows.jsonl": '{"text": "A stock symbol.", "n": 7}\n',
}
TEXTS = [
    ("notes/cats.md:2", "Cats\nThey purr when they are content."),
    ("notes/cats.md:5", "Dogs\nThey bark at the postman."),
    ("notes/more/river.txt:1", "The river is long and wide.\n\nIt ends in the sea."),
    ("notes/rows.jsonl:1", "A stock symbol."),
]
QUESTION = "Which animals bark?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("c"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reranker(tmp_path_factory.mktemp("r"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    for name, content in NOTES.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return tmp_path


def ask(*args: str) -> tuple[str, str]:
    code, out, err = run_cli("search", *args)
    assert code == 0, err
    return out, err


def document(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(*args, "--json")[0])
    return found


def wanted(checkpoint: Path, question: str = QUESTION, **call: Any) -> list[tuple[str, float]]:
    """Place and cosine of every text, best first."""
    embedder = Embedder(checkpoint)
    texts = np.asarray(embedder.encode_document([text for _, text in TEXTS], **call))
    asked = np.asarray(embedder.encode_query(question, **call))
    lengths = np.linalg.norm(texts, axis=1) * np.linalg.norm(asked)
    scores = texts @ asked / lengths
    return [(TEXTS[i][0], float(scores[i])) for i in np.argsort(-scores)]


def test_notes_to_an_answer_and_again(checkpoint: Path) -> None:
    out, err = ask("notes", QUESTION, "-m", str(checkpoint), "-k", "3")
    assert one_line(err) == "nomicbert: embedding 3 files into notes/.nomicbert/vectors\n"
    expected = wanted(checkpoint)
    heads = [line for line in out.splitlines() if not line.startswith("    ")]
    assert heads == [
        f" {rank}  {score:.3f}  {where}" for rank, (where, score) in enumerate(expected[:3], 1)
    ]
    assert ask("notes", QUESTION, "-m", str(checkpoint), "-k", "3") == (out, "")


def test_places_are_those_of_this_working_directory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("notes", QUESTION, "-m", str(checkpoint))
    monkeypatch.chdir("notes/more")
    found = document("..", QUESTION, "-m", str(checkpoint))["answers"][0]["results"]
    assert [hit["where"] for hit in found] == [
        where.replace("notes/", "../") for where, _ in wanted(checkpoint)
    ]
    assert {hit["fields"]["source"] for hit in found} == {f"../{name}" for name in NOTES}


def test_a_changed_file(checkpoint: Path) -> None:
    arguments = ("notes", "--question", QUESTION, "-m", str(checkpoint))
    document(*arguments)
    Path("notes/cats.md").write_text("# Dogs\n" + QUESTION + "\n")
    out, err = ask(*arguments, "--json")
    assert "cats.md" in one_line(err)
    assert ": embedding what is new\n" in err
    (answer,) = json.loads(out)["answers"]
    texts = [hit["text"] for hit in answer["results"]]
    assert len(texts) == 3
    assert f"Dogs\n{QUESTION}" in texts
    assert "Cats\nThey purr when they are content." not in texts


def test_the_document(checkpoint: Path) -> None:
    Path("questions.txt").write_text(f"\ufeff{QUESTION}\n\n What ends in the sea? \n", "utf-8")
    found = document("notes/", "--questions", "questions.txt", "-m", str(checkpoint))
    assert found["rows"] == 4
    assert found["dimension"] == 64
    assert (found["vectors"], found["model"]) == ("notes/.nomicbert/vectors", str(checkpoint))
    assert (found["bits"], found["reranker"]) == (False, None)
    questions = [answer["question"] for answer in found["answers"]]
    assert questions == [QUESTION, "What ends in the sea?"]
    for answer in found["answers"]:
        expected = wanted(checkpoint, answer["question"])
        assert [hit["where"] for hit in answer["results"]] == [where for where, _ in expected]
        for rank, (hit, (_, score)) in enumerate(zip(answer["results"], expected, strict=True), 1):
            assert (hit["rank"], hit["reranker_score"]) == (rank, None)
            assert hit["score"] == pytest.approx(score, abs=1e-5)
            assert (hit["where"], hit["text"]) == TEXTS[hit["row"]]
    symbol = next(h for h in found["answers"][0]["results"] if h["where"] == "notes/rows.jsonl:1")
    assert symbol["fields"] == {"n": 7, "line": None, "source": "notes/rows.jsonl", "row": 0}


CALLS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": ([], {}),
    "matryoshka": (["--matryoshka-dim", "16"], {"matryoshka_dim": 16}),
    "cut": (["--truncate-dim", "16"], {"truncate_dim": 16}),
    "of length 1": (["--truncate-dim", "8", "--normalize"], {"truncate_dim": 8}),
    "half": (["--precision", "float16"], {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_vectors_bring_their_model_and_its_options(checkpoint: Path, name: str) -> None:
    options, call = CALLS[name]
    lines = [json.dumps({"body": text, "id": where}) for where, text in TEXTS]
    Path("texts.jsonl").write_text("\n".join(lines))
    embed = ("embed", "texts.jsonl", "--field", "body", "-m", str(checkpoint), "-o", "v/")
    code, _, err = run_cli(*embed, "--prompt-name", "search_document", *options)
    assert code == 0, err
    expected = wanted(checkpoint, **call)
    for more in ([], ["--bits"]):
        found = document("v", QUESTION, *more)
        assert found["dimension"] == len(Embedder(checkpoint).encode_query("a", **call))
        results = found["answers"][0]["results"]
        assert [hit["where"] for hit in results] == [where for where, _ in expected]
        scores = [hit["score"] for hit in results]
        assert scores == pytest.approx([score for _, score in expected], abs=2e-3)
    assert Path("v/_search").is_dir()


def test_a_lone_file_of_vectors(checkpoint: Path) -> None:
    Path("texts.txt").write_text("\n".join(text.split("\n")[-1] for _, text in TEXTS))
    embed = ("embed", "texts.txt", "-m", str(checkpoint), "-o", "v.parquet")
    assert run_cli(*embed, "--prompt-name", "search_document")[0] == 0
    code, _, err = run_cli("search", "v.parquet", QUESTION)
    assert (code, "does not name the model" in one_line(err)) == (2, True)
    found = document("v.parquet", QUESTION, "-m", str(checkpoint))["answers"][0]["results"]
    assert sorted(hit["where"] for hit in found) == ["0", "1", "2", "3"]  # its column `id`


def test_a_reranker_orders_the_nearest(checkpoint: Path, reranker: Path) -> None:
    from nomicbert import CrossEncoder

    arguments = ("notes", QUESTION, "-m", str(checkpoint), "--reranker", str(reranker))
    results = document(*arguments, "-k", "2")["answers"][0]["results"]
    scores = CrossEncoder(reranker).predict([(QUESTION, text) for _, text in TEXTS])
    order = np.argsort(-scores)[:2]
    assert [hit["where"] for hit in results] == [TEXTS[i][0] for i in order]
    given = [hit["reranker_score"] for hit in results]
    assert given == pytest.approx(scores[order].tolist(), abs=1e-5)
    cosines = dict(wanted(checkpoint))
    assert [hit["score"] for hit in results] == pytest.approx(
        [cosines[hit["where"]] for hit in results], abs=1e-5
    )
    out, _ = ask(*arguments, "-k", "1")
    best = results[0]
    assert out.startswith(
        f" 1  {best['reranker_score']:.3f} ({best['score']:.3f})  {best['where']}"
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes standard input a terminal that gives these lines, or is interrupted."""

    def with_lines(*lines: str, interrupted: bool = False) -> None:
        given = iter(lines)

        def typed(prompt: str) -> str:
            assert prompt == search.PROMPT
            try:
                return next(given)
            except StopIteration:
                if interrupted:
                    signal.raise_signal(signal.SIGINT)
                raise EOFError from None

        stdin = io.StringIO()
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", typed)

    return with_lines


def test_questions_are_asked_for(checkpoint: Path, terminal: Callable[..., None]) -> None:
    terminal(QUESTION, "  ", "What ends in the sea?")
    out, _ = ask("notes", "-m", str(checkpoint), "-k", "1")
    first, second, rest = out.split(" 1  ")[1:2], out.split(" 1  ")[2:], out[-1:]
    assert first[0].startswith(f"{wanted(checkpoint)[0][1]:.3f}")
    assert second[0].startswith(f"{wanted(checkpoint, 'What ends in the sea?')[0][1]:.3f}")
    assert rest == "\n"


def test_an_interrupt_ends_the_questions(checkpoint: Path, terminal: Callable[..., None]) -> None:
    terminal(QUESTION, interrupted=True)
    code, out, err = run_cli("search", "notes", "-m", str(checkpoint))
    assert code == 130
    assert out.startswith(" 1  ")
    assert err.endswith("nomicbert: interrupted\n")
    assert "Traceback" not in err


def test_a_question_that_cannot_be_embedded(
    checkpoint: Path, terminal: Callable[..., None]
) -> None:
    terminal("half of a pair: \ud800", QUESTION)
    out, err = ask("notes", "-m", str(checkpoint), "-k", "1")
    assert out.count(" 1  ") == 1
    assert "Unicode" in err


def test_the_packaged_model_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WEIGHTS_PACKAGE", "no_such_package")
    code, _, err = run_cli("search", "notes", QUESTION)
    assert code == 2
    assert one_line(err) == (
        "nomicbert: no model is installed: pass one with -m, such as "
        "-m nomic-ai/nomic-embed-text-v1.5\n"
    )


def test_columns_that_differ_are_left_out(checkpoint: Path) -> None:
    """One column cannot hold both: the error names the option that drops it."""
    Path("mixed").mkdir()
    Path("mixed/a.jsonl").write_text('{"text": "cats purr", "n": 7}\n')
    Path("mixed/b.jsonl").write_text('{"text": "a stock symbol", "n": {"a": 1}}\n')
    words = ("search", "mixed", "do cats purr?", "-m", str(checkpoint))
    code, _, err = run_cli(*words)
    assert (code, "--columns" in err) == (2, True)
    out, _ = ask("mixed", "do cats purr?", "-m", str(checkpoint), "--columns", "none", "--json")
    (answer,) = json.loads(out)["answers"]
    assert {hit["text"] for hit in answer["results"]} == {"cats purr", "a stock symbol"}
    assert not any("n" in hit["fields"] for hit in answer["results"])


def test_a_reranker_that_is_not_there_is_refused_first(checkpoint: Path) -> None:
    words = ("search", "notes", QUESTION, "-m", str(checkpoint), "--reranker", "./nothing")
    code, _, err = run_cli(*words)
    assert code == 2
    assert "The folder './nothing' does not exist" in one_line(err)
