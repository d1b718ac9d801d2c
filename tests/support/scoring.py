"""Servers of rerankers for tests: tiny checkpoints, and what `CrossEncoder` gives for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tests.support.module_folders import build_modular_reranker, change
from tests.support.rerankers import build_reranker
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
