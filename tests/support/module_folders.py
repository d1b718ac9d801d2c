"""Checkpoints of sentence-transformers with several modules after the encoder, saved by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn

from tests.support.checkpoints import build_checkpoint

Spec = tuple[str, dict[str, Any]]


def build_modules(
    folder: Path, steps: Sequence[Spec], variant: str = "minilm", width: int = 256, **pooling: Any
) -> SentenceTransformer:
    """Save an embedding model with these modules after pooling; return it."""
    modules = _modules(folder, steps, variant, width, pooling)
    judge = SentenceTransformer(modules=modules, device="cpu").eval()
    judge.save_pretrained(str(folder), create_model_card=False)
    return judge


def build_modular_reranker(
    folder: Path, steps: Sequence[Spec], width: int = 64, **pooling: Any
) -> CrossEncoder:
    """The same for a reranker; the last step gives the scores."""
    *before, (kind, settings) = steps
    steps = [*before, (kind, settings | {"module_output_name": "scores"})]
    modules = _modules(folder, steps, "minilm", width, pooling)
    judge = CrossEncoder(modules=modules, device="cpu", prompts={"find": "what is the river: "})
    judge.eval().save_pretrained(str(folder), create_model_card=False)
    return judge


def _modules(
    folder: Path, steps: Sequence[Spec], variant: str, width: int, pooling: dict[str, Any]
) -> list[nn.Module]:
    bare = build_checkpoint(
        folder.with_name(folder.name + "-bare"), variant, num_hidden_layers=1, hidden_size=width
    )
    modules: list[nn.Module] = [Transformer(str(bare)), Pooling(width, **pooling)]
    width = modules[-1].get_embedding_dimension()
    draw = torch.Generator().manual_seed(len(steps))
    for kind, settings in steps:
        if kind == "Dense":
            modules.append(Dense(width, **settings))
            width = settings["out_features"]
        elif kind == "LayerNorm":
            modules.append(LayerNorm(width))
        else:
            modules.append({"Dropout": Dropout, "Normalize": Normalize}[kind](**settings))
        for parameter in modules[-1].parameters():  # a LayerNorm begins as ones and zeros
            parameter.data += torch.randn(parameter.shape, generator=draw) / 10
    return modules


def change(file: Path, **changes: Any) -> None:
    """Change a JSON object in place; a value of ... removes the key."""
    stated = json.loads(file.read_text("utf-8")) | changes
    kept = {key: value for key, value in stated.items() if value is not ...}
    file.write_text(json.dumps(kept), "utf-8")
