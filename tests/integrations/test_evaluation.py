"""nomicbert.evaluation, a former public module, forwards to nomicbert.integrations.mteb."""

from __future__ import annotations

import importlib

import pytest

import nomicbert.evaluation
from nomicbert.integrations import mteb


def test_it_forwards() -> None:
    with pytest.warns(DeprecationWarning, match="is now nomicbert.integrations.mteb") as told:
        from nomicbert.evaluation import MTEBEncoder
    assert MTEBEncoder is mteb.MTEBEncoder
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="import NOMIC_PROMPTS from there"):
        assert nomicbert.evaluation.NOMIC_PROMPTS is mteb.NOMIC_PROMPTS


def test_unknown_names() -> None:
    importlib.reload(nomicbert.evaluation)  # without a warning
    with pytest.raises(AttributeError, match=r"'nomicbert\.evaluation' has no attribute 'MTEB'"):
        _ = nomicbert.evaluation.MTEB
