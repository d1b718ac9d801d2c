"""`nomicbert search`: mistakes that are refused, most of them before a model is loaded."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from nomicbert.cli.search_arguments import Asked, sort_out
from tests.bulk.job.standin import Hashes, embed
from tests.cli.embed_cases import needs_pyarrow, no_model  # noqa: F401
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import one_line, run_cli, run_python

pytestmark = needs_pyarrow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/a.md").write_text("# A\nfirst\n")
    Path("blank.txt").write_text("\n\n")
    Path("why").write_text("a file with the name of a question")


ASKED = {
    "a question": (["notes", "why not?"], (["notes"], ["why not?"])),
    "several inputs": (["notes", "blank.txt", "why not"], (["notes", "blank.txt"], ["why not"])),
    "a pattern that matches": (["notes/*.md", "what"], (["notes/*.md"], ["what"])),
    "a question with a slash": (["notes", "and/or or not"], (["notes"], ["and/or or not"])),
    "a question like a pattern": (["notes", "why not ?"], (["notes"], ["why not ?"])),
    "a long question": (["notes", "why " * 5000], (["notes"], ["why " * 5000])),
}


@pytest.mark.parametrize("name", ASKED)
def test_which_argument_is_the_question(name: str) -> None:
    arguments, wanted = ASKED[name]
    assert sort_out(arguments, [], None) == Asked(*wanted)


def test_a_question_of_its_own() -> None:
    assert sort_out(["notes"], ["why"], None) == Asked(["notes"], ["why"])
    assert sort_out(["notes", "why"], ["a.md"], None) == Asked(["notes", "why"], ["a.md"])


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no argument": ([], 'name the texts to search: nomicbert search INPUT "question"'),
    "no question": (["notes"], 'no question: nomicbert search INPUT "question"'),
    "a file as the question": (["notes", "why"], "no question"),
    "a question alone": (["why not?"], "there is no file or folder 'why not?'; if it is the"),
    "a mistyped folder": (["notes", "nots/"], "'nots/' is no file or folder here; if it is the q"),
    "a mistyped file": (["notes/b.md"], "'notes/b.md' is no file or folder here"),
    "a mistyped pattern": (["notes", "notes/*.txt"], "pass it with --question 'notes/*.txt'"),
    "a mistyped input": (["nots", "why not?"], "cannot read nots: No such file or directory"),
    "an empty question": (["notes", ""], "question 1 is empty"),
    "a blank question": (["notes", "--question", "a", "--question", " "], "question 2 is empty"),
    "no questions": (["notes", "--questions", "blank.txt"], "blank.txt holds no question"),
    "no file of questions": (["notes", "--questions", "q.txt"], "cannot read --questions q.txt"),
    "nothing on stdin": (["notes", "--questions", "-"], "--questions - holds no question"),
    "an empty folder": (["empty", "why not?"], "empty holds no files"),
    "vectors and texts": (["v", "notes", "why not?"], "v holds vectors: search it alone"),
    "an unfinished job": (["unfinished", "why not?"], "unfinished is not finished: it holds 5 v"),
    "a row of NaN": (["broken", "why not?"], "NaN or infinite values, the first that of blank.txt"),
    "bytes": (["bytes", "why not?"], "holds vectors of precision int8: embed with --precision"),
    "no checkpoint": (["v", "why not?"], "v does not name the model of its vectors: pass it with"),
}


class Broken(Hashes):
    def vector(self, text: str) -> np.ndarray:
        return np.full(8, np.nan, np.float32)


class Bytes(Hashes):
    def __init__(self) -> None:
        super().__init__()
        self.empty = self.empty.astype(np.int8)
        self.identity["precision"] = "int8"

    def vector(self, text: str) -> np.ndarray:
        return np.zeros(8, np.int8)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_before_a_model_is_loaded(name: str) -> None:
    arguments, problem = MISTAKES[name]
    if arguments[:1] == ["v"]:
        embed("notes/a.md", "v")
    elif arguments[:1] == ["broken"]:
        embed("blank.txt", "broken", Broken())
    elif arguments[:1] == ["bytes"]:
        embed("blank.txt", "bytes", Bytes())
    elif arguments[:1] == ["unfinished"]:
        Path("long.txt").write_text("short\n" * 7 + "longer than it may be\n")
        with pytest.raises(ValueError, match="over 20 tokens"):
            embed("long.txt", "unfinished", Hashes(longest=20, truncate="error"))
    code, out, err = run_cli("search", *arguments)
    assert (code, out) == (2, "")
    assert problem in one_line(err)


@pytest.mark.usefixtures("no_model")
def test_k_must_be_at_least_1() -> None:
    code, out, err = run_cli("search", "notes", "why not?", "-k", "0")
    assert (code, out) == (2, "")
    assert "Invalid value for '-k'" in err


@pytest.mark.usefixtures("no_model")
def test_a_document_needs_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code, _, err = run_cli("search", "notes", "--json")
    assert code == 2
    assert one_line(err).startswith("nomicbert: --json prints one document: pass the question")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints that differ in their weights, and one of another width."""
    root = tmp_path_factory.mktemp("c")
    build = [("nomic-v1.5", {"seed": 1}), ("nomic-v1.5", {"seed": 2}), ("bge-en", {})]
    places = []
    for number, (variant, options) in enumerate(build):
        options = {"num_hidden_layers": 1, **options}
        places.append(str(build_checkpoint(root / str(number), variant, **options)))
    return places


def test_another_model_is_refused(checkpoints: list[str]) -> None:
    assert run_cli("embed", "notes", "-m", checkpoints[0], "--prompt", "", "-o", "v/")[0] == 0
    assert run_cli("search", "v", "why not?")[0] == 0
    for other in checkpoints[1:]:
        code, out, err = run_cli("search", "v", "why not?", "-m", other)
        assert (code, out) == (2, "")
        assert f"{other} is not the model of v, whose vectors have 64 values" in one_line(err)
        assert f"Those of the vectors: {checkpoints[0]}, Embedder(" in err


def test_texts_without_a_word(checkpoints: list[str]) -> None:
    code, _, err = run_cli("search", "blank.txt", "why not?", "-m", checkpoints[0])
    assert code == 2
    assert err.endswith("nomicbert: blank.txt: there is no text to search\n")


def test_a_reranker_needs_the_texts(checkpoints: list[str]) -> None:
    embed = ("embed", "notes", "-m", checkpoints[0], "--prompt", "", "--columns", "none")
    assert run_cli(*embed, "-o", "v/")[0] == 0
    code, _, err = run_cli("search", "v", "why not?", "--reranker", "r")
    assert code == 2
    assert "--reranker reads the texts, and v does not hold them: embed with --columns" in err
    code, out, err = run_cli("search", "v", "why not?", "-k", "1")
    assert code == 0, err
    assert out.split()[2] in ("notes/a.md:1", "notes/a.md:2")


def test_mistakes_are_found_without_torch() -> None:
    code = (
        "import sys; from nomicbert.cli import app\n"
        "try: app(['search', 'nots/', 'why not?'], standalone_mode=False)\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert done.stdout.splitlines()[0] == "cannot read nots/: No such file or directory"
    assert "torch" not in done.stdout.splitlines()[1]
