"""attention: softmax(q kᵀ scale) v within each text; the checks of packed texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels.backend import EQUAL_LENGTHS
from tests.ops.cases import (
    ALL_DTYPES,
    EVERY_FORM,
    FORMS,
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


def formula(
    qkv: Tensor, lengths: list[int], scale: float, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Text by text: softmax written out as exponentials over their sum."""
    out = []
    for text in qkv.to(dtype).split(lengths):
        if len(text) == 0:
            continue
        q, k, v = text.unbind(1)
        logits = torch.einsum("ihd,jhd->hij", q, k) * scale
        e = torch.exp(logits - logits.amax(2, keepdim=True))
        weights = e / e.sum(2, keepdim=True)
        out.append(torch.einsum("hij,jhd->ihd", weights, v).reshape(len(text), -1))
    return torch.cat(out) if out else qkv[:, 0].flatten(1).to(dtype)


def run(form: str, qkv: Tensor, lengths: list[int], scale: float, **options) -> Tensor:
    ops = ops_of(form, qkv.dtype)
    heads, size = qkv.shape[2:]
    plan = ops.plan(lengths, heads, size, qkv.dtype)
    return ops.attention(qkv, offsets_of(lengths), plan, scale, **options)


def draw_qkv(lengths: list[int], heads: int, size: int, seed: int, dtype=torch.float32) -> Tensor:
    return draw(sum(lengths), 3, heads, size, seed=seed, dtype=dtype, scale=1.5)


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=15)
@given(LENGTHS, st.integers(1, 3), st.integers(1, 33), st.booleans(), SEEDS)
def test_bound(
    form: str, dtype: torch.dtype, lengths: list[int], heads: int, size: int, apart: bool, seed: int
) -> None:
    qkv, scale = draw_qkv(lengths, heads, size, seed, dtype), size**-0.5
    truth = formula(qkv, lengths, scale).reshape(-1, heads * size)
    plain = formula(qkv, lengths, scale, dtype)
    got = run(form, spread(qkv) if apart and len(qkv) else qkv, lengths, scale)
    assert_within(got, truth, plain, dtype)


@EVERY_FORM
@settings(max_examples=15)
@given(LENGTHS, SEEDS)
def test_rows_are_rows_of_the_whole(form: str, lengths: list[int], seed: int) -> None:
    lengths = [n for n in lengths if n]
    qkv = draw_qkv(lengths, 2, 9, seed)
    generator = torch.Generator().manual_seed(seed)
    starts = offsets_of(lengths)[:-1]
    inside = [int(torch.randint(n, (), generator=generator)) for n in lengths]
    rows = starts + torch.tensor(inside, dtype=torch.int32)
    truth = formula(qkv, lengths, 0.3).reshape(-1, 18)[rows.long()]
    plain = formula(qkv, lengths, 0.3, torch.float32).reshape(-1, 18)[rows.long()]
    for kind in (torch.int32, torch.int64):
        got = run(form, qkv, lengths, 0.3, rows=rows.to(kind))
        assert_within(got, truth, plain, torch.float32)


def test_reference_is_the_formula(seed: int) -> None:
    lengths = [3, 0, 17, 1]
    qkv = draw_qkv(lengths, 3, 5, seed, torch.float64)
    ops = ops_of("reference", torch.float64)
    plan = ops.plan(lengths, 3, 5, torch.float64)
    assert_exact(ops.attention(qkv, offsets_of(lengths), plan, 0.4), formula(qkv, lengths, 0.4))


@ALL_DTYPES
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("texts", "length"), [(1, 1), (4, 1), (1, 17), (3, 16)])
def test_texts_of_one_length(
    texts: int, length: int, rows: bool, dtype: torch.dtype, seed: int
) -> None:
    """The reference's form for torch.export: of all tokens, and of one per text."""
    lengths = [length] * texts
    qkv, plan = draw_qkv(lengths, 3, 9, seed, dtype), EQUAL_LENGTHS.plan(lengths, 3, 9, dtype)
    only = torch.arange(texts) * length + length // 2 if rows else None
    kept = slice(None) if only is None else only
    truth = formula(qkv, lengths, 0.3).reshape(-1, 27)[kept]
    plain = formula(qkv, lengths, 0.3, dtype).reshape(-1, 27)[kept]
    got = EQUAL_LENGTHS.attention(spread(qkv), offsets_of(lengths), plan, 0.3, rows=only)
    assert_within(got, truth, plain, dtype)


