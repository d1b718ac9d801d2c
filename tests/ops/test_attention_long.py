"""Attention over long texts: copied keys and values change neither values nor bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import attention_long_torch as long_texts
from tests.ops.cases import ALL_DTYPES, SEEDS, assert_gradients, assert_within, spread
from tests.ops.test_attention import draw_qkv, formula, run

# In the tests texts of 40 tokens are long, and a copy holds 2 heads of 16 elements of such a text.
LONG, SCRATCH = 40, 2 * (2 * 40 * 16 * 4)
# Short, long, several of one length, too long for two heads at once.
LENGTHS = st.lists(st.sampled_from([0, 1, 39, 40, 40, 41, 64, 257]), min_size=1, max_size=6)
# Heads of 9 and 24 elements are padded.
SIZES = st.sampled_from([9, 16, 24, 32, 64])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what `attend` was given."""
    shapes, attend = [], long_texts.attend

    def noting(qkv: Tensor, out: Tensor, scale: float) -> None:
        out.fill_(float("nan"))
        shapes.append(tuple(qkv.shape))
        attend(qkv, out, scale)

    with monkeypatch.context() as patch:
        patch.setattr(long_texts, "LONG", LONG)
        patch.setattr(long_texts, "SCRATCH", SCRATCH)
        patch.setattr(long_texts, "attend", noting)
        yield shapes


@settings(max_examples=40)
@given(LENGTHS, st.integers(1, 5), SIZES, st.booleans(), SEEDS)
@example([40, 40, 40], 1, 16, False, 0)
@example([40, 40, 40], 5, 16, False, 0)
@example([257, 40], 3, 9, True, 0)
def test_bound(lengths: list[int], heads: int, size: int, apart: bool, seed: int) -> None:
    qkv, scale = draw_qkv(lengths, heads, size, seed), size**-0.5
    truth = formula(qkv, lengths, scale).reshape(-1, heads * size)
    plain = formula(qkv, lengths, scale, torch.float32)
    got = run("torch", spread(qkv) if apart and len(qkv) else qkv, lengths, scale)
    assert_within(got, truth, plain, torch.float32)


@settings(max_examples=25)
@given(LENGTHS, st.integers(1, 5), SIZES, SEEDS)
@example([40] * 5, 1, 16, 0)
@example([40] * 5, 3, 16, 0)
@pytest.mark.all_threads
def test_a_text_has_the_same_bits_in_any_batch(
    lengths: list[int], heads: int, size: int, seed: int
) -> None:
    qkv = draw_qkv(lengths, heads, size, seed)
    among = run("torch", qkv, lengths, 0.3).split(lengths)
    behind = torch.cat([draw_qkv([1], heads, size, seed + 1), qkv])
    moved = run("torch", behind, [1, *lengths], 0.3)[1:].split(lengths)
    for place, text in enumerate(qkv.split(lengths)):
        alone = run("torch", text, [len(text)], 0.3)
        copies = run("torch", text.repeat(3, 1, 1, 1), [len(text)] * 3, 0.3)
        assert torch.equal(alone, among[place])
        assert torch.equal(alone, moved[place])
        assert torch.equal(alone.repeat(3, 1), copies)


@ALL_DTYPES
def test_only_long_texts_in_fp32_are_copied(
    dtype: torch.dtype, calls: list[tuple[int, ...]], seed: int
) -> None:
    lengths = [39, 40, 40, 39, 50]
    qkv = draw_qkv(lengths, 2, 16, seed, dtype)
    run("torch", qkv, lengths, 0.3)
    fp32 = dtype == torch.float32
    assert calls == ([(2, 40, 3, 2, 16), (1, 50, 3, 2, 16)] if fp32 else [])
    ends = torch.tensor(lengths).cumsum(0) - 1
    run("torch", qkv, lengths, 0.3, rows=ends)
    assert len(calls) == (2 if fp32 else 0), "one query per text is not worth a copy"


def test_gradients(calls: list[tuple[int, ...]], seed: int) -> None:
    lengths = [41, 40]
    assert_gradients(
        lambda qkv: run("torch", qkv, lengths, 0.3),
        lambda qkv: formula(qkv, lengths, 0.3).flatten(1),
        draw_qkv(lengths, 2, 9, seed),
        seed=seed,
    )
    assert not calls


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 2 * SCRATCH))
@example(9, 9, SCRATCH + 1)
@example(9, 9, SCRATCH // 9)
@example(9, 9, SCRATCH // 81)
def test_parts(texts: int, heads: int, per_head: int) -> None:
    """They cover a run once, each within the limit, with as many heads for any number of texts."""
    seen = torch.zeros(texts, heads, dtype=torch.int64)
    for some, group in long_texts.parts(texts, heads, per_head):
        part = seen[some, group]
        part += 1
        assert part.numel() == 1 or part.numel() * per_head <= SCRATCH
    assert seen.eq(1).all()
    groups = {group.start for _, group in long_texts.parts(texts, heads, per_head)}
    assert groups == {group.start for _, group in long_texts.parts(1, heads, per_head)}
