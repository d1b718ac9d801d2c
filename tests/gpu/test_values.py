"""Every kernel against fp64: dtypes, real sizes, odd numbers of tokens, strided rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from bench.problem import error_and_bound
from tests.gpu.calls import BY_TEXTS, BY_TOKENS, PRODUCTS, Case, named
from tests.gpu.conftest import Record
from tests.gpu.support import (
    ALL_DTYPES,
    APART,
    BATCHES,
    EDGES,
    NOMIC,
    TOKENS,
    draw,
    force_library,
    ops,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

# For the first model only, because the fp64 truth is slow.
HEAVY = ("queries", "longest")
# The fp64 truth of 8192 tokens takes 40 GiB with all heads, 7 GiB with two.
FEW_HEADS = dataclasses.replace(
    NOMIC, name=f"{NOMIC.name}, 2 heads", hidden=2 * NOMIC.head_dim, heads=2
)
TEXTS = pytest.mark.parametrize(
    ("case", "texts"),
    [
        pytest.param(case, texts, id=f"{case.name}-{texts}")
        for case in BY_TEXTS
        for texts in BATCHES
        if texts not in HEAVY or case.model == NOMIC
    ],
)


def check(
    case: Case,
    dtype: torch.dtype,
    size: int | Sequence[int],
    seed: int,
    record: Record,
    apart: int = 0,
    what: str = "values",
) -> None:
    """One call within the bound of a kernel."""
    problem = case.problem(draw(dtype, seed, apart), size)
    with torch.no_grad():
        got = problem.run(ops())
        figures = error_and_bound(got, problem.truth(), problem.plain())
    shape = size if isinstance(size, int) else f"{len(size)} texts up to {max(size)}"
    record(*figures, check=what, op=case.name, dtype=dtype, size=shape, apart=apart)


@named(BY_TOKENS)
@ALL_DTYPES
def test_tokens(case: Case, dtype: torch.dtype, seed: int, record: Record) -> None:
    for size in EDGES:
        check(case, dtype, size, seed, record)
    for apart in APART:
        check(case, dtype, TOKENS, seed, record, apart, "rows apart")


@named(PRODUCTS)
@pytest.mark.parametrize("library", [False, True], ids=["kernel", "library"])
@ALL_DTYPES
def test_forced(
    case: Case,
    library: bool,
    dtype: torch.dtype,
    seed: int,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both our kernel and the cuBLAS GEMM, regardless of the tables."""
    force_library(monkeypatch, library)
    what = "library" if library else "kernel"
    for size in EDGES:
        check(case, dtype, size, seed, record, what=what)
    for apart in APART if dtype == torch.bfloat16 else ():
        check(case, dtype, TOKENS, seed, record, apart, f"{what}, rows apart")


@TEXTS
@ALL_DTYPES
def test_texts(case: Case, texts: str, dtype: torch.dtype, seed: int, record: Record) -> None:
    if texts == "longest":
        case = dataclasses.replace(case, model=FEW_HEADS)
    lengths = BATCHES[texts]
    if case.variant == "one row":
        lengths = tuple(n for n in lengths if n)  # empty texts have no row to pool
    check(case, dtype, lengths, seed, record, what=f"texts: {texts}")
    if texts == "edges":
        for apart in APART:
            check(case, dtype, lengths, seed, record, apart, "rows apart")
