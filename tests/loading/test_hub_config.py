"""config.json -> EncoderConfig: every row of the table, both key families, refusals."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.hub_config import read_config
from tests.support.checkpoints import VARIANTS, build_checkpoint, edit_config

# Tiny rows share their width; everything else is as in the published configs.
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
NOMIC = TINY | {
    "model_type": "nomic_bert",
    "vocab_size": 384,
    "type_vocab_size": 2,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-12,
    "hidden_act": "swiglu",
    **dict.fromkeys(("qkv_bias", "mlp_up_bias", "mlp_down_bias"), False),
    "rotary_dim": 16,
    "rope_theta": 1000.0,
    "max_trained_positions": 2048,
}
BERT = TINY | {
    "model_type": "bert",
    "vocab_size": 378,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
ZH = {"vocab_size": 544}
SCALED = {"rotary_scaling_factor": 2.0}
MOE = {
    "vocab_size": 448,
    "type_vocab_size": 1,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    **dict.fromkeys(("qkv_bias", "mlp_up_bias", "mlp_down_bias"), True),
    "rope_theta": 10000.0,
    "num_experts": 8,
    "moe_top_k": 2,
    "pad_token_id": 1,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "nomic-v1.5": NOMIC,
    "nomic-v1": NOMIC | SCALED,
    "nomic-v1-unsupervised": NOMIC | SCALED,
    "nomic-bert-2048": NOMIC | {"max_position_embeddings": 2048, "hidden_dropout_prob": 0.1},
    "nomic-v2-moe": NOMIC | MOE,
    "code-rank-embed": NOMIC,
    "arctic-m-long": NOMIC | SCALED | {"hidden_dropout_prob": 0.1},
    **dict.fromkeys(("bge-en", "e5", "gte", "minilm", "bert-base-uncased"), BERT),
    **dict.fromkeys(("conan-v1", "xiaobu-v2", "bge-zh", "bert-base-chinese"), BERT | ZH),
    "chinese-roberta-wwm-ext-large": BERT | ZH,
}


def config_of(folder: Path, variant: str = "nomic-v1.5", **changes: Any) -> EncoderConfig:
    """The variant's config with some keys of config.json changed afterwards; ... removes one."""
    dialect = changes.pop("dialect", None)
    build_checkpoint(folder, variant, dialect=dialect)
    edit_config(folder, **changes)
    return read_config(folder)


