"""Settings of config.json beside transformers: equal numbers, an error, or a warning."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, NomicBertConfig

from nomicbert import ConfigWarning, NomicBert
from nomicbert.errors import ConfigError, NomicBertError
from nomicbert.verify.references import choose
from tests.support.checkpoints import build_checkpoint, edit_config

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32, "type_vocab_size": 2,
}  # fmt: skip
THETA = {"rope_theta": 1000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, **THETA}
SHARED: list[dict[str, Any]] = [
    {},
    {"layer_norm_eps": 1e-3},
    {"layer_norm_epsilon": 1e-3},
    {"pad_token_id": 3},
    {"type_vocab_size": 1},
    {"vocab_size": 60},
    {"pad_vocab_size_multiple": 64},
    {"chunk_size_feed_forward": 2},
    {"tie_word_embeddings": False},
    {"hidden_dropout_prob": 0.5},
    {"is_decoder": True},
    {"is_causal": True},
    {"causal": True},
    {"head_dim": 4},
    {"head_dim": 16},
    {"hidden_act": "relu"},
    {"hidden_act": "gelu"},
    {"hidden_act": "gelu_new"},
    {"attention_bias": True},
    {"num_key_value_heads": 2},
    {"sliding_window": 2},
    {"layer_types": ["sliding_attention"] * 2},
    {"use_rms_norm": True},
    {"scale_attn_weights": False},
    {"prenorm": True},
    {"n_layer": 1},
    {"quantization_config": {"quant_method": "fp8"}},
    {"add_cross_attention": True},
    {"position_embedding_type": "relative_key"},
    {"pruned_heads": {"0": [1]}},
    {"max_trained_positions": 4},
]
ROTARY: list[dict[str, Any]] = [
    {"rope_parameters": {"rope_type": kind, "factor": 2.0, **THETA}}
    for kind in ("linear", "dynamic")
]
ROTARY += [
    {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, **THETA}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **THETA}, "rope_theta": 9.0},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **THETA}},
    {"rope_parameters": {"rope_theta": 50.0}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"partial_rotary_factor": 0.5},
    {"rotary_emb_interleaved": True},
    {"rotary_emb_base": 50},
    {"max_position_embeddings": 16, "rotary_scaling_factor": 2.0},
    {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    {"n_positions": 8},
]
CASES = [("bert", c) for c in SHARED] + [("nomic_bert", c) for c in SHARED + ROTARY]


@pytest.mark.parametrize(("family", "change"), CASES, ids=str)
def test_a_setting_counts_or_is_named(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    config_class = BertConfig if family == "bert" else NomicBertConfig
    config = config_class(**SIZES)
    try:
        config = config_class(**{**SIZES, **change})
        model = AutoModel.from_config(config)
    except (ValueError, KeyError, ImportError, AttributeError):
        model = AutoModel.from_config(config_class(**SIZES))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    ids = torch.randint(4, 60, (2, 24), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    types = torch.zeros_like(ids)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConfigWarning)
        try:
            ours = NomicBert.from_pretrained(tmp_path)
        except NomicBertError:
            return  # named, in `test_refused_settings` and in test_hub_config
    with torch.no_grad():
        found = ours(ids, mask, token_type_ids=types).last_hidden_state
        truth = AutoModel.from_pretrained(tmp_path).eval()
        wanted = truth(ids, mask, token_type_ids=types).last_hidden_state * mask[..., None]
    differ = not torch.allclose(found, wanted, atol=2e-4)
    assert differ == bool(caught), f"{AutoConfig.from_pretrained(tmp_path)}"


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("nomic-v1.5", {"head_dim": 8}, "head_dim = 8 is not supported: 4 heads must be as wide"),
        (
            "e5",
            {"quantization_config": {"bits": 4}},
            r"quantization_config = .*'bits': 4.* load the checkpoint that was quantised",
        ),
        ("nomic-v1.5", {"is_causal": True}, "is_causal = True is not supported"),
        ("e5", {"is_causal": True}, "is_causal = True is not supported"),
        ("nomic-v1.5", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ("nomic-v1.5", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not"),
        (
            "nomic-v1.5",
            {"rope_scaling": {"type": "linear"}},
            "contradicts itself: rope_parameters = .* but rope_scal",
        ),
    ],
)
def test_refused_settings(
    variant: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build_checkpoint(tmp_path, variant, num_hidden_layers=1, dialect="native")
    edit_config(tmp_path, **change)
    with pytest.raises(ConfigError, match=message):
        NomicBert.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved = true"),
    ],
)
def test_partial_and_interleaved_angles_are_reported_everywhere(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """At load of a native config, at save, and by the reference that verify chooses."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, dialect="native")
    edit_config(tmp_path, **change)
    with pytest.warns(ConfigWarning, match=f"config.json: {said} counts here, but transformers'"):
        model = NomicBert.from_pretrained(tmp_path)
    with pytest.warns(ConfigWarning, match=f"says {said}, which transformers' own NomicBertModel"):
        model.save_pretrained(tmp_path / "saved")
    # what is saved has the keys of the original code too, which obeys them: no warning
    assert (
        NomicBert.from_pretrained(tmp_path / "saved").config.rotary_dim == model.config.rotary_dim
    )
    reason = choose(tmp_path, torch.device("cpu")).reason
    assert "which transformers' NomicBertModel ignores or refuses" in reason


def test_a_scaling_factor_beside_rope_parameters_is_reported(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, dialect="native")
    edit_config(tmp_path, rotary_scaling_factor=2.0)
    with pytest.warns(ConfigWarning, match="rotary_scaling_factor = 2 counts here, but"):
        NomicBert.from_pretrained(tmp_path)
    edit_config(tmp_path, rope_parameters=DYNAMIC)
    NomicBert.from_pretrained(tmp_path)  # stated where transformers looks for it
