"""Run the documentation: commands, snippets, and the examples of docstrings.

Each document runs in its own folder, against a hub on loopback that serves small checkpoints
under the names that the documents use.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.checkpoints import build_checkpoint
from tests.support.fake_hub import FakeHub, Repository
from tests.support.rerankers import build_reranker

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PRINTS = re.compile(r"print\(.*\)  # (.+)$")
COLUMNS = 120
# Set up the environment that the rest runs in; a fresh clone and the tests of packaging run them.
SETTING_UP = ("make ", "pip install ")

CHECKPOINTS = {"nomic-ai/nomic-embed-text-v1.5": "nomic-v1.5"}
RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"
# because the documents print it; one layer is enough, and quick
REAL_WIDTH = {"hidden_size": 768, "num_attention_heads": 12}


def blocks(document: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document in these languages."""
    found = BLOCK.findall(document.read_text("utf-8"))
    return [body for language, body in found if language in languages]


def commands(document: Path) -> tuple[list[str], list[str]]:
    """The shell blocks of a document: those to run, and the single lines that set up."""
    to_run, setting_up = [], []
    for block in blocks(document, "sh", "bash", "shell", ""):
        lines = block.splitlines()
        setting_up += [line for line in lines if line.startswith(SETTING_UP)]
        to_run.append("\n".join(line for line in lines if not line.startswith(SETTING_UP)))
    return [block for block in to_run if block.strip()], setting_up


def printed(snippets: Iterable[str]) -> list[str]:
    """The output that snippets promise: the comments after their `print` statements."""
    found = []
    for line in "\n".join(snippets).splitlines():
        if match := PRINTS.match(line):
            found.append(match[1])
    return found


def long_lines(text: str) -> list[str]:
    """Lines of Markdown that are too long; tables and code are exempt."""
    prose = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    return [
        f"line {number}: {len(line)} columns"
        for number, line in enumerate(prose.splitlines(), 1)
        if len(line) > COLUMNS and not line.startswith("|")
    ]


def serve(hub: FakeHub, folder: Path) -> None:
    """Put the checkpoints of the documents on the hub."""
    places = {
        repo_id: build_checkpoint(folder / variant, variant, num_hidden_layers=1, **REAL_WIDTH)
        for repo_id, variant in CHECKPOINTS.items()
    }
    places[RERANKER] = build_reranker(folder / "reranker")
    for repo_id, place in places.items():
        files = {
            str(path.relative_to(place)): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file()
        }
        repository = Repository()
        repository.commit("main", files)
        hub.repositories[repo_id] = repository


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    """The environment in which `nomicbert` and `python` have the code of this checkout."""
    tools = folder / ".tools"
    tools.mkdir(parents=True, exist_ok=True)
    for name, arguments in (("python", ""), ("nomicbert", "-m nomicbert ")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / ".cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # tests run in parallel: more threads would wait for each other
        "OMP_NUM_THREADS": "1",
    }


def run(hub: FakeHub, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(hub, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