def test_the_form_for_texts_of_one_length_refuses_others() -> None:
    plan = EQUAL_LENGTHS.plan([2, 3], 2, 4, torch.float32)
    with refuses("the texts must be of one length, a single run, not (Run("):
        EQUAL_LENGTHS.attention(QKV, CU, plan, 1.0)
    plan = EQUAL_LENGTHS.plan([5], 2, 4, torch.float32)
    with refuses("without dropout, not 0.1"):
        EQUAL_LENGTHS.attention(QKV, offsets_of([5]), plan, 1.0, 0.1)
    with refuses("rows[0] is 7"):
        EQUAL_LENGTHS.attention(QKV, offsets_of([5]), plan, 1.0, rows=torch.tensor([7]))


@EVERY_FORM
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens(form: str, lengths: list[int]) -> None:
    assert run(form, torch.empty(0, 3, 2, 4), lengths, 1.0).shape == (0, 8)


@EVERY_FORM
@pytest.mark.parametrize("rows", [None, torch.tensor([2, 3, 20])])
def test_gradients(form: str, rows: Tensor | None, seed: int) -> None:
    lengths = [3, 1, 17]
    keep = slice(None) if rows is None else rows
    assert_gradients(
        lambda qkv: run(form, qkv, lengths, 0.3, rows=rows),
        lambda qkv: formula(qkv, lengths, 0.3)[keep],
        draw_qkv(lengths, 2, 9, seed),
        seed=seed,
    )


