"""A pytest plugin that puts this package's classes in the place of sentence-transformers'.

It is loaded into the process that runs sentence-transformers' own tests, before these are imported.
Where that library's own code builds or expects its classes, it keeps them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

OURS = os.environ.get("PUBLIC_SUITES_CLASSES") == "ours"
outcomes: dict[str, str] = {}

if OURS:
    import sentence_transformers
    import sentence_transformers.cross_encoder
    import sentence_transformers.sentence_transformer.model

    import nomicbert

    sentence_transformers.SentenceTransformer = nomicbert.Embedder
    sentence_transformers.CrossEncoder = nomicbert.CrossEncoder
    sentence_transformers.cross_encoder.CrossEncoder = nomicbert.CrossEncoder
    sentence_transformers.sentence_transformer.model.SentenceTransformer = nomicbert.Embedder


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of a test's phases."""
    known = outcomes.get(report.nodeid)
    if known in (None, "passed") or report.failed:
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    """Write all outcomes to the file that the runner names."""
    Path(os.environ["PUBLIC_SUITES_OUTCOMES"]).write_text(json.dumps(outcomes), "utf-8")