def plain(config: EncoderConfig) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(config, source={}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_the_table(variant: str, tmp_path: Path) -> None:
    assert plain(config_of(tmp_path, variant)) == plain(EncoderConfig(**EXPECTED[variant]))


@pytest.mark.parametrize("dialect", ["legacy", "native", "both"])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "arctic-m-long"])
def test_both_key_families_mean_the_same(variant: str, dialect: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, variant, dialect=dialect)
    served = 2048 if dialect == "native" else 8192  # transformers' own class has no n_positions
    assert plain(config) == plain(
        EncoderConfig(**EXPECTED[variant] | {"max_position_embeddings": served})
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 96}, r"n_embd = 96 but hidden_size = 64"),
        ({"num_hidden_layers": 4}, r"n_layer = 3 but num_hidden_layers = 4"),
        ({"n_head": 8}, r"n_head = 8 but num_attention_heads = 4"),
        ({"intermediate_size": 128}, r"n_inner = 96 but intermediate_size = 128"),
        ({"layer_norm_epsilon": 1e-5}, r"layer_norm_epsilon = 1e-05 but layer_norm_eps = 1e-12"),
        ({"rotary_emb_base": 10000}, r"base = 10000 but rope_parameters.rope_theta = 1000.0"),
        ({"activation_function": "gelu"}, r"activation_function = 'gelu' but hidden_act = 'silu'"),
        (
            {"rope_parameters": {"rope_theta": 1000, "rope_type": "dynamic", "factor": 2.0},
             "rotary_scaling_factor": 4},
            r"rotary_scaling_factor = 4 but rope_parameters.factor = 2.0",
        ),
        (
            {"rope_parameters": {"rope_theta": 1000, "partial_rotary_factor": 0.5}},
            r"rotary_emb_fraction = 1.0 but rope_parameters.partial_rotary_factor = 0.5",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_names_both(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"config.json contradicts itself: .*{message}"):
        config_of(tmp_path, **change)


def test_sizes(tmp_path: Path) -> None:
    inner = config_of(tmp_path, n_inner=2048.0, intermediate_size=...).intermediate_size
    assert (inner, type(inner)) == (2048, int)
    # absent or null: 8/3 of the width, rounded up to 256, where gated; four times where plain
    absent = {"n_inner": None, "intermediate_size": ...}
    assert config_of(tmp_path, **absent).intermediate_size == 256
    wide = {"n_embd": 768, "hidden_size": 768}
    assert config_of(tmp_path, **absent, **wide).intermediate_size == 2048
    assert config_of(tmp_path, "nomic-v2-moe", n_inner=None).intermediate_size == 256
    assert config_of(tmp_path, "nomic-v2-moe", n_inner=..., n_embd=96).intermediate_size == 384
    assert config_of(tmp_path, vocab_size=30522).vocab_size == 30528
    assert config_of(tmp_path, vocab_size=30522, pad_vocab_size_multiple=1).vocab_size == 30522
    assert config_of(tmp_path, vocab_size=30522, pad_vocab_size_multiple=...).vocab_size == 30522
    half = config_of(tmp_path, rotary_emb_fraction=0.5)
    assert (half.rotary_dim, half.head_dim) == (8, 16)
    assert config_of(tmp_path, rotary_emb_interleaved=True).rotary_interleaved


def test_biases_default_to_those_of_the_class(tmp_path: Path) -> None:
    keys = dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), ...)
    for dialect, biased in (("legacy", True), ("native", False)):
        config = config_of(tmp_path, dialect=dialect, **keys)
        assert [config.qkv_bias, config.mlp_up_bias, config.mlp_down_bias] == [biased] * 3


def test_trained_and_served_lengths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nomicbert")
    config = config_of(tmp_path, "nomic-v1")  # only max_position_embeddings, of 8192
    assert (config.max_trained_positions, config.max_position_embeddings) == (2048, 8192)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "max_position_embeddings = 8192 is taken as the served length" in record.getMessage()
    caplog.clear()
    assert config_of(tmp_path, max_trained_positions=512).max_trained_positions == 512
    native = config_of(tmp_path, dialect="native", max_position_embeddings=1024)
    assert (native.max_trained_positions, native.max_position_embeddings) == (1024, 1024)
    # n_positions is the served length and not compared with other keys; 0 means not stated
    assert config_of(tmp_path, n_positions=77).max_position_embeddings == 77
    assert config_of(tmp_path, n_positions=0).max_position_embeddings == 2048
    assert not caplog.records


def test_scaling_factor(tmp_path: Path) -> None:
    rope = {"rope_theta": 1000.0, "rope_type": "dynamic", "factor": 2.0}
    config = config_of(tmp_path, dialect="native", rope_parameters=rope)
    assert config.rotary_scaling_factor == 2.0
    assert read_config(tmp_path, 4).rotary_scaling_factor == 4.0
    assert read_config(tmp_path, 0).rotary_scaling_factor is None
    # "default" states no factor: the legacy key decides
    assert config_of(tmp_path, rotary_scaling_factor=2).rotary_scaling_factor == 2.0
    assert config_of(tmp_path, rotary_scaling_factor=0).rotary_scaling_factor is None
    build_checkpoint(tmp_path, "bge-en")
    assert read_config(tmp_path, 0).rotary_scaling_factor is None
    with pytest.raises(ConfigError, match="a bert checkpoint has no rotary_scaling_factor"):
        read_config(tmp_path, 2)


