"""Checkpoints and texts for the tests of nomicbert/integrations, and what they need installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from tests.support.checkpoints import build_checkpoint

# Read when the libraries are imported: no test sends usage statistics.
os.environ["ANONYMIZED_TELEMETRY"] = "False"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["LANGSMITH_TRACING"] = "false"

DOCUMENTS = ["t-SNE draws a map of data.", "TSNE is a stock symbol.\nIt trades in Seoul.", "Rivers"]
QUERY = "What is TSNE?"


def absent(*modules: str) -> str:
    """Why a test module that needs these cannot run; "" if all are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: make test-integrations" if missing else ""


def nomic(folder: Path, seed: int = 0) -> str:
    """A tiny nomic-embed-text-v1.5, whose documents and queries get different prompts."""
    return str(build_checkpoint(folder, "nomic-v1.5", seed=seed, num_hidden_layers=1))
