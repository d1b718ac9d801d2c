"""The name of the vector space that an embedder produces, to refuse vectors of another one.

    "<space>.<prompt>": 32 hex characters, a dot, 8 hex characters

Where in the flow: servers, bulk jobs, search indexes and exports store it beside vectors. The space
names whatever changes a vector: weights, architecture, tokenizer, pooling, the steps that a call
asks for, the dtype of the computation and the backend. The prompt has a part of its own: queries
and documents of one checkpoint are compared with each other, so they share the space.

It does not name processor, threads, batch, device, library version, path or `max_seq_length`.
Vectors of one space are equal up to rounding, or to the bit where docs/bits.md promises so.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.plain_layers import is_hooked, is_plain, is_plain_norm, is_plain_table
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize

# Raised when a change of this library changes the vectors of a checkpoint, or this format.
VERSION = 1
SPACE, PROMPT = 32, 8
# Calls whose fingerprints a process keeps: prompts may come from the callers of a server.
KEPT = 1024
# BERT's pooler, which no vector depends on, and which a saved copy does not have.
UNUSED = "encoder.pooler."

# Classes of torch's layers -> whether one computes what its parameters say.
LAYERS: dict[type[nn.Module], Callable[[nn.Module], bool]] = {
    nn.Linear: is_plain,
    nn.Embedding: is_plain_table,
    nn.LayerNorm: is_plain_norm,
}


def matches(expected: str, found: str) -> bool:
    """Whether a fingerprint is the expected one.

    Args:
        expected: a fingerprint; or its space alone, without the dot, which fits any prompt.
        found: a fingerprint.
    """
    return expected == (found if "." in expected else found.partition(".")[0])


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprints of one loaded model, as it was when this object was made.

    Attributes:
        model: hash of all that does not depend on a call.
        width: columns of a vector before a call cuts it.
        unit: whether the checkpoint's modules end with L2.
        layer_norm: whether its Matryoshka recipe begins with layer_norm.
    """

    model: str
    width: int
    unit: bool
    layer_norm: bool

    @classmethod
    def of(
        cls, model: EmbeddingModel, tokenizer: Tokenizer, backend: str | None = None
    ) -> "Fingerprint":
        """Read all parameters: about a second per 2 GB.

        Args:
            model: the checkpoint as loaded.
            tokenizer: of the checkpoint.
            backend: name of another backend, to see what differs from its vectors in rounding only.

        Raises:
            ValueError: a layer that was replaced, wrapped or hooked (such as a LoRA adapter): its
                parameters do not tell what it computes.
            BackendError: the backend cannot run here.
        """
        _refuse_unknown(model)
        pooling, encoder = model.pooling, model.encoder
        steps = pooling.steps_for(Finish(unnormalized=True))
        named = {
            "version": VERSION,
            "parameters": dict(_parameters(model)),
            "architecture": _architecture(encoder.config),
            "tokenizer": _tokenizer(tokenizer, pooling.include_prompt),
            "pooling": [pooling.modes, pooling.include_prompt, _steps(steps)],
            "dtype": _name(encoder.compute_dtype),
            "backend": backend or encoder.ops.name,
        }
        unit = pooling.normalize or len(steps) < len(pooling.steps_for(Finish()))
        width = pooling.embedding_dimension
        return cls(_hash(named), width, unit, pooling.matryoshka_layer_norm)

    def of_call(self, finish: Finish, prompt: str) -> str:
        """The fingerprint of vectors that a call asks for; cached.

        Calls that differ in rounding only have the same one, such as `matryoshka_dim` and
        `truncate_dim` with `normalize` where the recipe has no layer_norm.

        Args:
            finish: valid for this model's pooling.
            prompt: the text put before every text.
        """
        return _of_call(self, finish, prompt)

    def _recipe(self, finish: Finish) -> dict[str, bool | int | str]:
        """What a call does to a pooled vector: layer_norm, width, and which length it then has."""
        short = finish.matryoshka_dim is not None
        unit = (self.unit or short) and not finish.unnormalized
        width = int(finish.matryoshka_dim or self.width)
        kept = int(finish.truncate_dim or width)
        length = "1 before the slice" if unit and kept < width else "1" if unit else "any"
        return {
            "layer_norm": self.layer_norm and short,
            "width": kept,
            "length": "1" if finish.normalize else length,
        }


@lru_cache(maxsize=KEPT)
def _of_call(of: Fingerprint, finish: Finish, prompt: str) -> str:
    space = _hash([of.model, of._recipe(finish)])
    return f"{space[:SPACE]}.{_hash(prompt)[:PROMPT]}"


def _hash(value: object) -> str:
    """SHA-256 of a value as JSON, which separates its parts and has one order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _parameters(model: EmbeddingModel) -> Iterator[tuple[str, list[object]]]:
    """Name -> dtype, shape and SHA-256 of the values of every parameter."""
    for name, parameter in model.named_parameters():
        if not name.startswith(UNUSED):
            shape = list(parameter.shape)
            yield name, [_name(parameter.dtype), shape, _values(parameter)]


def _values(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in row-major order; copied only from another device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _architecture(config: EncoderConfig) -> dict[str, object]:
    """The settings that change vectors and that no parameter's shape shows.

    For positions that rotate, `max_position_embeddings` is only a limit; without NTK scaling, so is
    the trained length.
    """
    found: dict[str, object] = {
        "hidden_act": config.hidden_act,
        "layer_norm_eps": float(config.layer_norm_eps),
        "num_attention_heads": config.num_attention_heads,
    }
    if config.num_experts:
        found["moe_top_k"] = config.moe_top_k
    if config.rotary_dim:
        rotary = (config.rotary_dim, float(config.rope_theta), config.rotary_interleaved)
        factor = config.rotary_scaling_factor
        scaling = None if factor is None else (float(factor), config.max_trained_positions)
        found["rotary"] = (*rotary, scaling)
    return found


def _tokenizer(tokenizer: Tokenizer, include_prompt: bool) -> dict[str, object]:
    """All that decides a text's ids but their maximum number.

    The special ids decide how many tokens a prompt has, which counts where it is left out.
    """
    return {
        "json": json.loads(tokenizer.rust.to_str()),
        "splits_special": tokenizer.rust.encode_special_tokens,
        "lower_case": tokenizer.lower_case,
        "around": (tokenizer.prefix, tokenizer.suffix),
        "cuts_start": tokenizer.cuts_start,
        "special": None if include_prompt else sorted(tokenizer.special),
    }


def _steps(steps: Iterable[nn.Module]) -> list[list[object]]:
    """The modules after pooling, without their parameters, and without dropout."""
    found: list[list[object]] = []
    for step in steps:
        kind = type(step).__name__
        if isinstance(step, Dense):
            found.append([kind, step.activation, step.use_residual])
        elif isinstance(step, LayerNorm):
            found.append([kind, float(step.norm.eps)])
        elif not isinstance(step, Dropout):
            assert isinstance(step, Normalize), f"{kind} has settings that are not named here"
            found.append([kind])
    return found


def _refuse_unknown(model: EmbeddingModel) -> None:
    for name, module in model.named_modules():
        kind = type(module)
        if kind in LAYERS:
            known = LAYERS[kind](module)
        else:
            own = kind is nn.ModuleList or kind.__module__.startswith("nomicbert.")
            known = own and not is_hooked(module)
        if not known:
            raise ValueError(
                f"{name or 'the model'} ({kind.__name__}) was replaced, wrapped or hooked, so its "
                "parameters do not tell which vectors it computes: merge an adapter into its "
                "layer, or remove the hook"
            )
