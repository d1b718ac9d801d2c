"""Check that a finished pooled vector has the bits of the fused path, alone and in a batch.

    python -m tests.support.finishing [WIDTH ...]

`EmbeddingModel.encode_ids(ids, finish)` pools, normalises and slices in one op where it can;
`finish(pooled(batch), finish)` does so in two. Code that pools first and finishes each text as its
caller asked relies on equal bits. Every form of the modules after the encoder is tried with every
`Finish`, in each dtype and backend, on 1 and 2 threads. Prints one line per case that differs; the
exit code is 1 if any does.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nomicbert import EncoderConfig, NomicBert
from nomicbert.errors import BackendError
from nomicbert.modeling.packing import pack
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize
from nomicbert.verify.invariance import computing_on, moved
from nomicbert_kernels import Backend
from tests.support import amd

THREADS = (1, 2)
# Elements by which a pooled row is moved in memory: no multiple of 16 bytes.
SHIFT = 3
# Tokens that are left out where a prompt is.
PROMPT = 4
LENGTHS = (9, 1, 3, 3, 40, 129)
# int8 refuses to compute in bfloat16.
KINDS: tuple[tuple[torch.dtype, Backend], ...] = (
    (torch.float32, "torch"),
    (torch.bfloat16, "torch"),
    (torch.float32, "int8"),
)
# One that is a multiple of 32, one that is none, and a real one.
WIDTHS = (64, 100, 768)

Build = Callable[[int, torch.dtype], Pooling]


def _dense(activation: str) -> Build:
    return lambda width, dtype: Pooling(
        width, steps=[Dense(width, 112, activation=activation, dtype=dtype)]
    )


POOLINGS: dict[str, Build] = {
    "v1.5": lambda width, dtype: Pooling(width, matryoshka_layer_norm=True),
    "L2": lambda width, dtype: Pooling(width, normalize=True),
    "cls": lambda width, dtype: Pooling(width, ("cls",), normalize=True),
    "lasttoken": lambda width, dtype: Pooling(width, ("lasttoken",)),
    "max": lambda width, dtype: Pooling(width, ("max",)),
    "mean_sqrt_len": lambda width, dtype: Pooling(width, ("mean_sqrt_len",)),
    "weightedmean": lambda width, dtype: Pooling(width, ("weightedmean",)),
    **{f"Dense {name}": _dense(name) for name in ("Tanh", "GELU", "SiLU")},
    "Dense, residual": lambda width, dtype: Pooling(
        width, steps=[Dense(width, 80, use_residual=True, dtype=dtype)], normalize=True
    ),
    "LayerNorm": lambda width, dtype: Pooling(
        width, steps=[LayerNorm(width, dtype)], normalize=True
    ),
    "L2, Dense, L2, Dropout": lambda width, dtype: Pooling(
        width, steps=[Normalize(), Dense(width, 90, dtype=dtype), Normalize(), Dropout(0.1)]
    ),
    "two modes": lambda width, dtype: Pooling(width, ("mean", "max"), normalize=True),
    "three modes": lambda width, dtype: Pooling(width, ("cls", "weightedmean", "lasttoken")),
    **{
        f"{mode}, without its prompt": lambda width, dtype, mode=mode: Pooling(
            width, (mode,), normalize=True, include_prompt=False
        )
        for mode in ("mean", "cls", "lasttoken", "weightedmean")
    },
}
FINISHES = {
    "plain": Finish(),
    "normalize": Finish(normalize=True),
    "unnormalized": Finish(unnormalized=True),
    "matryoshka": Finish(matryoshka_dim=48),
    "matryoshka to an odd width": Finish(matryoshka_dim=37),
    "matryoshka, unnormalized": Finish(matryoshka_dim=48, unnormalized=True),
    "truncate": Finish(truncate_dim=48),
    "truncate, normalize": Finish(truncate_dim=37, normalize=True),
    "truncate, unnormalized": Finish(truncate_dim=37, unnormalized=True),
}


class Found(NamedTuple):
    """How many vectors of a case differ from the fused path's, and how many were compared."""

    case: str
    differ: int
    compared: int


def built(pooling: Build, width: int, dtype: torch.dtype, backend: Backend) -> EmbeddingModel:
    """A model of one layer with drawn parameters: BERT, or rotary for a multiple of 32."""
    bert = width % 32 > 0
    sizes = (90, width, 1, 4, 2 * width, 2, 160, 1e-12)
    config = (
        EncoderConfig("bert", *sizes)
        if bert
        else EncoderConfig(
            "nomic_bert",
            *sizes,
            hidden_act="swiglu",
            qkv_bias=False,
            rotary_dim=width // 4,
            max_trained_positions=2048,
        )
    )
    model = EmbeddingModel(NomicBert(config, backend=backend), pooling(width, dtype)).to(dtype)
    generator = torch.Generator().manual_seed(width)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if "norm.weight" in name else 0.15 * drawn)
    return model.eval()


def differing(model: EmbeddingModel) -> Iterator[tuple[str, int, int]]:
    """For each Finish: vectors that differ from the fused path's, and all that were compared."""
    ids = [[(7 * i + 3 * n) % 90 for i in range(n)] for n in LENGTHS]
    batch, lone = pack(ids, "cpu", PROMPT), [pack([row], "cpu", PROMPT) for row in ids]
    pooled, lone_pooled = model.pooled(batch), [*map(model.pooled, lone)]
    some = [4, 0, 4]
    for name, finish in FINISHES.items():
        model.pooling.check(finish)
        include = model.pooling.include_prompt
        fused: Tensor = model.encode_ids(ids, finish) if include else model(batch, finish)
        assert fused.isfinite().all()
        found = [(model(lone[0], finish)[0], fused[0])]
        # all rows, a few in another order, and each alone: where it is, moved, of a text alone
        found.append((model.finish(pooled, finish), fused))
        found.append((model.finish(pooled[some], finish), fused[some]))
        for i, wanted in enumerate(fused):
            row = pooled[i : i + 1]
            one = (row, moved(row, SHIFT), lone_pooled[i])[i % 3]
            found.append((model.finish(one, finish)[0], wanted))
        yield name, sum(not torch.equal(a, b) for a, b in found), len(found)


def compare(
    dtype: torch.dtype, backend: Backend, widths: tuple[int, ...] = WIDTHS
) -> Iterator[Found]:
    """Every form with every Finish; BackendError: the backend cannot run here."""
    for (name, pooling), width in itertools.product(POOLINGS.items(), widths):
        model = built(pooling, width, dtype, backend)
        for threads in THREADS:
            with computing_on(threads), torch.inference_mode():
                for finish, differ, count in differing(model):
                    what = f"{name} of {width}, {finish}, {dtype}, {backend}, {threads} threads"
                    yield Found(what, differ, count)


def main() -> int:
    """Compare all, or only models of the widths that are given; see above."""
    widths = tuple(map(int, sys.argv[1:])) or WIDTHS
    if os.environ.get("NOMICBERT_TEST_MKL") == "AMD":
        amd.pretend()
    differ = compared = 0
    for dtype, backend in KINDS:
        try:
            for case in compare(dtype, backend, widths):
                differ, compared = differ + case.differ, compared + case.compared
                if case.differ:
                    print(f"DIFFERS {case.differ} of {case.compared}: {case.case}")  # noqa: T201
        except BackendError as error:
            print(f"- {dtype} {backend}: {error}")  # noqa: T201
    print(f"{differ} of {compared} comparisons differ")  # noqa: T201
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
