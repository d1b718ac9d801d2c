"""docs/integrations.md: the examples of each library run as printed, in a folder of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, ROOT, printed, run, serve
from tests.support.fake_hub import FakeHub
from tests.support.integrations import absent

PAGE = (ROOT / "docs/integrations.md").read_text("utf-8")
SECTIONS = {
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index",
    "Haystack": "haystack",
    "Chroma": "chromadb",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    server = FakeHub()
    serve(server, tmp_path_factory.mktemp("hub"))
    server.start()
    yield server
    server.stop()


def examples(section: str) -> list[str]:
    """The blocks that the page marks as py, below one heading."""
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", PAGE, re.M | re.S)
    return [code for language, code in BLOCK.findall(body) if language == "py"]


def test_no_example_is_left_out() -> None:
    blocks = [code for language, code in BLOCK.findall(PAGE) if language == "py"]
    assert blocks == [code for section in SECTIONS for code in examples(section)]


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_examples(section: str, hub: FakeHub, tmp_path: Path) -> None:
    if reason := absent(SECTIONS[section]):
        pytest.skip(reason)
    snippets = examples(section)
    assert printed(snippets)
    done = run(hub, tmp_path, "python", "-W", "error::UserWarning", "-c", "\n".join(snippets))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == printed(snippets)
