"""Check that a text's bits on this processor do not depend on batch, threads or alignment.

    python -m tests.support.invariance

Every case (ops and models) runs on 1 and 2 threads, on buffers at several memory offsets, and in
batches of several sizes: each thread has its own scratch memory in torch, and the batch decides
which thread computes a text. Prints one line per case; the exit code is 1 if any bit differs.
`tests/test_processors.py` runs it on simulated processors.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from nomicbert import Embedder
from nomicbert.errors import BackendError
from nomicbert.modeling.activations import FUNCTIONS, activate
from nomicbert.vectors.activations import ACTIVATIONS
from nomicbert.vectors.windows import mean_of_windows, token_mean
from nomicbert.verify.checks import invariance_row
from nomicbert.verify.invariance import computing_on
from nomicbert_kernels import Ops, attention_long_torch, attention_torch, select_ops
from nomicbert_kernels.dtypes import torch_uses_avx512
from nomicbert_kernels.linear_torch import onednn_packs
from tests.support import amd
from tests.support.checkpoints import build_checkpoint

THREADS = (1, 2)
# Offsets from the start of an allocation, in elements.
SHIFTS = (1, 4)
LENGTHS = (1, 2, 3, 5, 8, 11, 16, 17, 31, 33, 64, 65, 70, 129, 257)
DTYPES = (torch.float32, torch.bfloat16)
MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean")

# Texts as (tokens, ...) tensors, memory offset in elements -> one result per text.
OfTexts = Callable[[list[Tensor], int], list[Tensor]]
Found = Iterator[tuple[str, int, int]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A computation and its texts."""

    name: str
    op: OfTexts
    texts: list[Tensor]


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def end_to_end(texts: list[Tensor], shift: int) -> Tensor:
    """One tensor of all tokens, at an offset of `shift` elements in its allocation."""
    whole = torch.cat(texts)
    buffer = whole.new_empty(whole.numel() + shift)
    return buffer[shift:].view(whole.shape).copy_(whole)


def offsets(texts: list[Tensor]) -> Tensor:
    lengths = torch.tensor([0, *map(len, texts)])
    return lengths.cumsum(0).to(torch.int32)


def attention_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    for heads, size in ((12, 64), (4, 32), (2, 9), (3, 24)):

        def run(texts: list[Tensor], shift: int, one_row: bool = False) -> list[Tensor]:
            lengths, cu_seqlens = [len(text) for text in texts], offsets(texts)
            _, _, heads, size = texts[0].shape
            rows = (cu_seqlens[1:] - 1).long() if one_row else None
            plan = ops.plan(lengths, heads, size, dtype)
            qkv = end_to_end(texts, shift)
            out = ops.attention(qkv, cu_seqlens, plan, size**-0.5, rows=rows)
            return list(out.split([1] * len(texts) if one_row else lengths))

        texts = [draw(n, 3, heads, size, seed=n, dtype=dtype) for n in LENGTHS]
        yield Case(f"attention {heads}x{size}", run, texts)
        yield Case(
            f"attention {heads}x{size}, one row",
            lambda t, shift, run=run: run(t, shift, True),
            texts,
        )


def long_attention_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    """As texts from `attention_long_torch.LONG` tokens on are computed, but with shorter ones."""
    if not attention_long_torch.is_long(dtype, attention_long_torch.LONG):
        return
    for case in attention_cases(ops, dtype):

        def run(texts: list[Tensor], shift: int, case=case) -> list[Tensor]:
            with mock.patch.object(attention_long_torch, "LONG", attention_torch.SHORT):
                return case.op(texts, shift)

        yield Case(f"{case.name}, keys and values copied", run, case.texts)


def linear_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    for k, n in ((768, 768), (3072, 768), (1536, 384), (512, 16), (37, 53)):
        source, bias = (draw(*shape, seed=n, dtype=dtype) for shape in ((n, k), (n,)))
        weight = ops.prepare(source / k**0.5, bias, "linear")

        def linear(texts: list[Tensor], shift: int, weight=weight) -> list[Tensor]:
            x = end_to_end(texts, shift)
            return list(ops.linear(x, weight, x[:, :1].expand(-1, len(weight.source)))
                        .split([*map(len, texts)]))  # fmt: skip

        def gelu(texts: list[Tensor], shift: int, weight=weight) -> list[Tensor]:
            return list(ops.gelu(end_to_end(texts, shift), weight).split([*map(len, texts)]))

        texts = [draw(rows, k, seed=rows, dtype=dtype) for rows in LENGTHS]
        yield Case(f"linear {k}->{n}", linear, texts)
        yield Case(f"gelu {k}->{n}", gelu, texts)


