"""pool: one vector per text; LayerNorm over the full width, slice, L2 norm."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels.backend import EQUAL_LENGTHS
from tests.ops.cases import (
    ALL_DTYPES,
    EVERY_FORM,
    LENGTHS,
    SEEDS,
    assert_exact,
    assert_gradients,
    assert_within,
    draw,
    offsets_of,
    ops_of,
    refuses,
    spread,
)

MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean")
ALL_MODES = pytest.mark.parametrize("mode", MODES)


def formula(
    hidden: Tensor,
    lengths: list[int],
    mode: str,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """Text by text in the dtype of `hidden`: a weighted sum over tokens, except for max."""
    out = []
    for text in hidden.split(lengths):
        n = len(text)
        factor = {
            "mean": [1 / n] * n if n else [],
            "mean_sqrt_len": [n**-0.5] * n if n else [],
            "cls": [1.0] + [0.0] * (n - 1),
            "lasttoken": [0.0] * (n - 1) + [1.0],
            "weightedmean": [2 * (i + 1) / (n * (n + 1)) for i in range(n)],
            "max": None,
        }[mode]
        if n == 0:
            y = torch.zeros_like(hidden[:1].sum(0))
        elif factor is None:
            y = text.max(0).values
        else:
            y = torch.tensor(factor, dtype=hidden.dtype) @ text
        if layer_norm:
            centred = y - y.mean()
            y = centred / ((centred**2).mean() + 1e-5) ** 0.5
        y = y[:dim]
        if normalize and n:
            y = y / (y**2).sum() ** 0.5
        out.append(y)
    return torch.stack(out)


def run(form: str, hidden: Tensor, lengths: list[int], mode: str, *finish) -> Tensor:
    ops = ops_of(form, hidden.dtype)
    plan = ops.plan(lengths, 1, hidden.shape[1], hidden.dtype)
    return ops.pool(hidden, offsets_of(lengths), plan, mode, *finish)


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=30)
@given(
    LENGTHS,
    st.sampled_from(MODES),
    st.integers(2, 70),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1)),
    SEEDS,
)
def test_bound(
    form: str,
    dtype: torch.dtype,
    lengths: list[int],
    mode: str,
    width: int,
    options: tuple[bool, bool, bool, float],
    seed: int,
) -> None:
    layer_norm, normalize, apart, part = options
    dim = None if part > 0.8 else max(1, round(part * width))
    hidden = draw(sum(lengths), width, seed=seed, dtype=dtype)
    finish = layer_norm, dim, normalize
    truth = formula(hidden.double(), lengths, mode, *finish)
    plain = formula(hidden.float(), lengths, mode, *finish)
    got = run(form, spread(hidden) if apart and len(hidden) else hidden, lengths, mode, *finish)
    # vectors are fp32, and as exact, for every dtype of the hidden states
    assert_within(got, truth, plain, torch.float32)


@ALL_MODES
@pytest.mark.parametrize(("layer_norm", "dim", "normalize"), [*product([0, 1], [None, 5], [0, 1])])
def test_reference_is_the_formula(
    mode: str, layer_norm: int, dim: int | None, normalize: int, seed: int
) -> None:
    lengths = [3, 0, 17, 1]
    hidden = draw(21, 9, seed=seed, dtype=torch.float64)
    finish = bool(layer_norm), dim, bool(normalize)
    got = run("reference", hidden, lengths, mode, *finish)
    assert_exact(got, formula(hidden, lengths, mode, *finish))


@ALL_MODES
@ALL_DTYPES
@pytest.mark.parametrize("finish", [(False, None, False), (True, 6, True)])
@pytest.mark.parametrize(("texts", "length"), [(1, 1), (4, 1), (1, 17), (3, 16)])
def test_texts_of_one_length(
    texts: int,
    length: int,
    finish: tuple[bool, int | None, bool],
    dtype: torch.dtype,
    mode: Any,
    seed: int,
) -> None:
    """The reference's form for torch.export."""
    lengths = [length] * texts
    hidden = draw(sum(lengths), 9, seed=seed, dtype=dtype)
    plan = EQUAL_LENGTHS.plan(lengths, 1, 9, dtype)
    got = EQUAL_LENGTHS.pool(spread(hidden), offsets_of(lengths), plan, mode, *finish)
    truth = formula(hidden.double(), lengths, mode, *finish)
    assert_within(got, truth, formula(hidden.float(), lengths, mode, *finish), torch.float32)


def test_the_form_for_texts_of_one_length_refuses_others() -> None:
    plan = EQUAL_LENGTHS.plan([2, 3], 1, 6, torch.float32)
    with refuses("the texts must be of one length, a single run, not (Run("):
        EQUAL_LENGTHS.pool(H, CU, plan, "mean")


