"""Helpers of the parity tests: checkpoints, batches, both models, and the comparison.

The truth is transformers' own model of the same weights if it has one, else the oracle of
`tests/support/oracle.py`. Every comparison covers all hidden states, with padding set to zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel, NomicBertModel

from nomicbert import NomicBert
from nomicbert.modeling.packing import PackedBatch
from tests.parity.bounds import ROUNDING_MARGIN, ROUTER_MARGIN
from tests.support.checkpoints import (
    VARIANTS,
    build_checkpoint,
    edit_config,
    read_config,
    read_tensors,
)
from tests.support.oracle import oracle_forward, router_margins
from tests.support.variants import VARIANT_TABLE

Batch = dict[str, Any]

# transformers has no class for the first's prefix and the second's experts
ORACLE_ONLY = ("nomic-bert-2048", "nomic-v2-moe")
NATIVE = tuple(name for name in VARIANTS if name not in ORACLE_ONLY)
# covers special code paths: equal neighbours are processed together, and a single token
LENGTHS = (17, 17, 32, 3, 1, 17)
_HEADS = ("cls.", "pooler.", "embeddings.position_ids", "bert.pooler.")


@dataclasses.dataclass(frozen=True)
class Case:
    """Creates the checkpoint folders of one test, from one seed."""

    folder: Path
    seed: int

    def build(self, variant: str, **overrides: Any) -> Path:
        """A checkpoint in the hub's format, with tiny sizes by default."""
        where = self.folder / "ours"
        return build_checkpoint(where, variant, seed=self.seed, **overrides)

    def build_native(self, variant: str, **overrides: Any) -> Path:
        """The same weights with the keys that transformers reads."""
        where = self.folder / "theirs"
        if is_gated(variant):
            overrides = {"dialect": "both"} | overrides
        build_checkpoint(where, variant, seed=self.seed, **overrides)
        if is_gated(variant):  # some hub files give the serving length for this key
            trained = read_config(where).get("max_trained_positions", 2048)
            edit_config(where, max_position_embeddings=trained)
        return where

    def batch(
        self, folder: Path, lengths: Sequence[int] = LENGTHS, side: str = "right", least: int = 0
    ) -> Batch:
        """Random ids and types for texts of these lengths, padded on one side.

        Padding has random ids too, which must not matter. `least` is the smallest id drawn.
        """
        config = read_config(folder)
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        types = torch.randint(config["type_vocab_size"], shape, generator=generator)
        return {
            "input_ids": torch.randint(least, config["vocab_size"], shape, generator=generator),
            "attention_mask": (mask.flip(1) if side == "left" else mask).long(),
            "token_type_ids": types,
        }


def is_gated(variant: str) -> bool:
    """Whether this variant is a NomicBERT with a gated MLP, which transformers supports."""
    return VARIANT_TABLE[variant].base.get("activation_function") == "swiglu"


def ours(folder: Path, backend: str, **keywords: Any) -> NomicBert:
    """The package's model of a folder."""
    return NomicBert.from_pretrained(folder, backend=backend, **keywords)


def theirs(
    folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **keywords: Any
) -> torch.nn.Module:
    """transformers' model of a folder, with all of its tensors read from the file."""
    gated = read_config(folder)["model_type"] == "nomic_bert"
    model, report = (NomicBertModel if gated else BertModel).from_pretrained(
        folder,
        output_loading_info=True,
        dtype=dtype,
        attn_implementation=attention,
        **({} if gated else {"add_pooling_layer": False}),
        **keywords,
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all(key.startswith(_HEADS) for key in report["unexpected_keys"])
    return model.eval()


@torch.no_grad()
def hidden_states(model: torch.nn.Module, batch: Batch) -> Tensor:
    """(layers + 1, batch, seq_len, hidden) of either model; masked positions are not zeroed."""
    out = model(**batch, output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])
    return torch.stack(out.hidden_states)


@torch.no_grad()
def packed_states(model: NomicBert, batch: PackedBatch) -> Tensor:
    """(layers + 1, tokens, hidden) of packed texts."""
    states: list[Tensor] = []
    model.encode_packed(batch, states=states)
    return torch.stack(states)


def masked(states: Tensor, batch: Batch) -> Tensor:
    """The references' states with padding set to zero; ours must already be zero there."""
    mask = batch.get("attention_mask")
    return states if mask is None else states * (mask != 0)[..., None].to(states.dtype)


def oracle_states(folder: Path, batch: Batch, **keywords: Any) -> Tensor:
    """The oracle's hidden states, with the shape of `hidden_states`."""
    config, tensors = read_config(folder), read_tensors(folder)
    with torch.no_grad():
        return torch.stack(oracle_forward(config, tensors, **batch, **keywords))


def clear_tokens(folder: Path, batch: Batch, least: float = 0.5) -> Tensor:
    """(batch, seq_len) bool: kept tokens whose expert routing is stable under rounding.

    A token that is routed differently changes its text's other tokens in the next attention. So a
    text is excluded as a whole if rounding alone can flip one of its tokens. At least the share
    `least` of the tokens must remain.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    with torch.no_grad():
        margins = router_margins(config, tensors, **batch)
    mask = batch.get("attention_mask")
    kept = torch.ones_like(margins, dtype=torch.bool) if mask is None else mask.bool()
    settled = margins.masked_fill(~kept, 1.0).amin(1, keepdim=True) > ROUNDING_MARGIN
    clear = kept & settled & (margins > ROUTER_MARGIN)
    assert clear.sum() >= least * kept.sum()
    return clear
