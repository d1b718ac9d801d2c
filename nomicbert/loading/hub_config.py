"""config.json of any supported checkpoint -> EncoderConfig; `saved_config` is the way back.

NomicBERT checkpoints use the keys of GPT-2 (n_embd, "legacy"), those of Hugging Face (hidden_size,
"native"), or both side by side; BERT checkpoints use those of Hugging Face. Settings that the
encoder cannot compute are refused here, so later code need not check for them.
Source: the configuration classes of nomic-embed-text-v1.5's remote code and of transformers 5.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.activation_names import BERT_ACTS
from nomicbert.loading.json_settings import Settings, naming, read_json
from nomicbert.user_warnings import ConfigWarning, warn

logger = logging.getLogger(__name__)

# The trained length of nomic-ai's rotary checkpoints if their config does not state it.
NOMIC_TRAINED_POSITIONS = 2048

# The word table has at most this many rows more than the file, or twice as many.
MOST_PADDING = 1024

# Keys that can change the computation, and their values that leave it unchanged.
NOMIC_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "prenorm": (False,),
    "use_rms_norm": (False,),
    "parallel_block": (False,),
    "parallel_block_tied_norm": (False,),
    "rotary_emb_scale_base": (),
    "rotary_head_dim": (),
    "norm_mlp": (False,),
    "causal": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "num_shared_experts": (0,),
    "expert_choice_router": (False,),
    "moe_normalize_expert_weights": (False,),
    "ffn_div": (1,),
    "is_causal": (False,),
    "output_attentions": (False,),
}
BERT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_causal": (False,),
    "add_cross_attention": (False,),
    "output_attentions": (False,),
}


def read_config(
    folder: Path, rotary_scaling_factor: float | None = None, raw: dict[str, Any] | None = None
) -> EncoderConfig:
    """Read config.json of a checkpoint folder.

    Args:
        folder: holds config.json.
        rotary_scaling_factor: alpha of dynamic NTK scaling in place of the checkpoint's own;
            0 switches scaling off; None keeps the checkpoint's.
        raw: settings in place of those in the file.

    Raises: ConfigError: missing, not JSON, contradicting itself, or unsupported.
    """
    path = folder / "config.json"
    raw = read_json(path) if raw is None else raw
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in READERS:
        raise ConfigError(
            f"{path}: model_type = {model_type!r} is not supported; supported are "
            + " and ".join(map(repr, READERS))
        )
    quantised = raw.get("quantization_config")
    if quantised is not None:
        raise ConfigError(
            f"{path}: quantization_config = {quantised!r:.80} is not supported: load the "
            "checkpoint that was quantised, and quantise here with backend='int8' or 'fp8'"
        )
    s = Settings(raw, path)
    with naming(path):
        config = READERS[model_type](s, rotary_scaling_factor)
    if model_type == "nomic_bert" and not _is_legacy(s):
        _warn_of_unread(s, config)
    return replace(config, source=raw)


def unlike_transformers(config: EncoderConfig) -> list[str]:
    """The settings, as texts, that transformers' own NomicBertModel silently ignores."""
    found = []
    if config.rotary_dim not in (0, config.head_dim):
        found.append(f"partial_rotary_factor = {config.rotary_dim / config.head_dim:g}")
    if config.rotary_interleaved:
        found.append("rotary_emb_interleaved = true")
    return found


def _warn_of_unread(s: Settings, config: EncoderConfig) -> None:
    """Warn of settings in a config of transformers' own class that this class ignores."""
    found = unlike_transformers(config)
    factor = s.raw.get("rotary_scaling_factor")
    if factor and config.rotary_scaling_factor == factor and not _rope(s).get("factor"):
        found.append(f"rotary_scaling_factor = {factor:g}")
    if found:
        warn(
            f"{s.path}: {' and '.join(found)} counts here, but transformers' own NomicBertModel "
            "ignores it and gives other vectors",
            ConfigWarning,
        )


def _is_legacy(s: Settings) -> bool:
    """Whether the config has the keys of the original code (GPT-2's names)."""
    return "n_embd" in s.raw or "rotary_emb_fraction" in s.raw


