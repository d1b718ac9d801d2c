"""The documents: their commands and snippets run, and README and docs keep to a form.

Every command and snippet of the README and of docs/ runs as printed. A comment after a `print` of a
snippet is its output. docs/environment.md lists every environment variable that is read.
"""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    SETTING_UP,
    blocks,
    commands,
    environment,
    long_lines,
    printed,
    run,
    serve,
)
from tests.support.environment import documented, found_in_tests, read_by
from tests.support.fake_hub import FakeHub
from tests.support.warm_python import WarmPython

PACKAGES = ("nomicbert", "kernels/nomicbert_kernels")
WITH_SNIPPETS = [document for document in DOCUMENTS if blocks(document, "python")]
LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")
README_LINES = 150
STRICT = "import warnings; warnings.simplefilter('error', UserWarning)"
# all Markdown that is read as prose, beyond the documents that run
OTHERS = ("CONTRIBUTING.md", "bench/README.md", "deploy/README.md")
WRAPPED = [*DOCUMENTS, *(ROOT / name for name in OTHERS)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    server = FakeHub()
    serve(server, tmp_path_factory.mktemp("hub"))
    server.start()
    yield server
    server.stop()


def _names(documents: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in documents]


def test_the_documents_are_found() -> None:
    """Without documents, the tests below would pass."""
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
    assert {"README.md", "docs/encode.md", "docs/heads.md", "docs/migrating.md"} <= set(
        _names(WITH_SNIPPETS)
    )
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in setting_up}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_names(DOCUMENTS))
def test_commands(document: Path, hub: FakeHub, tmp_path: Path) -> None:
    for block in commands(document)[0]:
        done = run(hub, tmp_path, "bash", "-euo", "pipefail", "-c", block)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", WITH_SNIPPETS, ids=_names(WITH_SNIPPETS))
def test_snippets(document: Path, warm_python: WarmPython, hub: FakeHub, tmp_path: Path) -> None:
    """All snippets of a document run as one program."""
    snippets = blocks(document, "python")
    code = "\n".join([STRICT, *snippets])
    done = warm_python.run(code, cwd=tmp_path, env=environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == printed(snippets)


def test_the_readme_prints() -> None:
    """What a reader sees first are its real outputs."""
    assert len(printed(blocks(DOCUMENTS[0], "python"))) >= 2


def test_info_prints_what_its_page_shows(hub: FakeHub, tmp_path: Path) -> None:
    """All but the lines that differ for the small checkpoint, or on another machine."""
    differ = {"folder", "licence", "model", "sizes", "weights", "backend"}
    model = "nomic-ai/nomic-embed-text-v1.5"
    done = run(hub, tmp_path, "nomicbert", "info", model, "--device", "cpu")
    (shown,) = blocks(ROOT / "docs/info.md", "text")
    found, wanted = (
        [line for line in text.splitlines() if line[:12].strip() not in differ]
        for text in (done.stdout, shown)
    )
    assert len(wanted) > len(differ)
    assert found == wanted


def test_the_readme_is_short() -> None:
    count = len((ROOT / "README.md").read_text("utf-8").splitlines())
    assert count <= README_LINES, f"README.md has {count} lines: move some to docs/"


@pytest.mark.parametrize("document", WRAPPED, ids=_names(WRAPPED))
def test_lines_are_wrapped(document: Path) -> None:
    assert long_lines(document.read_text("utf-8")) == []


def test_the_readme_leads_to_every_document() -> None:
    linked = {match[1] for match in LINK.finditer((ROOT / "README.md").read_text("utf-8"))}
    assert {name for name in _names(DOCUMENTS) if name != "README.md"} <= linked


def test_environment_variables_are_documented() -> None:
    """docs/environment.md lists those that the sources read, and no others."""
    page = (ROOT / "docs/environment.md").read_text("utf-8")
    of_the_package, of_a_clone = documented(page)
    package = {name for folder in PACKAGES for name in read_by(ROOT / folder)}
    assert {"NOMICBERT_GRAPHS", "GLIBC_TUNABLES", "XDG_CACHE_HOME"} <= package
    assert set(of_the_package) == package
    clone = read_by(ROOT / "bench") | found_in_tests(ROOT / "tests")
    assert {"NOMICBERT_SEED", "NOMICBERT_COMMIT"} <= clone
    assert set(of_a_clone) == clone - package


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
    found = anchors = 0
    for document in WRAPPED:
        for match in LINK.finditer(document.read_text("utf-8")):
            if not match[1].startswith(("http://", "https://")):
                found += 1
                target = document.parent / match[1] if match[1] else document
                assert target.exists(), f"{document}: {match[0]}"
                if match[2]:
                    anchors += 1
                    assert match[2][1:] in _anchors(target), f"{document}: {match[0]}"
    assert found
    assert anchors


def _anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


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
def test_examples_of_docstrings(
    module: str, warm_python: WarmPython, hub: FakeHub, tmp_path: Path
) -> None:
    surroundings = environment(hub, tmp_path)
    done = warm_python.run(RUN_EXAMPLES, module, cwd=tmp_path, env=surroundings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 0


def test_the_public_classes_have_examples() -> None:
    assert {"nomicbert.embedder", "nomicbert.modeling.model"} <= set(_with_examples())
