"""EncoderConfig, the frozen configuration that an encoder is built from.

`loading.hub_config` makes it; no later code depends on how a checkpoint spells its settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nomicbert.errors import ConfigError

# "gelu" is exact, "gelu_pytorch_tanh" its approximation by tanh.
HiddenAct = Literal["swiglu", "gelu", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"]
_ACTS: dict[str, tuple[HiddenAct, ...]] = {
    "nomic_bert": ("swiglu", "gelu"),
    "bert": ("gelu", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "type_vocab_size",
    "max_position_embeddings",
)
# Elements of one tensor: 4 TB in float32. The largest table of a known encoder has 2 ** 28.
_MOST_ELEMENTS = 2**40


@dataclass(frozen=True)
class EncoderConfig:
    """Hyperparameters of an encoder, under Hugging Face's names.

    Attributes that are not self-explanatory:
        hidden_act: of the MLP: "swiglu" (gated) or "gelu" (plain, exact); for BERT (plain) "gelu",
            "gelu_pytorch_tanh", "relu", "silu" or "quick_gelu".
        max_position_embeddings: rows of the learned position table; for a rotary model the length
            that the checkpoint is served at, which does not limit the computation.
        rotary_dim: number of leading dimensions of a head that rotate; 0: learned positions.
        max_trained_positions: the length above which dynamic NTK scaling applies.
        rotary_scaling_factor: alpha of dynamic NTK scaling, None for plain rotary.
        num_experts: in the mixture of each odd layer; 0 for a dense model.
        source: config.json as it was read.
    """

    model_type: Literal["nomic_bert", "bert"]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    type_vocab_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: HiddenAct = "gelu"
    qkv_bias: bool = True
    mlp_up_bias: bool = True
    mlp_down_bias: bool = True
    rotary_dim: int = 0
    rope_theta: float = 10000.0
    rotary_interleaved: bool = False
    rotary_scaling_factor: float | None = None
    max_trained_positions: int = 0
    num_experts: int = 0
    moe_top_k: int = 0
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int = 0
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse invalid values.

        Raises: ConfigError: it names the setting and its value.
        """
        acts = _ACTS.get(self.model_type, ())
        if not acts:
            raise ConfigError(
                f"model_type must be one of {', '.join(_ACTS)}, not {self.model_type!r}"
            )
        if self.hidden_act not in acts:
            raise ConfigError(
                f"hidden_act of {self.model_type} must be one of {', '.join(acts)}, "
                f"not {self.hidden_act!r}"
            )
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, least in (("layer_norm_eps", 0.0), ("rope_theta", 1.0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ConfigError(f"{name} must be finite and at least {least}, not {value}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.initializer_range < math.inf:
            raise ConfigError(
                f"initializer_range must be finite and at least 0, not {self.initializer_range}"
            )
        rows = max(
            self.vocab_size,
            self.type_vocab_size,
            self.learned_positions or 0,
            3 * self.hidden_size,
            2 * self.intermediate_size * max(1, self.num_experts),
        )
        if rows * self.hidden_size > _MOST_ELEMENTS:
            raise ConfigError(
                f"a tensor of {rows} by {self.hidden_size} elements is larger than any model's"
            )
        if self.rotary_dim and self.max_trained_positions < 1:
            raise ConfigError(
                f"max_trained_positions must be at least 1, not {self.max_trained_positions}"
            )
        factor = self.rotary_scaling_factor
        if factor is not None and not 0 < factor < math.inf:
            raise ConfigError(f"rotary_scaling_factor must be above 0, not {factor}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        if self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim must be even, not {self.rotary_dim}")
        if self.num_experts and not 1 <= self.moe_top_k <= self.num_experts:
            raise ConfigError(f"moe_top_k must be 1 to {self.num_experts}, not {self.moe_top_k}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def learned_positions(self) -> int | None:
        """Rows of the learned position table, which bound a text's length; None for rotary."""
        return None if self.rotary_dim else self.max_position_embeddings

    @property
    def classifier_dropout(self) -> float | None:
        """Dropout before a classifier in training; None: that of the hidden states."""
        found: float | None = self.source.get("classifier_dropout")
        return found

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer `index`, from 0, holds a mixture of experts: the odd ones do."""
        return self.num_experts > 0 and index % 2 == 1