def _rope(s: Settings) -> dict[str, Any]:
    """The settings of rotary embeddings under transformers' newer and older key."""
    rope = s.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(rope, dict):
        raise ConfigError(f"{s.path}: rope_parameters must be an object, not {rope!r}")
    return rope


def _nomic(s: Settings, rotary_scaling_factor: float | None) -> EncoderConfig:
    s.refuse(NOMIC_NEUTRAL)
    legacy, rope = _is_legacy(s), _rope(s)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "dynamic"):
        raise ConfigError(
            f"{s.path}: rope_type = {rope_type!r} is not supported, only 'default' and "
            "'dynamic' are"
        )
    if rope_type == "dynamic" and rope.get("factor") is None:
        raise ConfigError(f"{s.path}: rope_type 'dynamic' needs a factor")
    # Put both sets of keys on one level. The factor of rope_type "default" is dropped: native
    # configs write "default" also where the legacy key states the scaling.
    s = Settings(
        {
            **s.raw,
            "rope_parameters.rope_theta": rope.get("rope_theta"),
            "rope_parameters.partial_rotary_factor": rope.get("partial_rotary_factor"),
            "rope_parameters.factor": rope.get("factor") if rope_type == "dynamic" else None,
        },
        s.path,
    )
    hidden_size = s.size("n_embd", "hidden_size")
    heads = s.size("n_head", "num_attention_heads")
    size = s.size("head_dim", default=0)
    if size and size * heads != hidden_size:
        raise ConfigError(
            f"{s.path}: head_dim = {size} is not supported: {heads} heads must be as wide as "
            f"hidden_size, {hidden_size}, together"
        )
    act = _nomic_activation(s)
    width = 256 * math.ceil(int(8 / 3 * hidden_size) / 256) if act == "swiglu" else 4 * hidden_size
    fraction = s.number(
        "rotary_emb_fraction",
        "rope_parameters.partial_rotary_factor",
        "partial_rotary_factor",
        default=None if legacy else 1.0,
    )
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"{s.path}: rotary_emb_fraction = {fraction} is not supported, it must be above 0 and "
            "at most 1"
        )
    if rotary_scaling_factor is None:
        rotary_scaling_factor = s.number(
            "rotary_scaling_factor", "rope_parameters.factor", default=0.0
        )
    vocab = s.size("vocab_size")
    multiple = s.size("pad_vocab_size_multiple", default=1)
    if not 1 <= multiple <= max(vocab, MOST_PADDING):
        raise ConfigError(
            f"{s.path}: pad_vocab_size_multiple must be at least 1 and at most {MOST_PADDING} or "
            f"the vocabulary's size, not {multiple}"
        )
    every = s.size("moe_every_n_layers", default=0)
    if every not in (0, 2):
        raise ConfigError(f"{s.path}: moe_every_n_layers = {every} is not supported, only 2 is")
    return EncoderConfig(
        model_type="nomic_bert",
        vocab_size=math.ceil(vocab / multiple) * multiple,
        hidden_size=hidden_size,
        num_hidden_layers=s.size("n_layer", "num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=s.size("n_inner", "intermediate_size", default=width),
        type_vocab_size=s.size("type_vocab_size"),
        max_position_embeddings=_served_positions(s),
        layer_norm_eps=s.number("layer_norm_epsilon", "layer_norm_eps"),
        hidden_act=act,
        # native class: no biases and no keys for them; legacy class: biases by default, and keys
        qkv_bias=s.flag("qkv_proj_bias", default=legacy),
        mlp_up_bias=s.flag("mlp_fc1_bias", default=legacy),
        mlp_down_bias=s.flag("mlp_fc2_bias", default=legacy),
        rotary_dim=int(hidden_size // heads * fraction) if heads else 0,
        rope_theta=float(s.number("rotary_emb_base", "rope_parameters.rope_theta")),
        rotary_interleaved=s.flag("rotary_emb_interleaved", default=False),
        rotary_scaling_factor=float(rotary_scaling_factor) or None,
        max_trained_positions=_trained_positions(s, legacy),
        num_experts=s.size("num_experts") if every else 0,
        moe_top_k=s.size("moe_top_k") if every else 0,
        hidden_dropout_prob=_dropout(s, "resid_pdrop", "hidden_dropout_prob"),
        attention_probs_dropout_prob=_dropout(s, "attn_pdrop", "attention_probs_dropout_prob"),
        initializer_range=s.number("initializer_range", default=0.02),
        pad_token_id=s.size("pad_token_id", default=0),
    )


def _nomic_activation(s: Settings) -> Literal["swiglu", "gelu"]:
    """The activation: the legacy key names the whole MLP, the native one only the gate's."""
    names: dict[tuple[str, Any], Literal["swiglu", "gelu"]] = {
        ("activation_function", "swiglu"): "swiglu",
        ("activation_function", "gelu"): "gelu",
        ("activation_function", "gelu_new"): "gelu",  # the remote code uses erf here too
        ("hidden_act", "silu"): "swiglu",
    }
    stated = {key: s.raw.get(key) for key in ("activation_function", "hidden_act")}
    given = {key: value for key, value in stated.items() if value is not None}
    for key, value in given.items():
        if not isinstance(value, str) or (key, value) not in names:
            raise ConfigError(
                f"{s.path}: {key} = {value!r} is not supported; supported are activation_function "
                "'swiglu', 'gelu', 'gelu_new' and hidden_act 'silu'"
            )
    meanings = {names[item] for item in given.items()}
    if len(meanings) > 1:
        pair = " but ".join(f"{key} = {value!r}" for key, value in given.items())
        raise ConfigError(f"{s.path} contradicts itself: {pair}. Correct one of them.")
    if not meanings:
        raise ConfigError(f"{s.path} lacks activation_function (or hidden_act)")
    return meanings.pop()


def _trained_positions(s: Settings, legacy: bool) -> int:
    stated = s.size("max_position_embeddings", default=NOMIC_TRAINED_POSITIONS)
    if s.raw.get("max_trained_positions") is not None:
        return s.size("max_trained_positions")
    if not legacy and stated <= NOMIC_TRAINED_POSITIONS:
        return stated
    if stated != NOMIC_TRAINED_POSITIONS:
        logger.info(
            "%s: max_position_embeddings = %d is taken as the served length; the trained length, "
            "where dynamic NTK scaling begins, as %d",
            s.path, stated, NOMIC_TRAINED_POSITIONS,
        )  # fmt: skip
    return NOMIC_TRAINED_POSITIONS


def _served_positions(s: Settings) -> int:
    positions = s.size("n_positions", default=0)
    if positions > 0:
        return positions
    return s.size("max_position_embeddings", default=NOMIC_TRAINED_POSITIONS)


def _dropout(s: Settings, legacy: str, native: str) -> float:
    """The legacy key wins over the native one: in real checkpoints the two differ."""
    key = legacy if s.raw.get(legacy) is not None else native
    return s.number(key, default=0.0)


def _bert(s: Settings, rotary_scaling_factor: float | None) -> EncoderConfig:
    s.refuse(BERT_NEUTRAL)
    if rotary_scaling_factor:
        raise ConfigError(f"{s.path}: a bert checkpoint has no rotary_scaling_factor")
    act = s.get("hidden_act", default="gelu")
    if not isinstance(act, str) or act not in BERT_ACTS:
        raise ConfigError(
            f"{s.path}: hidden_act = {act!r} is not supported; supported are "
            + ", ".join(map(repr, BERT_ACTS))
        )
    return EncoderConfig(
        model_type="bert",
        vocab_size=s.size("vocab_size"),
        hidden_size=s.size("hidden_size"),
        num_hidden_layers=s.size("num_hidden_layers"),
        num_attention_heads=s.size("num_attention_heads"),
        intermediate_size=s.size("intermediate_size"),
        type_vocab_size=s.size("type_vocab_size", default=2),
        max_position_embeddings=s.size("max_position_embeddings"),
        layer_norm_eps=s.number("layer_norm_eps", default=1e-12),
        hidden_act=BERT_ACTS[act],
        hidden_dropout_prob=s.number("hidden_dropout_prob", default=0.1),
        attention_probs_dropout_prob=s.number("attention_probs_dropout_prob", default=0.1),
        initializer_range=s.number("initializer_range", default=0.02),
        pad_token_id=s.size("pad_token_id", default=0),
    )


READERS = {"nomic_bert": _nomic, "bert": _bert}
