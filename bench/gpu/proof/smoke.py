"""Each op once, in the sizes of real models, against the fp64 reference on the device.

Uninitialised memory is filled with NaN, so that values a kernel does not write are seen.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench import problems
from bench.aot_cases import Model
from bench.gpu.ops import makers
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, matched
from bench.gpu.runner.child import Case, Facts
from bench.harness import WrongValues
from bench.problem import Draw, Problem, error_and_bound, poisoned

# A part of a tile, some tiles, and a full wave on 132 multiprocessors.
TOKENS, DRY_TOKENS = (17, 512, 16896), (5, 70)
# Tokens of the longest text, limited by the memory of the fp64 reference; and of short texts, below
# and above a tile's edge.
LONGEST, DRY_LONGEST = 2048, 40
OTHERS = (1, 63, 64, 65)
# Ops of the other models that nomic does not cover.
OTHER_MODELS = {
    "bert-large": ("qkv_rotary", "gelu", "linear down", "layer_norm", "embed", "attention"),
    "minilm": ("attention", "layer_norm"),
    "nomic-moe": ("moe",),
}
NOMIC = (
    "qkv_rotary", "swiglu", "linear out", "linear down", "layer_norm", "embed", "attention",
    "attention, first tokens", "pool", "pool, card",
)  # fmt: skip
# (draws, tokens) -> the problem.
Make = Callable[[Draw, int], Problem]


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """A case for each op of each model."""
    place = Place.here(options["dry"])
    found = [
        case(place, name, functools.partial(checked, place, make), 2.0)
        for name, make in calls(place)
    ]
    return matched(found, options)


def calls(place: Place) -> Iterator[tuple[str, Make]]:
    """Name of each op of each model, and a function that makes its problem."""
    for name, wanted in {"nomic": NOMIC, **OTHER_MODELS}.items():
        (model,) = place.models(name)
        for op in wanted:
            yield f"{name} {op}", functools.partial(make_of(op, model), place)


def make_of(op: str, model: Model) -> Callable[[Place, Draw, int], Problem]:
    """A function that makes the problem of an op."""

    def make(place: Place, draw: Draw, tokens: int) -> Problem:
        lengths = texts(tokens, DRY_LONGEST if place.dry else LONGEST)
        if op.startswith("attention"):
            return problems.attention(model, draw, lengths, one_row="first" in op)
        if op == "pool":
            return problems.pool(model, draw, lengths)
        if op == "pool, card":
            card: dict[str, Any] = {"layer_norm": True, "dim": model.hidden // 3, "normalize": True}
            return problems.pool(model, draw, lengths, **card)
        return makers(model)[op](model, draw, tokens)[0]

    return make


def texts(tokens: int, longest: int) -> list[int]:
    """Lengths that add up to `tokens`: short texts, a remainder, and texts of `longest` tokens."""
    short = [length for length in OTHERS if 4 * length < tokens]
    whole, rest = divmod(tokens - sum(short), longest)
    return [*short, *([rest] if rest else []), *[longest] * whole]


def checked(place: Place, make: Make) -> Facts:
    """Error and bound of an op at each number of tokens.

    Raises: WrongValues: an error is beyond its bound, or NaN.
    """
    found: list[dict[str, Any]] = []
    for tokens in DRY_TOKENS if place.dry else TOKENS:
        problem = make(Draw(place.device, place.dtype, seed=tokens), tokens)
        with torch.inference_mode():
            with poisoned():
                got = problem.run(place.ops)
            error, bound = error_and_bound(got, problem.truth(), problem.plain())
        if not error <= bound:
            raise WrongValues(f"{tokens} tokens: off by {error:.3g}, allowed {bound:.3g}")
        found.append({"tokens": tokens, "error": error, "bound": bound})
    worst = max(one["error"] / one["bound"] for one in found)
    return {"errors": found, "said": f"{worst:.0%} of the bound"}