def pool_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    for width in (768, 100):
        for mode in MODES:

            def run(texts: list[Tensor], shift: int, mode=mode, width=width) -> list[Tensor]:
                plan = ops.plan([*map(len, texts)], 1, width, dtype)
                hidden = end_to_end(texts, shift)
                return list(ops.pool(hidden, offsets(texts), plan, mode, normalize=True))

            texts = [draw(n, width, seed=n, dtype=dtype) for n in LENGTHS]
            yield Case(f"pool {mode} {width}", run, texts)
    if dtype == torch.float32:
        for name, activation in ACTIVATIONS.items():

            def apply(texts: list[Tensor], shift: int, activation=activation) -> list[Tensor]:
                return list(activation(end_to_end(texts, shift)).split([*map(len, texts)]))

            for width in (112, 53, 1):  # a reranker's logits may have one column
                texts = [3 * draw(n, width, seed=n, dtype=dtype) for n in LENGTHS]
                yield Case(f"Dense {name} {width}", apply, texts)


def window_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    """A text is the vectors of its windows."""
    for width in (768, 100, 37) if dtype == torch.float32 else ():

        def average(texts: list[Tensor], shift: int) -> list[Tensor]:
            return list(mean_of_windows(end_to_end(texts, shift), [*map(len, texts)]))

        def add_up(texts: list[Tensor], shift: int) -> list[Tensor]:
            counts = [*map(len, texts)]
            tokens = np.concatenate([np.arange(count) + 3 for count in counts])
            return list(token_mean(end_to_end(texts, shift), tokens, counts))

        texts = [draw(n, width, seed=n, dtype=dtype) for n in LENGTHS]
        yield Case(f"mean of windows {width}", average, texts)
        yield Case(f"mean over the tokens of windows {width}", add_up, texts)


def activation_cases(ops: Ops, dtype: torch.dtype) -> Iterator[Case]:
    """Of a plain MLP without an op; an odd width, so that texts begin anywhere in a vector."""
    for name in FUNCTIONS:

        def run(texts: list[Tensor], shift: int, name=name) -> list[Tensor]:
            return list(activate(end_to_end(texts, shift), name).split([*map(len, texts)]))

        texts = [3 * draw(n, 53, seed=n, dtype=dtype) for n in LENGTHS]
        yield Case(f"activation {name}", run, texts)


def changed(case: Case) -> tuple[int, int]:
    """Number of results whose bits differ from those of the text alone, and of all results."""
    alone = [case.op([text], 0)[0] for text in case.texts]
    assert all(result.isfinite().all() for result in alone)
    places = [*range(len(case.texts))]
    batches = [(batch, 0) for batch in (places, places[::-1], [4, 9, 9, 1], [2] * 7, [13] * 5)]
    batches += [(batch, shift) for shift in SHIFTS for batch in (places, [0], [4], [7], [12])]
    found = []
    for batch, shift in batches:
        results = case.op([case.texts[place] for place in batch], shift)
        pairs = zip(batch, results, strict=True)
        found += [not torch.equal(alone[place], result) for place, result in pairs]
    return sum(found), len(found)


CASES = (
    attention_cases,
    long_attention_cases,
    linear_cases,
    pool_cases,
    window_cases,
    activation_cases,
)


def of_ops() -> Found:
    for dtype in DTYPES:
        # on AMX torch's attention refuses bf16 where ATEN_CPU_CAPABILITY keeps it from AVX-512
        if not onednn_packs(dtype) or (dtype == DTYPES[1] and not torch_uses_avx512()):
            continue
        ops = select_ops("cpu", dtype, "torch")
        for threads in THREADS:
            with computing_on(threads), torch.inference_mode():
                for make in CASES:
                    for case in make(ops, dtype):
                        yield f"{case.name}, {dtype}, {threads} threads", *changed(case)


def of_models() -> Found:
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    models = {
        "nomic-v1.5": {},
        "conan-v1": {},
        "bge-en": {},
        "minilm": {"hidden_act": "gelu_new"},
        "nomic-v2-moe": {"num_hidden_layers": 2},
        "code-rank-embed": {"num_hidden_layers": 1, **wide},
    }
    for variant, settings in models.items():
        with tempfile.TemporaryDirectory() as folder:
            build_checkpoint(Path(folder), variant, **settings)
            for dtype, backend in ((DTYPES[0], "torch"), (DTYPES[1], "torch"), (DTYPES[0], "int8")):
                try:
                    embedder = Embedder(folder, dtype=dtype, backend=backend)
                    _ = embedder.model.ops
                except BackendError as error:
                    print(f"- {variant} {backend}: {error}")  # noqa: T201
                    continue
                row = invariance_row(embedder)
                assert row.bound == 0
                yield f"{variant}, {dtype}, {backend}: {row.what}", int(row.value), 1


def main() -> int:
    if os.environ.get("NOMICBERT_TEST_MKL") == "AMD":
        amd.pretend()
    broken = compared = 0
    for cases in (of_ops(), of_models()):
        for name, differ, count in cases:
            compared += count
            broken += differ
            if differ:
                print(f"CHANGED {differ} of {count}: {name}")  # noqa: T201
    print(f"{broken} of {compared} comparisons differ")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
