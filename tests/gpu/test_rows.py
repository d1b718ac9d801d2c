"""Every row of this architecture's launch table, including rows tuned on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.aot_cases import Model
from bench.problem import Problem, error_and_bound
from nomicbert_kernels import launch, tiling
from nomicbert_kernels.backend import TORCH
from nomicbert_kernels.launch import Row, Settings
from tests.gpu.calls import ATTENTION, GELU, LINEAR, MOE, QKV, SWIGLU, Case
from tests.gpu.conftest import Record
from tests.gpu.support import ARCHITECTURE, DTYPES, INTERPRETED, draw, force, ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

# Kernel of the tables -> calls that launch it; the gradient launches "attention_backward".
CALLS: dict[str, list[Case]] = {
    "linear": LINEAR,
    "qkv_rotary": QKV,
    "swiglu": SWIGLU,
    "gelu": GELU,
    "route": MOE,
    "experts": MOE,
    "attention_short": [case for case in ATTENTION if not case.variant],
    "attention_long": [case for case in ATTENTION if not case.variant],
    "attention_rows": [case for case in ATTENTION if case.variant],
    "attention_backward": [case for case in ATTENTION if not case.variant],
}
MANY = 40 if INTERPRETED else 700
# A text of this length selects the kernel of long texts.
LONG = tiling.SHORT + 5


def all_rows() -> Iterator[Any]:
    for (kernel, width), rows in launch.table(ARCHITECTURE).items():
        for number, row in enumerate(rows):
            for dtype in DTYPES:
                if dtype.itemsize == width:
                    name = f"{kernel}-{number}-{str(dtype)[6:]}"
                    yield pytest.param(row, dtype, id=name)


def sizes(row: Row, model: Model, case: Case) -> dict[str, int]:
    """The widths of a call that the tables compare."""
    n, k = model.hidden, model.hidden
    if case.variant == "down":
        k = model.inner
    if case.op == "qkv_rotary":
        n = 3 * model.hidden
    elif case.op in ("swiglu", "gelu"):
        n = model.inner
    return {"n": n, "k": k, "head_dim": model.head_dim}


def served(row: Row, case: Case) -> bool:
    """Whether a row fits the widths of a call, apart from its number of rows."""
    have = sizes(row, case.model, case)
    if row.kernel in ("route", "experts"):  # one call has several GEMMs
        return True
    limits = ((have[name], most) for name, most in row.up_to.items() if name in have)
    wanted = ((have[name], value) for name, value in row.exactly.items() if name in have)
    return all(a <= b for a, b in limits) and all(a == b for a, b in wanted)


def problem_for(row: Row, case: Case, dtype: torch.dtype, seed: int) -> Problem:
    """A size that the row fits; long texts for the kernel of long texts."""
    if row.kernel.startswith("attention"):
        longest = {"attention_short": 40, "attention_long": LONG}.get(row.kernel, MANY)
        return case.problem(draw(dtype, seed), [5, longest, 1, 33])
    tokens = min(row.up_to.get("rows", MANY), MANY)
    return case.problem(draw(dtype, seed), max(1, tokens - 1))


@pytest.mark.parametrize(("row", "dtype"), list(all_rows()))
def test_row(
    row: Row, dtype: torch.dtype, seed: int, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert row.kernel in CALLS, "a kernel of the tables that no call here launches"
    cases = [case for case in CALLS[row.kernel] if served(row, case)]
    if not cases:
        pytest.skip(f"no model here has the sizes of {dict(row.exactly)} {dict(row.up_to)}")
    taken: list[Settings] = []

    def change(kernel: str, shipped: Settings) -> Settings:
        if kernel != row.kernel:
            return shipped
        taken.append(row.settings)
        return row.settings

    force(monkeypatch, change)
    for case in cases:
        problem = problem_for(row, case, dtype, seed)
        labels = {"check": "launch row", "op": row.kernel, "dtype": dtype, "case": case.name}
        if row.kernel == "attention_backward":
            upstream = draw(dtype, seed + 1)(problem.tokens, case.model.hidden)
            truth = problem.true_gradients(upstream)["qkv"]
            plain = problem.gradients(TORCH, upstream)["qkv"]
            got = problem.gradients(ops(), upstream)["qkv"]
        else:
            truth, plain = problem.truth(), problem.plain()
            with torch.no_grad():
                got = problem.run(ops())
        record(*error_and_bound(got, truth, plain), **labels)
    assert taken, "the row was not launched"