ORDERS = [
    [65, 1, 2, 15, 16, 17, 1, 64, 63, 16, 0, 2, 2],
    [0, 1, 1, 2, 2, 2, 15, 16, 16, 17, 63, 64, 65],
    [65, 64, 63, 17, 16, 16, 15, 2, 2, 2, 1, 1, 0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [64, 9])
@pytest.mark.parametrize("lengths", ORDERS)
@pytest.mark.all_threads
def test_a_text_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, size: int, lengths: list[int], seed: int
) -> None:
    """Alone or in a batch, in any order, all tokens or one."""
    qkv = draw_qkv(lengths, 2, size, seed, dtype)
    whole = run("torch", qkv, lengths, 0.3).split(lengths)
    filled = [n for n in lengths if n]
    rows = (offsets_of(filled)[:-1] + torch.tensor([n // 2 for n in filled])).long()
    single = run("torch", qkv, filled, 0.3, rows=rows)
    alone = (text for text in qkv.split(lengths) if len(text))
    for text, among, row in zip(alone, (w for w in whole if len(w)), single, strict=True):
        n = len(text)
        assert torch.equal(run("torch", text, [n], 0.3), among)
        assert torch.equal(run("torch", text, [n], 0.3, rows=torch.tensor([n // 2]))[0], row)


def test_texts_do_not_see_each_other(seed: int) -> None:
    """NaN in one text stays there: tokens of other texts are not read, so no mask can leak."""
    for form in FORMS:
        qkv = draw_qkv([5, 4, 3], 2, 8, seed)
        qkv[5:9] = float("nan")
        first, second, third = run(form, qkv, [5, 4, 3], 0.3).split([5, 4, 3])
        assert first.isfinite().all()
        assert second.isnan().all()
        assert third.isfinite().all()


def weights_of(form: str, p: float, seed: int, n: int = 48) -> Tensor:
    """(2, n, 2, n) attention weights of two texts, read out with unit vectors as values."""
    qkv = draw(2 * n, 3, 2, n, seed=5)
    qkv[:, 2] = torch.eye(n).repeat(2, 1)[:, None]
    return run(form, qkv, [n, n], 0.1, dropout_p=p, seed=seed).view(2, n, 2, n)


@EVERY_FORM
def test_dropout_zeroes_a_share_and_scales_the_rest(form: str) -> None:
    plain, out = weights_of(form, 0.0, 11), weights_of(form, 0.3, 11)
    kept = out != 0
    # 9216 weights: the share of zeros has a standard deviation of 0.005
    assert abs(1 - kept.double().mean().item() - 0.3) < 0.02
    torch.testing.assert_close(out[kept], plain[kept] / 0.7, rtol=1e-5, atol=1e-7)
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[:, :, 0], kept[:, :, 1])


@EVERY_FORM
def test_dropout_preserves_the_mean(form: str) -> None:
    plain = weights_of(form, 0.0, 0, n=8)
    mean = torch.stack([weights_of(form, 0.3, seed, n=8) for seed in range(100)]).mean(0)
    # the mean of 100 draws of a weight has a relative standard deviation of 0.066
    assert ((mean - plain).abs() / plain).max() < 5 * 0.066
    assert abs((mean.sum() / plain.sum()).item() - 1) < 0.02


def test_dropout_depends_only_on_the_seed() -> None:
    mine, again = weights_of("torch", 0.3, 11), weights_of("torch", 0.3, 11)
    assert torch.equal(mine, again)
    assert torch.equal(mine != 0, weights_of("reference", 0.3, 11) != 0)
    assert not torch.equal(mine != 0, weights_of("torch", 0.3, 12) != 0)
    assert torch.equal(weights_of("torch", 0.0, 11), weights_of("torch", 0.0, 12))


def test_dropout_is_differentiated_with_its_mask() -> None:
    qkv = draw_qkv([7], 1, 7, 3).requires_grad_()
    qkv.data[:, 2] = torch.eye(7)[:, None]
    weights = run("torch", qkv, [7], 0.3, dropout_p=0.5, seed=4)
    (gradient,) = torch.autograd.grad(weights.sum(), qkv)
    # the derivative of the output sum with respect to value j is the sum of weight column j
    torch.testing.assert_close(gradient[:, 2, 0], weights.detach().sum(0)[:, None].expand(7, 7))


QKV, CU = torch.ones(5, 3, 2, 4), offsets_of([2, 3])
SHAPE = "qkv must be floating point (tokens, 3, heads, head size), not "
REFUSED = [
    (SHAPE + "torch.float32 (5, 2, 2, 4)", {"qkv": QKV[:, :2]}),
    (SHAPE + "torch.float32 (5, 3, 8)", {"qkv": QKV.flatten(2)}),
    (SHAPE + "torch.int64 (5, 3, 2, 4)", {"qkv": QKV.long()}),
    ("cu_seqlens must be int32 (batch + 1,), not torch.int64 (3,)", {"cu_seqlens": CU.long()}),
    ("cu_seqlens must be int32 (batch + 1,), not torch.int32 (1, 3)", {"cu_seqlens": CU[None]}),
    ("cu_seqlens must be int32 (batch + 1,), not torch.int32 (0,)", {"cu_seqlens": CU[:0]}),
    ("cu_seqlens must run from 0 to 5, not from 0 to 2", {"cu_seqlens": CU[:2]}),
    ("cu_seqlens must run from 0 to 5, not from 2 to 5", {"cu_seqlens": CU[1:]}),
    ("cu_seqlens must not decrease: [0, 4, 3, 5]",
     {"cu_seqlens": torch.tensor([0, 4, 3, 5], dtype=torch.int32)}),
    ("dropout_p must be at least 0 and below 1, not 1.0", {"dropout_p": 1.0}),
    ("dropout_p must be at least 0 and below 1, not -0.1", {"dropout_p": -0.1}),
    ("rows must be integer (2,), one per text, not torch.int64 (3,)", {"rows": torch.arange(3)}),
    ("rows must be integer (2,), one per text, not torch.float32 (2,)", {"rows": torch.ones(2)}),
    ("rows[1] is 5, which is not a token of text 1", {"rows": torch.tensor([0, 5])}),
    ("rows[0] is 2, which is not a token of text 0", {"rows": torch.tensor([2, 2])}),
    ("rows[1] is -1, which is not a token of text 1", {"rows": torch.tensor([1, -1])}),
]  # fmt: skip


def test_a_plan_of_another_batch() -> None:
    plan = ops_of("torch").plan([2, 2], 2, 4, torch.float32)
    with refuses("the plan is for 4 tokens, but qkv has 5"):
        ops_of("torch").attention(QKV, CU, plan, 1.0)


@EVERY_FORM
@pytest.mark.parametrize(("message", "changed"), REFUSED)
def test_refusals(form: str, message: str, changed: dict[str, Any]) -> None:
    plan = ops_of(form).plan([2, 3], 2, 4, torch.float32)
    arguments = {"qkv": QKV, "cu_seqlens": CU, "plan": plan, "scale": 1.0}
    ops_of(form).attention(**arguments)
    with refuses(message):
        ops_of(form).attention(**arguments | changed)
