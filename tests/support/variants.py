"""The table of supported checkpoints, one row each.

A row describes the files on the hub: the config, the names and extra tensors of the weights, their
file and dtype, pooling, the modules after it, served length and prompts. Settings have
transformers' name if there is one; `tests/support/checkpoints.py` writes either family of keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

Config = dict[str, Any]

# legacy (GPT-2 style) name -> the name that transformers uses
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "max_trained_positions": "max_position_embeddings",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
BERT = BASE | {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "position_embedding_type": "absolute",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "use_cache": True,
    "torch_dtype": "float32",
}
NOMIC = BASE | {
    "model_type": "nomic_bert",
    "activation_function": "swiglu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "max_position_embeddings": 2048,
    "n_positions": 8192,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "embd_pdrop": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
}
MOE = NOMIC | {
    "activation_function": "gelu",
    "layer_norm_eps": 1e-5,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "n_positions": 2048,
    "rotary_emb_base": 10000,
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "embd_pdrop": 0.1,
    "add_pooling_layer": False,
    "expert_choice_router": False,
    "ffn_div": 1,
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_resid_pdrop": 0,
    "moe_top_k": 2,
    "num_experts": 8,
    "num_shared_experts": 0,
}
REMOTE_CODE = {
    "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    "AutoModelForMaskedLM": (
        "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining"
    ),
}
RETRIEVAL = "Represent this sentence for searching relevant passages: "
SCALED = {"rotary_scaling_factor": 2}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One checkpoint of the hub."""

    base: Config
    settings: Config = dataclasses.field(default_factory=dict)
    tokenizer: str = "english"
    real_vocab: int = 30522  # tokens in the real tokenizer
    extras: frozenset[str] = frozenset()  # explained in layouts.py
    prefix: str = ""
    dialect: str = "legacy"
    quirks: Config = dataclasses.field(default_factory=dict)  # keys whose two spellings disagree
    absent: tuple[str, ...] = ()  # keys that this row's config lacks
    architecture: str = "BertModel"
    weights: str = "safetensors"
    dtype: torch.dtype = torch.float32
    pooling: str | None = "mean"
    post: tuple[str, ...] = ("Normalize",)
    max_length: int = 512
    prompts: Config = dataclasses.field(default_factory=dict)
    baked: tuple[int, int] | tuple[None, None] = (None, None)  # truncation, fixed padding


def _nomic(**changes: Any) -> Variant:
    row: dict[str, Any] = {"base": NOMIC, "architecture": "NomicBertModel", "max_length": 8192}
    return Variant(**row | changes)


def _bert(*extras: str, **changes: Any) -> Variant:
    return Variant(base=BERT, extras=frozenset(extras), **changes)


_ZH: dict[str, Any] = {"tokenizer": "chinese", "real_vocab": 21128}
_MLM: dict[str, Any] = {
    "prefix": "bert.",
    "pooling": None,
    "post": (),
    "architecture": "BertForMaskedLM",
}
VARIANT_TABLE: dict[str, Variant] = {
    "nomic-v1.5": _nomic(dialect="both", post=()),
    "nomic-v1": _nomic(
        settings=SCALED,
        dialect="both",
        quirks={"max_position_embeddings": 8192},
        absent=("max_trained_positions",),
    ),
    "nomic-v1-unsupervised": _nomic(settings=SCALED, weights="bin"),
    "nomic-bert-2048": _nomic(
        settings={"n_positions": 2048, "hidden_dropout_prob": 0.1, "embd_pdrop": 0.1},
        absent=("max_trained_positions", "rotary_scaling_factor"),
        architecture="NomicBertForPreTraining",
        extras=frozenset({"nomic_head"}),
        prefix="bert.",
        pooling=None,
        post=(),
        max_length=512,
    ),
    "nomic-v2-moe": _nomic(
        base=MOE,
        tokenizer="unigram",
        real_vocab=250002,
        max_length=512,
        prompts={"query": "search_query: ", "passage": "search_document: "},
    ),
    "code-rank-embed": _nomic(
        pooling="cls",
        post=(),
        max_length=512,
        prompts={"query": "Represent this query for searching relevant code: "},
    ),
    "arctic-m-long": _nomic(
        settings=SCALED | {"hidden_dropout_prob": 0.1, "embd_pdrop": 0.1},
        pooling="cls",
        max_length=2048,
        prompts={"query": RETRIEVAL},
    ),
    "conan-v1": _bert("pooler", settings=LARGE, post=("Dense",), **_ZH),
    "xiaobu-v2": _bert("pooler", settings=LARGE, post=("Dense",), **_ZH),
    "bge-en": _bert("pooler", pooling="cls", prompts={"query": RETRIEVAL}),
    "bge-zh": _bert(
        "pooler",
        settings=LARGE,
        pooling="cls",
        prompts={"query": "为这个句子生成表示以用于检索相关文章："},
        **_ZH,
    ),
    "e5": _bert("pooler", "position_ids", prompts={"query": "query: ", "passage": "passage: "}),
    "gte": _bert("pooler", "position_ids", dtype=torch.float16),
    "minilm": _bert(
        "pooler",
        "position_ids",
        settings={"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        max_length=256,
        baked=(128, 128),
    ),
    "bert-base-uncased": _bert("pooler", "mlm_head", "nsp", "gamma_beta", **_MLM),
    "bert-base-chinese": _bert("pooler", "mlm_head", "nsp", "gamma_beta", **_ZH, **_MLM),
    "chinese-roberta-wwm-ext-large": _bert(
        "pooler",
        "mlm_head",
        "nsp",
        settings=LARGE | {"bos_token_id": 0, "eos_token_id": 2, "pooler_type": "first_token"},
        weights="bin",
        **_ZH,
        **_MLM,
    ),
}
VARIANTS = tuple(VARIANT_TABLE)
