"""Rename tables: which hub tensors make up each of our parameters.

Our parameters are fused (query, key and value in one; up and gate in one), so one parameter may be
several stacked hub tensors. All other knowledge of names is here too: prefixes, old LayerNorm
names, tensors that may be left unread.
Source: tensor names of the checkpoints on the hub and of the classes that load them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError

# Prefixes that training code and task heads add to the encoder's tensor names.
PREFIXES = ("bert.", "nomic_bert.", "trunk.", "model.")
_PREFIXED = re.compile(rf"\A(?:{'|'.join(map(re.escape, PREFIXES))})+")

# Tensors that an encoder does not need: constants that we compute, and heads.
IGNORED = re.compile(
    r"(.*\.)?(position_ids|inv_freq|norm_factor)"
    r"|(cls|seq_relationship|pooler|classifier|qa_outputs)\..*"
)

# Tensors of heads, which have no prefix on the hub. Our names: see `modeling.heads`.
HEADS = {
    "transform": "cls.predictions.transform.dense",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
DECODER_WEIGHT, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias"
# The same bias under the name of the layer that adds it. If config.json unties the decoder from the
# word embeddings, the two are separate parameters, and only this one is used.
UNTIED_BIAS = "cls.predictions.decoder.bias"
WORDS = "embeddings.word_embeddings.weight"
# Tensors with one row per word: the file may have fewer rows than the rounded-up vocabulary.
PADDED = (WORDS, DECODER_WEIGHT, DECODER_BIAS)

NOMIC = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "emb_ln",
}
NOMIC_LAYER = {
    "attention.qkv": "attn.Wqkv",
    "attention.out": "attn.out_proj",
    "attention_norm": "norm1",
    "mlp.up": "mlp.fc1",
    "mlp.up_gate": ("mlp.fc11", "mlp.fc12"),
    "mlp.down": "mlp.fc2",
    "mlp_norm": "norm2",
}
NOMIC_MOE = {
    "mlp.router.weight": "mlp.router.layer.weight",
    "mlp.experts_up": "mlp.experts.mlp.w1",
    "mlp.experts_down": "mlp.experts.mlp.w2",
    "mlp.bias": "mlp.experts.bias",
}
BERT = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
NOMIC_POOLER = {"pooler": "pooler.dense"}
NOMIC_HEADS = HEADS | {"transform_norm": "cls.predictions.transform.layer_norm"}
BERT_HEADS = HEADS | {"transform_norm": "cls.predictions.transform.LayerNorm"}
# Prefix of the encoder's tensors in the file of a model with a head.
ENCODER_PREFIX = {"nomic_bert": "nomic_bert.", "bert": "bert."}

Form = Literal["stacked", "experts", "experts_transposed"]


@dataclass(frozen=True)
class Recipe:
    """How one of our parameters is laid out on disk.

    Attributes:
        target: our name.
        parts: hub names without prefix; stacked along dimension 0 they make the parameter.
        form: "stacked" as above · "experts" (E F, H) on disk, (E, F, H) here ·
            "experts_transposed" (E F, H) on disk, (E, H, F) here.
    """

    target: str
    parts: tuple[str, ...]
    form: Form = "stacked"

    def part_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each part on disk, for a parameter of this shape."""
        if self.form == "stacked":
            return (shape[0] // len(self.parts), *shape[1:])
        experts, a, b = shape
        return (experts * a, b) if self.form == "experts" else (experts * b, a)

    def views(self, parameter: Tensor) -> list[Tensor]:
        """Views of the parameter, one per part on disk, to copy into when loading."""
        if self.form == "stacked":
            return list(parameter.chunk(len(self.parts)))
        return [parameter if self.form == "experts" else parameter.transpose(1, 2)]


def canonical(name: str) -> str:
    """A hub name without prefixes, with current LayerNorm names and one name for tied biases."""
    name = _PREFIXED.sub("", name, count=1)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return DECODER_BIAS if name == UNTIED_BIAS else name


def is_untied(config: EncoderConfig) -> bool:
    """Whether config.json states that the decoder has its own weight and bias."""
    return config.source.get("tie_word_embeddings") is False


def computed(names: list[str], untied: bool) -> list[str]:
    """Hub names, without `cls.predictions.bias` if an untied decoder has a bias of its own."""
    if not untied or not any(name.endswith(UNTIED_BIAS) for name in names):
        return names
    return [name for name in names if not name.endswith(DECODER_BIAS)]


def recipes(config: EncoderConfig, parameters: list[str]) -> Iterator[Recipe]:
    """The recipe of each parameter.

    Args:
        config: decides the hub layout.
        parameters: our names; those of an encoder inside a model with a head begin "encoder.".

    Raises: CheckpointError: a parameter that no layer of this package has.
    """
    nomic = config.model_type == "nomic_bert"
    top, layer = (NOMIC | NOMIC_POOLER, NOMIC_LAYER) if nomic else (BERT, BERT_LAYER)
    heads = NOMIC_HEADS if nomic else BERT_HEADS
    hub_layers = "encoder.layers" if nomic else "encoder.layer"
    for target in parameters:
        if target in ("decoder", "decoder_bias"):
            yield Recipe(target, (DECODER_BIAS if target == "decoder_bias" else DECODER_WEIGHT,))
            continue
        name = target.removeprefix("encoder.")
        match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        stem = match[2] if match else name
        home = f"{hub_layers}.{match[1]}." if match else ""
        if match and stem in NOMIC_MOE:
            form: Form = "stacked"
            if stem.startswith("mlp.experts"):
                form = "experts_transposed" if stem.endswith("down") else "experts"
            yield Recipe(target, (home + NOMIC_MOE[stem],), form)
            continue
        stem, _, kind = stem.rpartition(".")
        table = layer if match else top | heads
        if stem not in table:
            raise CheckpointError(
                f"the parameter {target} is not one of the hub's layout: a layer was wrapped or "
                "replaced. Merge it first (peft: merge_and_unload; parametrisations: "
                "torch.nn.utils.parametrize.remove_parametrizations)"
            )
        parts = table[stem]
        parts = (parts,) if isinstance(parts, str) else parts
        yield Recipe(target, tuple(f"{home}{part}.{kind}" for part in parts))