SWITCHES = (
    "prenorm use_rms_norm parallel_block parallel_block_tied_norm norm_mlp causal "
    "scale_attn_by_inverse_layer_idx expert_choice_router moe_normalize_expert_weights"
)
REFUSED_NOMIC = [
    *((key, True) for key in SWITCHES.split()),
    *(("rotary_emb_scale_base", 512), ("rotary_head_dim", 8), ("scale_attn_weights", False)),
    *(("num_shared_experts", 1), ("ffn_div", 2), ("moe_every_n_layers", 3)),
    *(("moe_every_n_layers", 1), ("activation_function", "geglu"), ("hidden_act", "relu")),
    *(("rotary_emb_fraction", 0.0), ("rotary_emb_fraction", 1.5), ("hidden_act", "gelu")),
]
REFUSED_BERT = [
    *(("hidden_act", "mish"), ("hidden_act", "swiglu"), ("is_decoder", True)),
    *(("position_embedding_type", "relative_key"), ("add_cross_attention", True)),
]


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [("nomic-v1.5", *item) for item in REFUSED_NOMIC]
    + [("bge-en", *item) for item in REFUSED_BERT],
)
def test_unsupported_switches_are_refused(
    variant: str, key: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {key} = {value!r} is not supported"):
        config_of(tmp_path, variant, **{key: value})


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("nomic-v1.5", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not sup"),
        ("nomic-v1.5", {"rope_parameters": [1]}, r"rope_parameters must be an object, not \[1\]"),
        ("nomic-v1.5", {"n_head": 5, "num_attention_heads": ...}, "64 does not divide into 5 att"),
        ("bge-en", {"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0"),
        ("bge-en", {"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number"),
        ("bge-en", {"hidden_size": "64"}, "hidden_size must be a number, not '64'"),
        ("bge-en", {"hidden_size": ...}, "config.json lacks hidden_size$"),
        ("code-rank-embed", {"n_embd": ...}, r"lacks n_embd \(or hidden_size\)"),
        ("code-rank-embed", {"rotary_emb_fraction": ...}, "lacks rotary_emb_fraction"),
        ("code-rank-embed", {"activation_function": ...}, "lacks activation_function"),
        ("code-rank-embed", {"layer_norm_epsilon": ...}, "lacks layer_norm_epsilon"),
        ("code-rank-embed", {"rotary_emb_base": ...}, "lacks rotary_emb_base"),
        ("nomic-v1.5", {"rotary_emb_fraction": 0.2}, "rotary_dim must be even, not 3"),
        ("nomic-v2-moe", {"num_experts": ...}, "lacks num_experts"),
        ("nomic-v2-moe", {"moe_top_k": 9}, "moe_top_k must be 1 to 8, not 9"),
        ("bge-en", {"model_type": "roberta"}, "model_type = 'roberta' is not supported; supported"),
        ("bge-en", {"model_type": ...}, "model_type = None is not supported"),
        ("bge-en", {"model_type": ["bert"]}, r"model_type = \['bert'\] is not supported"),
        ("bge-en", {"type_vocab_size": 0}, "type_vocab_size must be at least 1, not 0"),
        (
            "bge-en",
            {"layer_norm_eps": -1e-5},
            "layer_norm_eps must be finite and at least 0.0, not",
        ),
        ("code-rank-embed", {"activation_function": ["gelu"]}, r"= \['gelu'\] is not supported"),
        (
            "code-rank-embed",
            {"pad_vocab_size_multiple": 0},
            "pad_vocab_size_multiple must be at le",
        ),
        ("code-rank-embed", {"max_trained_positions": 0}, "max_trained_positions must be at least"),
        (
            "code-rank-embed",
            {"rotary_scaling_factor": -2},
            "scaling_factor must be above 0, not -2",
        ),
        ("code-rank-embed", {"rotary_scaling_factor": float("inf")}, "must be above 0, not inf"),
        ("code-rank-embed", {"rotary_emb_base": 0}, "rope_theta must be finite and at least 1.0"),
        ("code-rank-embed", {"rotary_emb_interleaved": "no"}, "must be true or false, not 'no'"),
        ("nomic-v1.5", {"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' needs a factor"),
        ("nomic-v1.5", {"rope_parameters": {"type": "linear"}}, "rope_type = 'linear' is not sup"),
    ],
)
def test_invalid_values_are_refused(
    variant: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, variant, **changes)


def test_config_json_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object, not list"):
        read_config(tmp_path)
