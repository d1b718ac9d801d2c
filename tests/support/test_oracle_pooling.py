"""The pooling half of the oracle, against sentence-transformers on folders of the factory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors
from tests.support.oracle import oracle_forward, oracle_matryoshka, oracle_pool
from tests.support.vocabularies import SENTENCES

BOUND = 1e-6  # parity of unit vectors in float32


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mean", "mean"),
        ("cls", "cls"),
        ("max", "max"),
        ("mean_sqrt_len", "mean_sqrt_len_tokens"),
        ("lasttoken", "lasttoken"),
        ("weightedmean", "weightedmean"),
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_modes_equal_sentence_transformers(ours: str, theirs: str, left: bool, seed: int) -> None:
    torch.manual_seed(seed)
    hidden = torch.randn(4, 32, 24).double()
    mask = torch.arange(32) < torch.tensor([32, 3, 17, 1])[:, None]
    mask = (mask.flip(1) if left else mask).long()
    features = {"token_embeddings": hidden, "attention_mask": mask}
    wanted = Pooling(24, pooling_mode=theirs)(features)["sentence_embedding"]
    assert torch.allclose(oracle_pool(hidden, mask, ours), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("variant", "mode", "normalize"),
    [
        ("nomic-v1.5", "mean", False),
        ("nomic-v1", "mean", True),
        ("conan-v1", "mean", False),
        ("bge-zh", "cls", True),
        ("minilm", "mean", True),
    ],
)
def test_whole_folder_equals_sentence_transformers(
    variant: str, mode: str, normalize: bool, tmp_path: Path, seed: int
) -> None:
    build_checkpoint(tmp_path, variant, seed=seed)
    edit_config(tmp_path, auto_map=...)  # it refers to code on the hub
    config, tensors = read_config(tmp_path), read_tensors(tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    texts = list(SENTENCES)
    wanted = model.encode(texts, convert_to_tensor=True).double()
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    hidden = oracle_forward(config, tensors, ids, mask)[-1]
    dense = None
    if (tmp_path / "2_Dense").is_dir():
        linear = load_file(tmp_path / "2_Dense" / "model.safetensors")
        dense = linear["linear.weight"], linear["linear.bias"]
    ours = oracle_pool(hidden, mask, mode, dense=dense, normalize=normalize)
    assert ours.shape == wanted.shape
    assert (F.normalize(ours) - F.normalize(wanted)).abs().max() <= BOUND
    assert (ours.norm(dim=1) / wanted.norm(dim=1) - 1).abs().max() <= BOUND
    if dense is not None:
        wrong = oracle_pool(hidden, mask, mode, dense=dense, faults=["dense_skipped"])
        assert (F.normalize(ours) - F.normalize(wrong)).abs().max() >= 10 * BOUND


def test_matryoshka_is_the_cards_recipe(seed: int) -> None:
    torch.manual_seed(seed)
    pooled = torch.randn(3, 40).double() * 0.01  # small, so that the epsilon of 1e-5 counts
    wanted = F.normalize(F.layer_norm(pooled, (40,))[:, :16], dim=-1)
    assert torch.allclose(oracle_matryoshka(pooled, 16), wanted, atol=1e-12)
