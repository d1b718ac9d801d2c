"""Attention of backend "int8": long texts in bf16, where the CPU multiplies in bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nomicbert_kernels import attention as reference
from nomicbert_kernels import attention_int8, attention_torch
from nomicbert_kernels.backend import plan_runs
from tests.ops.cases import draw, offsets_of

LONG = attention_int8.LONG
LENGTHS = [3, LONG, LONG, LONG - 1, 1, LONG + 33]
HEADS, SIZE = 2, 32


@pytest.fixture(params=[True, False])
def in_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a CPU with and without the instructions; torch's kernel runs in bf16 on any."""
    monkeypatch.setattr(attention_int8, "has_bf16_instructions", lambda: request.param)
    return bool(request.param)


def attended(qkv: Tensor, lengths: list[int], rows: Tensor | None = None) -> Tensor:
    plan = plan_runs(lengths, HEADS, SIZE, qkv.dtype)
    with torch.no_grad():
        return attention_int8.attention(qkv, offsets_of(lengths), plan, SIZE**-0.5, rows=rows)


def of_text(x: Tensor, text: int) -> Tensor:
    offsets = offsets_of(LENGTHS).tolist()
    return x[offsets[text] : offsets[text + 1]]


def test_values(in_bf16: bool, seed: int) -> None:
    qkv = draw(sum(LENGTHS), 3, HEADS, SIZE, seed=seed)
    found, offsets = attended(qkv, LENGTHS), offsets_of(LENGTHS)
    plan = plan_runs(LENGTHS, HEADS, SIZE, qkv.dtype)
    truth = reference.attention(qkv.double(), offsets, plan, SIZE**-0.5)
    assert found.dtype == torch.float32
    for text, length in enumerate(LENGTHS):
        error = (of_text(found, text) - of_text(truth, text)).abs().max().item()
        rounded = in_bf16 and length >= LONG
        # four roundings to 8 bits of values up to 5; otherwise those of fp32
        assert error < (0.02 if rounded else 1e-5)
        assert (error > 1e-4) == rounded


def test_other_texts_do_not_matter(in_bf16: bool, seed: int) -> None:
    qkv = draw(sum(LENGTHS), 3, HEADS, SIZE, seed=seed)
    found = attended(qkv, LENGTHS)
    for text, length in enumerate(LENGTHS):
        assert torch.equal(of_text(found, text), attended(of_text(qkv, text).clone(), [length]))


def test_one_row_of_each_text_is_in_fp32(in_bf16: bool, seed: int) -> None:
    qkv, offsets = draw(sum(LENGTHS), 3, HEADS, SIZE, seed=seed), offsets_of(LENGTHS)
    plan = plan_runs(LENGTHS, HEADS, SIZE, qkv.dtype)
    rows = offsets[:-1].long()
    wanted = attention_torch.attention(qkv, offsets, plan, SIZE**-0.5, rows=rows)
    assert torch.equal(attended(qkv, LENGTHS, rows), wanted)


def test_gradients_are_those_of_fp32(in_bf16: bool, seed: int) -> None:
    qkv = draw(sum(LENGTHS), 3, HEADS, SIZE, seed=seed).requires_grad_()
    plan, offsets = plan_runs(LENGTHS, HEADS, SIZE, qkv.dtype), offsets_of(LENGTHS)
    found, wanted = (
        torch.autograd.grad(form.attention(qkv, offsets, plan, SIZE**-0.5).square().sum(), qkv)[0]
        for form in (attention_int8, attention_torch)
    )
    assert torch.equal(found, wanted)
    assert found.abs().sum() > 0


def test_no_texts(in_bf16: bool) -> None:
    assert attended(torch.empty(0, 3, HEADS, SIZE), []).shape == (0, HEADS * SIZE)
