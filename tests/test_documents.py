"""The documents run: every command and snippet of the README and of docs/, as printed."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, SETTING_UP, blocks, commands, run, serve
from tests.support.fake_hub import FakeHub

PACKAGES = ("nomicbert", "kernels/nomicbert_kernels")
WITH_SNIPPETS = [document for document in DOCUMENTS if blocks(document, "python")]
LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    server = FakeHub()
    serve(server, tmp_path_factory.mktemp("hub"))
    server.start()
    yield server
    server.stop()


def _names(documents: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in documents]


def test_the_documents_are_seen() -> None:
    """The tests below would pass on nothing."""
    assert {
        "README.md",
        "docs/demo.md",
        "docs/embed.md",
        "docs/info.md",
        "docs/tune.md",
        "docs/verify.md",
    } <= set(_names(DOCUMENTS))
    readme, setting_up = commands(DOCUMENTS[0])
    assert any("nomicbert embed" in block for block in readme)
    assert len(blocks(DOCUMENTS[0], "python")) >= 2
    assert DOCUMENTS[0] in WITH_SNIPPETS
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in setting_up}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_names(DOCUMENTS))
def test_commands(document: Path, hub: FakeHub, tmp_path: Path) -> None:
    for block in commands(document)[0]:
        done = run(hub, tmp_path, "bash", "-euo", "pipefail", "-c", block)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", WITH_SNIPPETS, ids=_names(WITH_SNIPPETS))
def test_snippets(document: Path, hub: FakeHub, tmp_path: Path) -> None:
    """The snippets of a document are one program."""
    snippets = blocks(document, "python")
    done = run(hub, tmp_path, "python", "-W", "error::UserWarning", "-c", "\n".join(snippets))
    assert done.returncode == 0, done.stderr


def test_targets_of_make_exist() -> None:
    targets = {
        line.split("#")[0].split()[1]
        for document in DOCUMENTS
        for line in commands(document)[1]
        if line.startswith("make ")
    }
    assert {"demo", "test"} <= targets
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_what_pip_installs_is_this_project() -> None:
    lines = [line for document in DOCUMENTS for line in commands(document)[1]]
    installed = [line for line in lines if line.startswith(SETTING_UP[1])]
    assert installed
    for line in installed:
        assert re.fullmatch(r"""pip install "?\.(\[[a-z,]+\])?"?( +#.*)?""", line), line


def test_links_lead_somewhere() -> None:
    found = 0
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for match in LINK.finditer(document.read_text("utf-8")):
            if not match[1].startswith(("http://", "https://")):
                found += 1
                assert (document.parent / match[1]).exists(), f"{document}: {match[0]}"
    assert found


def _with_examples() -> list[str]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            texts = [ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, kinds)]
            if any(doctest.DocTestParser().get_examples(text) for text in texts):
                parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
                found.append(".".join(part for part in parts if part != "__init__"))
    return found


RUN_EXAMPLES = """
import doctest, importlib, sys
from nomicbert import CrossEncoder, Embedder

module = importlib.import_module(sys.argv[1])
texts = ["t-SNE draws a map of data.", "TSNE is a stock symbol too."]
embedder = Embedder.from_pretrained("nomic-ai/nomic-embed-text-v1.5")
reranker = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")
names = {"embedder": embedder, "reranker": reranker, "texts": texts}
tested = doctest.testmod(module, extraglobs=names)
print(tested.attempted)
sys.exit(tested.failed)
"""


@pytest.mark.parametrize("module", _with_examples())
def test_examples_of_docstrings(module: str, hub: FakeHub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "python", "-c", RUN_EXAMPLES, module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 0


def test_the_public_classes_have_examples() -> None:
    assert {"nomicbert.embedder", "nomicbert.modeling.model"} <= set(_with_examples())
