"""The demo on the real weights: its rankings, its measurements, and its errors."""

import importlib.util
import json
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from nomicbert.bulk.stored import open_vectors
from nomicbert.cli import demo
from nomicbert.embedder import Embedder
from nomicbert.errors import to_install
from nomicbert.text import corpus
from nomicbert.text.corpus import Passage, read_passages
from tests.support.command_line import ROOT, one_line, run_cli

QUESTION = "How do I parse command-line options?"
# Few enough modules to index in seconds; three of them could answer the question.
MODULES = ["argparse", "getopt", "optparse", "shutil", "json", "random", "queue", "cmd", "gzip"]
PASSAGES = 80

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(demo.WEIGHTS_PACKAGE) is None,
    reason="the packaged weights of all-MiniLM-L6-v2 are not installed",
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Index the first passages of a few modules, and ask two questions."""
    chosen = [word for name in MODULES for word in ("--module", name)]
    questions = (QUESTION, "How do I copy a folder?")
    code, out, err = run_cli("demo", "--passages", str(PASSAGES), *chosen, "--json", *questions)
    assert code == 0, err
    assert "%" in err  # the progress bar; stdout holds the document and nothing else
    parsed: dict[str, Any] = json.loads(out)
    return parsed


@needs_weights
def test_finds_argparse_for_the_command_line_question(report: dict[str, Any]) -> None:
    options, folder = report["answers"]
    assert (options["question"], folder["question"]) == (QUESTION, "How do I copy a folder?")
    # getopt's docstring is almost the question, so it may rank before argparse.
    assert "argparse" in [hit["name"] for hit in options["results"][:2]]
    assert {"getopt", "optparse"} & {hit["name"] for hit in options["results"]}
    assert "shutil" in [hit["name"] for hit in folder["results"][:2]]


@needs_weights
def test_ranks_by_score(report: dict[str, Any]) -> None:
    for answer in report["answers"]:
        scores = [hit["score"] for hit in answer["results"]]
        assert [hit["rank"] for hit in answer["results"]] == [1, 2, 3, 4, 5]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[-1]
        assert all(-1 <= score <= 1 for score in scores)


@needs_weights
def test_scores_belong_to_their_names(report: dict[str, Any]) -> None:
    embedder = Embedder.from_pretrained(demo.packaged_weights())
    for answer in report["answers"]:
        question = embedder.encode(answer["question"])
        for hit in answer["results"][:2]:
            alone = embedder.encode(f"{hit['name']}: {hit['text']}")
            cosine = question @ alone / np.linalg.norm(question) / np.linalg.norm(alone)
            assert hit["score"] == pytest.approx(float(cosine), abs=6e-5)  # rounded to 4 digits


@needs_weights
def test_measures_real_tokens(report: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(demo.packaged_weights() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    rows = tokenizer.encode_batch([passage.text for passage in read_passages(PASSAGES, MODULES)])
    assert report["passages"] == len(rows) == PASSAGES
    assert report["dimension"] == 384
    assert report["tokens"] == sum(len(row.ids) for row in rows)
    assert report["tokens_per_second"] == pytest.approx(
        report["tokens"] / report["seconds"], rel=1e-2
    )


@needs_weights
def test_every_field_is_documented(report: dict[str, Any]) -> None:
    (answer, _), (hit, *_) = report["answers"], report["answers"][0]["results"]
    fields = [key for key in report if key != "answers"]
    fields += [f"answers.{key}" for key in answer if key != "results"]
    fields += [f"answers.results.{key}" for key in hit]
    page = (ROOT / "docs/demo.md").read_text("utf-8")
    assert re.findall(r"^\| `([\w.]+)` \|", page, re.M) == fields


@needs_weights
def test_prints_the_three_sample_questions_as_text() -> None:
    code, out, _ = run_cli("demo", "--module", "argparse", "--module", "random", "--top-k", "2")
    assert code == 0
    *answers, measured = out.strip().split("\n\n")
    assert [answer.splitlines()[0] for answer in answers] == list(demo.QUESTIONS)
    first = answers[0].splitlines()
    assert len(first) == 1 + 2 * 2  # two hits of two lines
    assert first[1].split()[0] == "1"
    assert first[1].split()[2] == "argparse"
    assert "random.Random.choice" in answers[2]
    assert max(map(len, out.splitlines())) <= 120
    assert " passages of Python " in measured
    assert "tokens/s" in measured


def test_search_ranks_by_cosine_and_is_stable_for_equal_scores() -> None:
    half = 0.5**0.5
    index = np.array([[1, 0], [0, 1], [half, half], [0, 1], [-1, 0]], dtype=np.float32)
    passages = [Passage(name, name.upper()) for name in "abcde"]
    (hits,) = demo.search(np.array([[0, 1]], dtype=np.float32), index, passages, top_k=4)
    assert [(hit.rank, hit.score, hit.name, hit.text) for hit in hits] == [
        (1, 1.0, "b", "B"),
        (2, 1.0, "d", "D"),
        (3, 0.7071, "c", "C"),
        (4, 0.0, "a", "A"),
    ]
    many = [Passage(str(i), "") for i in range(100)]
    (hits,) = demo.search(index[:1], np.tile(index[:2], (50, 1)), many, top_k=100)
    assert [int(hit.name) for hit in hits] == [*range(0, 100, 2), *range(1, 100, 2)]


def test_without_the_weights_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, demo.WEIGHTS_PACKAGE, None)
    code, out, err = run_cli("demo", "--module", "argparse")
    assert (code, out) == (2, "")
    assert to_install("demo") in one_line(err)


def test_unknown_model_folder(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    code, out, err = run_cli("demo", "--module", "argparse", "--model", str(folder))
    assert (code, out) == (2, "")
    assert str(folder) in one_line(err)


def test_unknown_module() -> None:
    code, out, err = run_cli("demo", "--module", "argparse", "--module", "numpy")
    assert (code, out) == (2, "")
    assert "for numpy:" in one_line(err)


@pytest.mark.parametrize("args", [["demo", "--top-k", "0"], ["demo", "--passages", "0"]])
def test_a_wrong_argument_is_a_usage_error(args: list[str]) -> None:
    code, out, err = run_cli(*args)
    assert (code, out) == (2, "")
    assert args[1] in err
    assert "Traceback" not in err


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_question(empty: str) -> None:
    code, out, err = run_cli("demo", "What sorts a list?", empty)
    assert (code, out) == (2, "")
    assert "question 2 is empty" in one_line(err)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library that must not be imported."""
    files = {
        "alpha.py": '''
            """The first letter of the Greek alphabet."""
            raise SystemExit("imported")
            class Big:
                """A class that says something."""
                def method(self):
                    """Do one thing very well."""
                def _hidden(self):
                    """Nobody should read this one."""
            class _Private:
                """Nobody should read this one either."""
                def method(self):
                    """Nor this method of it."""
            if True:
                def chosen():
                    """Depends on the platform."""
            else:
                def chosen():
                    """The other platform's form."""
            def copied():
                """A class that says something."""
            def terse():
                """Do it."""
        ''',
        "beta/__init__.py": '"""The second letter of it."""',
        "beta/inner.py": '''
            def deep():
                """Look into the package.

                Second paragraph.

                >>> deep()
                """
        ''',
        "beta/_private.py": '"""Not a public module here."""',
        "beta/tests/test_it.py": '"""Not a module to read."""',
        "_pyio.py": '"""Streams in pure Python code."""',
        "io.py": '"""What imports from C modules."""',
        "idlelib/__init__.py": '"""An editor is no library."""',
        "site-packages/other.py": '"""Not of the standard library."""',
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        file.write_text("\n".join(line.removeprefix(" " * 12) for line in lines), encoding="utf-8")
    names = frozenset({"alpha", "beta", "io", "_pyio", "idlelib", "math"})
    monkeypatch.setattr(sys, "stdlib_module_names", names)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("library")
def test_modules_are_read_round_robin_without_private_names() -> None:
    passages = read_passages()
    assert [passage.text for passage in passages] == [
        "alpha: The first letter of the Greek alphabet.",
        "beta: The second letter of it.",
        "beta.inner.deep: Look into the package. Second paragraph.",
        "io: Streams in pure Python code.",
        "alpha.Big: A class that says something.",
        "alpha.Big.method: Do one thing very well.",
        "alpha.chosen: Depends on the platform.",
    ]
    assert read_passages(3) == passages[:3]
    assert read_passages(modules=["beta"]) == passages[1:3]


@pytest.mark.usefixtures("library")
def test_a_module_written_in_c_has_no_docstrings_to_read() -> None:
    with pytest.raises(ValueError, match="math"):
        read_passages(modules=["alpha", "math"])


def test_a_passage_is_whole_paragraphs_up_to_a_length(library: Path) -> None:
    enough, many = "word " * corpus.ENOUGH_WORDS, "word " * (corpus.MAX_WORDS + 5)
    (library / "alpha.py").write_text(f'"""Short one here.\n\n{enough}\n\nNever read."""')
    (library / "io.py").unlink()
    (library / "_pyio.py").write_text(f'"""{many}"""')
    summaries = [passage.summary for passage in read_passages(modules=["alpha", "io"])]
    assert summaries == [f"Short one here. {enough}".strip(), ("word " * corpus.MAX_WORDS).strip()]


def test_the_real_library_is_covered() -> None:
    passages = read_passages(3000)
    names = [passage.name for passage in passages]
    assert len(passages) == len(set(names)) == 3000
    assert {"argparse.ArgumentParser", "os.path.join", "json.dumps", "random.Random.choice"} <= set(
        names
    )
    assert len({name.partition(".")[0] for name in names}) > 120
    assert not [n for n in names if "._" in n or n.startswith(("test.", "idlelib", "lib2to3"))]
    assert max(len(passage.summary.split()) for passage in passages) <= corpus.MAX_WORDS


@needs_weights
def test_keeps_the_vectors(tmp_path: Path) -> None:
    """And says what to do with them."""
    out = tmp_path / "v.parquet"
    words = (
        "demo",
        "--passages",
        "6",
        "--module",
        "shutil",
        "--module",
        "json",
        "-o",
        str(out),
        "a",
    )
    code, _, err = run_cli(*words)
    assert code == 0
    assert f"nomicbert map {out} -o map.html --color module\n" in err
    assert 'nomicbert search FOLDER "your question"\n' in err
    stored = open_vectors(out)
    passages = read_passages(6, ["shutil", "json"])
    rows = stored.take(range(6))
    assert [row["text"] for row in rows] == [passage.text for passage in passages]
    assert {row["module"] for row in rows} == {"shutil", "json"}
    wanted = Embedder(demo.packaged_weights()).encode_document(
        [passage.text for passage in passages], normalize_embeddings=True
    )
    np.testing.assert_allclose(stored.vectors(), wanted, rtol=0, atol=1e-6)
    assert f"{out} exists: pass --overwrite" in one_line(run_cli(*words)[2])
    assert "must end in .parquet" in one_line(run_cli("demo", "-o", str(tmp_path / "v.npy"))[2])
