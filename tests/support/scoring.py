"""Servers of rerankers for tests: tiny checkpoints, and what `CrossEncoder` gives for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tests.support.module_folders import build_modular_reranker, change
from tests.support.rerankers import build_reranker
from tests.support.sameness import HAS_ONEDNN
from tests.support.served import tiny
from tests.support.vocabularies import SENTENCES, WORDS

EMBEDDER = "tiny-v1.5"
# One label; as a list of modules; without token types; with another activation.
ONE, MODULAR, UNTYPED, RAW = "one", "modular", "untyped", "raw"
# A list of modules with a prompt that pooling leaves out.
PROMPTED = "prompted"
RERANKERS = (ONE, MODULAR, UNTYPED, RAW, PROMPTED)
# Three labels.
CLASSIFIER = "three"

QUERY = "what is deep learning?"
LONG = " ".join(WORDS * 9)
# Of several lengths, one of them twice, one empty, two of more tokens than the limit.
DOCUMENTS = [*SENTENCES, "", LONG, SENTENCES[1], "the river is long " * 5, "x " + LONG]
# Of the models with their limit of 96 tokens.
LIMIT, CUT = 96, 2
# Of logits of a tiny model in fp32, as in tests/test_cross_encoder.py.
BOUND = 1e-5


def build(where: Path) -> dict[str, Path]:
    """Name -> folder of every checkpoint."""
    dense = ("Dense", {"out_features": 1, "activation_function": nn.Identity()})
    steps = [("LayerNorm", {}), dense]
    build_modular_reranker(where / MODULAR, steps, pooling_mode="mean")
    build_modular_reranker(
        where / PROMPTED, steps, pooling_mode="weightedmean", include_prompt=False
    )
    change(where / PROMPTED / "config_sentence_transformers.json", default_prompt_name="find")
    untyped = build_reranker(where / UNTYPED)
    change(untyped / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    identity = "torch.nn.modules.linear.Identity"
    return {
        ONE: build_reranker(where / ONE),
        MODULAR: where / MODULAR,
        PROMPTED: where / PROMPTED,
        UNTYPED: untyped,
        RAW: build_reranker(where / RAW, sbert_ce_default_activation_function=identity),
        CLASSIFIER: build_reranker(where / CLASSIFIER, labels=3),
        EMBEDDER: tiny(where, EMBEDDER),
    }


def floats(values: Any) -> np.ndarray:
    """Numbers of JSON as fp32: the shortest digits give back every bit."""
    return np.array(values, np.float64).astype(np.float32)


class Scores:
    """Scores that are equal if all bits are.

    Without oneDNN bits depend on the batch: there they are equal within BOUND.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, np.float32)

    def __repr__(self) -> str:
        return f"Scores({self.values.tolist()})"

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Scores)
        if HAS_ONEDNN or self.values.shape != other.values.shape:
            return np.array_equal(self.values, other.values)
        return bool(np.abs(self.values - other.values).max(initial=0.0) <= BOUND)
