"""The pool kernel: long texts in pieces, bits of a text, gradients of a maximum, torch.library.

Tests of all backends are in test_pool.py.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Plan
from nomicbert_kernels import pool as reference
from nomicbert_kernels.tensors import PoolMode
from tests.ops.cases import (
    INTERPRETS,
    SEEDS,
    assert_gradients,
    assert_within,
    draw,
    offsets_of,
    refuses,
    spread,
)

if not INTERPRETS:
    pytest.skip("Triton compiles here: tests/gpu has these", allow_module_level=True)

from nomicbert_kernels import pool_triton

MODES = get_args(PoolMode)
ALL_MODES = pytest.mark.parametrize("mode", MODES)
FINISHES = (False, None, False), (True, 5, True)
CHUNK = pool_triton.CHUNK
# Around the edges of pieces and of the stretches that are searched for them.
LONG = st.permutations([0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])


def run(hidden: Tensor, lengths: list[int], mode: str, *finish: Any) -> Tensor:
    return pool_triton.pool(hidden, offsets_of(lengths), Plan(), mode, *finish)  # type: ignore[arg-type]


def wanted(hidden: Tensor, lengths: list[int], mode: str, *finish: Any) -> Tensor:
    return reference.pool(hidden, offsets_of(lengths), Plan(), mode, *finish)  # type: ignore[arg-type]


@settings(max_examples=8)
@given(LONG, st.sampled_from(MODES), st.sampled_from(FINISHES), SEEDS)
def test_texts_of_several_pieces(
    lengths: list[int], mode: str, finish: tuple[bool, int | None, bool], seed: int
) -> None:
    hidden = draw(sum(lengths), 9, seed=seed)
    truth, plain = (wanted(h, lengths, mode, *finish) for h in (hidden.double(), hidden))
    assert_within(run(spread(hidden), lengths, mode, *finish), truth, plain, torch.float32)


@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_one_long_text_among_many_short(dtype: torch.dtype, mode: str, seed: int) -> None:
    lengths = [2, 1, 0, 16, 1100, 15, 17, 1]
    hidden = draw(sum(lengths), 8, seed=seed, dtype=dtype)
    truth = wanted(hidden.double(), lengths, mode, True, 5, True)
    plain = wanted(hidden.float(), lengths, mode, True, 5, True)
    assert_within(run(hidden, lengths, mode, True, 5, True), truth, plain, torch.float32)


@pytest.mark.parametrize("width", [1, 768, 1030, 8192])
def test_rows_of_every_width(width: int, seed: int) -> None:
    hidden = draw(40, width, seed=seed, dtype=torch.float16)
    for finish in ((True, width // 2 + 1, False), (False, width // 2 + 1, True)):
        truth = wanted(hidden.double(), [3, 37], "mean", *finish)
        plain = wanted(hidden.float(), [3, 37], "mean", *finish)
        assert_within(run(hidden, [3, 37], "mean", *finish), truth, plain, torch.float32)


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean"])
def test_a_text_has_the_same_bits_in_any_batch(mode: str, seed: int) -> None:
    """Alone, or in a batch that shifts the text relative to the stretches."""
    other = draw(CHUNK + 9, 9, seed=seed)
    for text in (draw(n, 9, seed=seed + n) for n in (CHUNK, 2 * CHUNK + 50)):
        (alone,) = run(text, [len(text)], mode, True, 5, True)
        for before in (1, CHUNK, CHUNK + 7):
            lengths = [before, len(text), len(other)]
            among = torch.cat([other[:before], text, other])
            assert torch.equal(run(among, lengths, mode, True, 5, True)[1], alone)


@ALL_MODES
def test_gradients_of_long_texts(mode: str, seed: int) -> None:
    lengths = [3, CHUNK + 5, 0, 1, CHUNK]
    assert_gradients(
        lambda hidden: run(hidden, lengths, mode, True, 6, True),
        lambda hidden: wanted(hidden, lengths, mode, True, 6, True),
        draw(sum(lengths), 9, seed=seed),
        seed=seed,
    )


@pytest.mark.parametrize("length", [5, CHUNK + 30])
def test_the_gradient_of_a_maximum_is_shared_by_equal_tokens(length: int) -> None:
    hidden = torch.zeros(length + 2, 3)
    hidden[1:4, 0] = 7.0
    hidden[length - 1, 1] = 2.0  # column 2 is the same in all tokens
    hidden.requires_grad_()
    upstream = torch.tensor([[6.0, 5.0, 4.0], [0.0, 0.0, 0.0]])
    (found,) = torch.autograd.grad(run(hidden, [length, 2], "max"), hidden, upstream)
    (exact,) = torch.autograd.grad(wanted(hidden, [length, 2], "max"), hidden, upstream)
    torch.testing.assert_close(found, exact)
    assert found[1:4, 0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@ALL_MODES
def test_gradients_have_the_dtype_of_the_hidden_states(
    mode: str, dtype: torch.dtype, seed: int
) -> None:
    hidden = draw(20, 9, seed=seed).half().to(dtype).requires_grad_()
    upstream = draw(2, 9, seed=seed + 1)
    (found,) = torch.autograd.grad(run(hidden, [3, 17], mode), hidden, upstream)
    exact = hidden.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(wanted(exact, [3, 17], mode), exact, upstream.double())
    assert_within(found, truth, truth.to(dtype), dtype)


@pytest.mark.parametrize("length", [4, CHUNK + 30])
def test_nan_passes_through_a_maximum(length: int) -> None:
    """As in torch; plain `tl.max` drops NaN."""
    for token in (0, length - 1):
        hidden = torch.ones(length, 3)
        hidden[token, 1] = float("nan")
        assert run(hidden, [length], "max").isnan().tolist() == [[False, True, False]]


def test_tokens_of_other_texts_are_not_read(seed: int) -> None:
    """NaN in one text stays in it, also in masked rows of a block."""
    for lengths in ([3, 20, 5], [CHUNK + 1, 9, CHUNK + 40]):
        for mode in MODES:
            hidden = draw(sum(lengths), 6, seed=seed)
            hidden[lengths[0] : lengths[0] + lengths[1]] = float("nan")
            got = run(hidden, lengths, mode, True, 4, True)
            assert got.isnan().all(1).tolist() == [False, True, False]
            assert got.isnan().any(1).tolist() == [False, True, False]


def test_no_tokens_have_gradients() -> None:
    hidden = torch.empty(0, 6, requires_grad=True)
    for lengths in ([], [0, 0]):
        got = run(hidden, lengths, "mean", True, 4, True)
        assert got.shape == (len(lengths), 4)
        assert not got.any()
        (found,) = torch.autograd.grad(got.sum(), hidden)
        assert found.shape == (0, 6)


def test_a_row_too_wide() -> None:
    with refuses(
        "rows of 8193 columns are too wide for backend 'triton', which supports at most 8192"
    ):
        run(torch.ones(1, 8193), [1], "mean")


def test_fp64_is_refused() -> None:
    with refuses("hidden is torch.float64, but backend 'triton' computes in fp32"):
        run(torch.ones(1, 4).double(), [1], "mean")


def registered() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    hidden, cu = draw(9, 8, seed=1).requires_grad_(), offsets_of([4, 0, 5])
    dy, plain = draw(3, 8, seed=2), hidden.detach()
    largest = wanted(plain, [4, 0, 5], "max")
    backward = pool_triton.pool_backward_op
    return {
        "mean": (pool_triton.pool_op, (hidden, cu, "mean")),
        "max": (pool_triton.pool_op, (hidden, cu, "max")),
        "backward": (backward, (dy, cu, "mean", 9, torch.float16, None, None)),
        "backward-max": (backward, (dy, cu, "max", 9, torch.float32, plain, largest)),
    }


@pytest.mark.parametrize("name", registered())
def test_opcheck(name: str) -> None:
    op, args = registered()[name]
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_one_graph_for_any_number_of_tokens(mode: str, seed: int) -> None:
    def form(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        return pool_triton.pool(hidden, cu_seqlens, Plan(), mode, True, 5, True)  # type: ignore[arg-type]

    torch.compiler.reset()
    compiled = torch.compile(form, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([3, 9, 4], [2, 2], [CHUNK + 2, 3, 0, 5]):
            hidden = draw(sum(lengths), 8, seed=seed).requires_grad_()
            upstream, cu = draw(len(lengths), 5, seed=seed + 6), offsets_of(lengths)
            got, eager = compiled(hidden, cu), form(hidden, cu)
            torch.testing.assert_close(got, eager, rtol=1e-6, atol=1e-6)
            (d_got,) = torch.autograd.grad(got, hidden, upstream)
            (d_eager,) = torch.autograd.grad(eager, hidden, upstream)
            torch.testing.assert_close(d_got, d_eager, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_launches_are_direct_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatched(*_: Any) -> None:
        raise RuntimeError("dispatched")

    monkeypatch.setattr(pool_triton, "pool_op", dispatched)
    hidden = draw(9, 8, seed=1)
    run(hidden, [4, 5], "mean")
    hidden.requires_grad_()
    with torch.no_grad():
        run(hidden, [4, 5], "mean")
    with pytest.raises(RuntimeError, match="dispatched"):
        run(hidden, [4, 5], "mean")