@EVERY_FORM
def test_by_hand(form: str) -> None:
    hidden = torch.tensor([[9.0, 9.0], [1.0, 8.0], [2.0, 4.0], [3.0, 0.0], [0.0, 6.0]])
    found = {mode: run(form, hidden, [1, 4], mode)[1].tolist() for mode in MODES}
    assert found == {
        "mean": [1.5, 4.5],
        "cls": [1.0, 8.0],
        "max": [3.0, 8.0],
        "mean_sqrt_len": [3.0, 9.0],
        "lasttoken": [0.0, 6.0],
        "weightedmean": [pytest.approx(1.4), pytest.approx(4.0)],
    }


@EVERY_FORM
@ALL_MODES
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [0, 2, 0, 0, 1, 0]])
def test_texts_without_tokens_give_zeros(
    form: str, mode: str, lengths: list[int], seed: int
) -> None:
    hidden = draw(sum(lengths), 6, seed=seed)
    got = run(form, hidden, lengths, mode, True, 4, True)
    np.testing.assert_array_equal(got.any(1).numpy(), np.array(lengths) > 0)
    torch.testing.assert_close(got.double().norm(dim=1), torch.tensor(lengths).double().clamp(0, 1))


@EVERY_FORM
def test_no_texts(form: str) -> None:
    assert run(form, torch.empty(0, 6), [], "mean", True, 4, True).shape == (0, 4)


@EVERY_FORM
@ALL_MODES
@pytest.mark.parametrize("finish", [(False, None, False), (True, 6, True)])
def test_gradients(form: str, mode: str, finish: tuple[bool, int | None, bool], seed: int) -> None:
    lengths = [3, 0, 1, 17]
    assert_gradients(
        lambda hidden: run(form, hidden, lengths, mode, *finish),
        lambda hidden: formula(hidden, lengths, mode, *finish),
        draw(21, 9, seed=seed),
        seed=seed,
    )


ORDERS = [
    [65, 1, 2, 15, 16, 17, 1, 64, 63, 16, 0, 2, 2, 300],
    [0, 1, 1, 2, 2, 2, 15, 16, 16, 17, 63, 64, 65, 300],
    [300, 65, 64, 63, 17, 16, 16, 15, 2, 2, 2, 1, 1, 0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@ALL_MODES
@pytest.mark.parametrize("width", [128, 37])
@pytest.mark.all_threads
def test_a_text_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, mode: str, width: int, seed: int
) -> None:
    """Alone or in a batch, in any order."""
    for lengths in ORDERS:
        hidden = draw(sum(lengths), width, seed=seed, dtype=dtype)
        for finish in ((False, None, False), (True, 19, True)):
            among = run("torch", hidden, lengths, mode, *finish)
            for text, vector in zip(hidden.split(lengths), among, strict=True):
                assert torch.equal(run("torch", text, [len(text)], mode, *finish)[0], vector)


H, CU = torch.ones(5, 6), offsets_of([2, 3])
REFUSED = [
    ("hidden must have 2 dimensions, (rows, columns), not 3", {"hidden": H[None]}),
    ("hidden must be fp32, fp16, bf16 or fp64, not torch.int64", {"hidden": H.long()}),
    ("hidden must be contiguous in its last dimension", {"hidden": torch.ones(6, 5).T}),
    ("cu_seqlens must be int32 (batch + 1,), not torch.int64 (3,)", {"cu_seqlens": CU.long()}),
    ("cu_seqlens must run from 0 to 5, not from 0 to 2", {"cu_seqlens": CU[:2]}),
    ("cu_seqlens must run from 0 to 5, not from 2 to 5", {"cu_seqlens": CU[1:]}),
    ("cu_seqlens must not decrease: [0, 4, 3, 5]",
     {"cu_seqlens": torch.tensor([0, 4, 3, 5], dtype=torch.int32)}),
    ("mode must be one of mean, cls, max, mean_sqrt_len, lasttoken, weightedmean, not 'sum'",
     {"mode": "sum"}),
    ("dim must be 1 to 6, not 7", {"dim": 7}),
    ("dim must be 1 to 6, not 0", {"dim": 0}),
]  # fmt: skip


@EVERY_FORM
@pytest.mark.parametrize(("message", "changed"), REFUSED)
def test_refusals(form: str, message: str, changed: dict[str, Any]) -> None:
    plan = ops_of(form).plan([2, 3], 1, 6, torch.float32)
    arguments = {"hidden": H, "cu_seqlens": CU, "plan": plan, "mode": "mean"}
    ops_of(form).pool(**arguments)
    with refuses(message):
        ops_of(form).pool(**arguments | changed)
