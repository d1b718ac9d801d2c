"""EncoderConfig -> the config.json to save, for any loader of the hub's layout.

Source: the configuration classes of nomic-embed-text-v1.5's remote code and of transformers 5.
"""

from typing import Any

import torch

from nomicbert.config import EncoderConfig
from nomicbert.loading.activation_names import BERT_ACTS
from nomicbert.loading.hub_config import unlike_transformers


def saved_config(config: EncoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Make config.json for saving: the checkpoint's own keys, overridden by those of `config`.

    A NomicBERT config gets legacy and native keys, so that the remote code and transformers' own
    class load the same model. The trained length is stored where each of them looks for it.
    """
    unpadded = config.source.get("pad_token_id", 0) is None  # no padding row
    native: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "type_vocab_size": config.type_vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "initializer_range": config.initializer_range,
        "pad_token_id": None if unpadded else config.pad_token_id,
        "model_type": config.model_type,
        "architectures": ["BertModel"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    kept = {key: value for key, value in config.source.items() if key != "torch_dtype"}
    if config.model_type == "bert":
        if BERT_ACTS.get(str(kept.get("hidden_act"))) == config.hidden_act:
            del native["hidden_act"]  # the checkpoint's own name for it
        return {**kept, **native}
    fraction = config.rotary_dim / config.head_dim
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rotary_scaling_factor:
        rope |= {"rope_type": "dynamic", "factor": config.rotary_scaling_factor}
    if fraction < 1:
        rope["partial_rotary_factor"] = fraction
    native |= {
        "architectures": ["NomicBertModel"],
        "max_position_embeddings": config.max_trained_positions,
        "rope_parameters": rope,
    }
    if config.hidden_act == "swiglu":
        native["hidden_act"] = "silu"
    else:  # the native class has only a gated MLP, and would misread this key
        del native["hidden_act"]
    legacy = {
        "pad_vocab_size_multiple": 1,  # vocab_size already includes the padding rows
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "max_trained_positions": config.max_trained_positions,
        "activation_function": config.hidden_act,
        "layer_norm_epsilon": config.layer_norm_eps,
        "rotary_emb_base": config.rope_theta,
        "rotary_emb_fraction": fraction,
        "rotary_emb_interleaved": config.rotary_interleaved,
        "rotary_scaling_factor": config.rotary_scaling_factor,
        "qkv_proj_bias": config.qkv_bias,
        "mlp_fc1_bias": config.mlp_up_bias,
        "mlp_fc2_bias": config.mlp_down_bias,
        "resid_pdrop": config.hidden_dropout_prob,
        "attn_pdrop": config.attention_probs_dropout_prob,
    }
    return {**kept, **native, **legacy}


def beyond_transformers(config: EncoderConfig, max_length: int = 0) -> list[str]:
    """What transformers' own class would compute otherwise, or not load, after `saved_config`.

    Args:
        config: of the encoder.
        max_length: maximum tokens per text; dynamic NTK scaling applies above the trained length,
            and depends there on the other texts of a batch, and of batches before it.

    Returns: settings, as texts; none if transformers computes the same.
    Source: NomicBertModel and NomicBertConfig of transformers 5.
    """
    if config.model_type == "bert":
        return []
    found = unlike_transformers(config)
    if config.num_experts:
        found.append(f"num_experts = {config.num_experts}")
    if config.hidden_act != "swiglu":
        found.append(f"activation_function = {config.hidden_act!r}")
    biases = {
        "qkv_proj_bias": config.qkv_bias,
        "mlp_fc1_bias": config.mlp_up_bias,
        "mlp_fc2_bias": config.mlp_down_bias,
    }
    found += [f"{name} = true" for name, has in biases.items() if has]
    factor, trained = config.rotary_scaling_factor, config.max_trained_positions
    if factor and max_length > trained:
        found.append(
            f"rotary_scaling_factor = {factor:g} with max_seq_length = {max_length} (above "
            f"{trained}, its trained length)"
        )
    return found
