"""The calls of each op that the tests here make: its variants, for every model that has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import pytest

from bench import problems
from bench.aot_cases import Model
from bench.problem import Draw, Problem
from nomicbert_kernels import PoolMode
from tests.gpu.support import HEADS, INTERPRETED, MODELS, NOMIC, models

MODES: tuple[PoolMode, ...] = get_args(PoolMode)


@dataclass(frozen=True)
class Case:
    """An op with the sizes of a model, for any number of tokens or any texts.

    Attributes:
        texts: whether the call takes text lengths instead of a number of tokens.
    """

    op: str
    model: Model
    make: Callable[..., Problem]
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    texts: bool = False

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.op, self.model.name, self.variant) if word)

    def problem(self, draw: Draw, size: int | Sequence[int]) -> Problem:
        """A problem of `size` tokens, or of texts with these lengths."""
        if self.texts and isinstance(size, int):
            size = split(size)
        return self.make(self.model, draw, size, **self.options)


def split(tokens: int) -> list[int]:
    """Lengths of a long text and two short ones, with `tokens` tokens in total."""
    short = tokens // 5
    return [tokens - 2 * short, *[short] * 2] if short else [tokens]


LINEAR = [
    Case("linear", model, problems.linear, variant, options)
    for model in MODELS
    if model.mlp != "moe"
    for variant, options in (
        ("out", {}),
        ("down", {"down": True, "residual": False}),
    )
]
QKV = [
    *(Case("qkv_rotary", model, problems.qkv_rotary) for model in MODELS),
    *(
        Case("qkv_rotary", model, problems.qkv_rotary)
        for model in HEADS
        if model.rotary and model.head_dim & (model.head_dim - 1) == 0
    ),
    Case("qkv_rotary", NOMIC, problems.qkv_rotary, "interleaved", {"interleaved": True}),
    Case("qkv_rotary", NOMIC, problems.qkv_rotary, "half", {"fraction": 0.5}),
]
SWIGLU = [Case("swiglu", model, problems.swiglu) for model in models("swiglu")]
GELU = [Case("gelu", model, problems.gelu) for model in models("gelu")]
MOE = [Case("moe", model, problems.moe) for model in models("moe")]
NORM = [
    *(Case("layer_norm", model, problems.layer_norm) for model in MODELS if model.mlp != "moe"),
    Case("layer_norm", NOMIC, problems.layer_norm, "alone", {"residual": False}),
    Case("layer_norm", NOMIC, problems.layer_norm, "plain", {"residual": False, "affine": False}),
]
WORDS = {"vocabulary": 50} if INTERPRETED else {}
EMBED = [Case("embed", m, problems.embed, "", WORDS) for m in MODELS if m.mlp != "moe"]
ATTENTION = [
    Case("attention", model, problems.attention, variant, options, texts=True)
    for model in (*(m for m in MODELS if m.mlp != "moe"), *HEADS)
    for variant, options in (("", {}), ("one row", {"one_row": True}))
]
POOL = [
    *(Case("pool", NOMIC, problems.pool, mode, {"mode": mode}, texts=True) for mode in MODES),
    *(
        Case(
            "pool",
            model,
            problems.pool,
            "card",
            {"layer_norm": True, "dim": model.hidden // 3, "normalize": True},
            texts=True,
        )
        for model in MODELS
        if model.mlp != "moe"
    ),
]
PRODUCTS = [*LINEAR, *QKV, *SWIGLU, *GELU]
BY_TOKENS = [*PRODUCTS, *MOE, *NORM, *EMBED]
BY_TEXTS = [*ATTENTION, *POOL]
CASES = [*BY_TOKENS, *BY_TEXTS]
# The first case of each op, which is that of the first model.
FIRST = list({case.op: case for case in reversed(CASES)}.values())

named = partial(pytest.mark.parametrize, "case", ids=lambda case: case.name)
