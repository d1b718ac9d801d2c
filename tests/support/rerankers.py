"""Rerankers in the hub's layout: a BERT checkpoint with a classifier after its pooler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors


def build_reranker(folder: Path, labels: int = 1, **config: Any) -> Path:
    """Write a reranker as on the hub: no modules.json, a classifier after the pooler."""
    build_checkpoint(folder, "bge-en", max_position_embeddings=96)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    (folder / "config_sentence_transformers.json").unlink()
    width = read_config(folder)["hidden_size"]
    draw = torch.Generator().manual_seed(5)
    head = {
        "pooler.dense.weight": torch.randn(width, width, generator=draw) / width**0.5,
        "pooler.dense.bias": torch.randn(width, generator=draw) / 5,
        "classifier.weight": torch.randn(labels, width, generator=draw) / 4,
        "classifier.bias": torch.randn(labels, generator=draw) / 4,
    }
    encoder = {k: v for k, v in read_tensors(folder).items() if not k.startswith("pooler")}
    tensors = {f"bert.{k}" if "classifier" not in k else k: v for k, v in (encoder | head).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(
        folder,
        architectures=["BertForSequenceClassification"],
        id2label={str(i): f"LABEL_{i}" for i in range(labels)},
        **config,
    )
    return folder
