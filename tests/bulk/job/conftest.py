"""Fixtures of the tests of jobs: a folder of their own, without waiting for the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync does is tested in `exhaust`."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two inputs: 12 lines of text, 9 objects."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"line {n}\n" for n in range(12)))
    lines = (json.dumps({"text": f"text {n}", "id": n, "body": "b"}) for n in range(9))
    Path("b.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path
