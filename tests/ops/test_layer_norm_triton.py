"""The layer_norm kernel: tiles of every shape, repeated sums, torch.library, autocast.

Tests of all backends are in test_layer_norm.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import layer_norm as reference
from nomicbert_kernels import layer_norm_torch
from tests.ops.cases import (
    INTERPRETS,
    assert_gradients,
    assert_within,
    draw,
    refuses,
    spread,
)

if not INTERPRETS:
    pytest.skip("Triton compiles here: tests/gpu has these", allow_module_level=True)

from nomicbert_kernels import layer_norm_triton
from nomicbert_kernels.layer_norm_triton import layer_norm

EPS = 1e-5
HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


def drawn(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias, residual."""
    shapes = [(rows, width), (width,), (width,), (rows, width)]
    return [draw(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]


def run(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None) -> Tensor:
    return layer_norm(x, w, b, EPS, r)


def formula(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    result = reference.layer_norm(x, w, b, EPS, r)
    assert isinstance(result, Tensor)
    return result


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


@HALVES
@pytest.mark.parametrize("width", [1, 128, 384, 768, 1024, 1025, 3000, 8192])
def test_tiles_of_every_shape(width: int, dtype: torch.dtype, seed: int) -> None:
    """A row of one warp, rows split among up to eight warps, columns beyond the width."""
    x, w, b, r = drawn(5, width, seed, dtype)
    plain = F.layer_norm(x + r, (width,), w, b, EPS)
    truth = formula(*doubled([x, w, b, r]))
    assert_within(run(spread(x), w, b, spread(r)), truth, plain, dtype)


def test_a_row_of_up_to_1024_columns_has_one_warp() -> None:
    for width, columns, warps in (
        (1, 1, 1), (384, 512, 1), (768, 1024, 1), (1024, 1024, 1), (1025, 2048, 2), (8192, 8192, 8)
    ):  # fmt: skip
        found = layer_norm_triton.tiling(width, torch.device("cpu"))
        assert (found["WIDTH"], found["COLUMNS"], found["num_warps"]) == (width, columns, warps)


def test_a_row_too_wide() -> None:
    with refuses(
        "rows of 8193 columns are too wide for backend 'triton', which supports at most 8192"
    ):
        layer_norm(torch.ones(1, 8193), None, None, EPS)


def test_fp64_is_refused() -> None:
    with refuses("x is torch.float64, but backend 'triton' computes in fp32"):
        layer_norm(torch.ones(1, 4).double(), None, None, EPS)


@pytest.mark.parametrize("width", [40, 1030])
def test_a_row_has_the_same_bits_in_any_batch(width: int, seed: int) -> None:
    x, w, b, r = drawn(11, width, seed)
    whole = run(x, w, b, r)
    for rows in (slice(0, 1), slice(1, 6), slice(3, 11)):
        assert torch.equal(run(x[rows], w, b, r[rows]), whole[rows])


def test_a_residual_of_another_dtype_is_added_as_it_is(seed: int) -> None:
    x, w, b, r = drawn(6, 40, seed)
    x = x.half()
    truth = formula(*doubled([x, w, b, r]))
    assert_within(run(x, w, b, r), truth, truth.half(), torch.float16)
    leaves = [x.requires_grad_(), r.requires_grad_()]
    upstream = draw(6, 40, seed=seed + 5)
    dx, dr = torch.autograd.grad(run(x, w, b, r), leaves, upstream.half())
    assert (dx.dtype, dr.dtype) == (torch.float16, torch.float32)
    assert torch.equal(dx, dr.half())
    assert not torch.equal(dx.float(), dr)


@pytest.mark.parametrize("programs", [1, 3, 1024])
@pytest.mark.parametrize("width", [40, 1030])
def test_gradients_for_any_split_of_the_sums(
    programs: int, width: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_norm_triton, "PROGRAMS", programs)
    assert_gradients(run, formula, *drawn(18, width, seed), seed=seed)


def test_shares_cover_the_rows_once() -> None:
    for rows in (1, 4, 5, 1023, 1024, 1025, 2049, 100_000):
        programs, share = layer_norm_triton.shares(rows)
        assert programs <= layer_norm_triton.PROGRAMS
        assert (programs - 1) * share < rows <= programs * share


@pytest.mark.parametrize("missing", ["weight", "bias", "both", "residual"])
def test_gradients_without(missing: str, seed: int) -> None:
    x, w, b, r = drawn(9, 13, seed)
    if missing == "residual":
        assert_gradients(
            lambda x: run(x, w, b, None),
            lambda x: formula(x, w.double(), b.double(), torch.zeros_like(x)),
            x,
            seed=seed,
        )
        return
    one, zero = torch.ones(13).double(), torch.zeros(13).double()
    given = {"weight": (None, b), "bias": (w, None), "both": (None, None)}[missing]
    assert_gradients(
        lambda x, r: run(x, *given, r),
        lambda x, r: formula(x, *(p.double() if p is not None else d
                                  for p, d in zip(given, (one, zero), strict=True)), r),
        x, r, seed=seed,
    )  # fmt: skip


def test_only_required_gradients_are_summed(seed: int) -> None:
    x, w, b, r = drawn(9, 13, seed)
    for parameter in (w, b):
        parameter.requires_grad_()
        (alone,) = torch.autograd.grad(run(x, w, b, r).sum(), parameter)  # an expanded gradient
        (wanted,) = torch.autograd.grad(formula(*doubled([x, w, b, r])).sum(), parameter)
        torch.testing.assert_close(alone, wanted.float(), rtol=1e-5, atol=1e-5)
        parameter.requires_grad_(False)


def test_gradients_are_bit_identical_in_every_run(seed: int) -> None:
    leaves = [t.requires_grad_() for t in drawn(30, 40, seed)]
    upstream = draw(30, 40, seed=seed + 7)
    first, second = (torch.autograd.grad(run(*leaves), leaves, upstream) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_tokens_have_gradients_of_zero() -> None:
    x, w, b, r = (t.requires_grad_() for t in drawn(0, 7, 1))
    dx, dw, db, dr = torch.autograd.grad(run(x, w, b, r).sum(), (x, w, b, r))
    assert dx.shape == dr.shape == (0, 7)
    assert not dw.any()
    assert not db.any()


def registered() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, w, b, r = (t.requires_grad_() for t in drawn(9, 24, 1))
    half = r.detach().half().requires_grad_()
    plain = [t.detach() for t in (x, x, w, b)]
    backward = layer_norm_triton.layer_norm_backward_op
    return {
        "all": (layer_norm_triton.layer_norm_op, (x, w, b, EPS, r, torch.float32)),
        "bare": (layer_norm_triton.layer_norm_op, (x, None, None, EPS, None, torch.float32)),
        "mixed": (layer_norm_triton.layer_norm_op, (x, w, None, EPS, half, torch.float16)),
        "backward": (backward, (*plain, EPS, None, [True, True])),
        "backward-bare": (backward, (*plain, EPS, half.detach(), [False, True])),
    }


@pytest.mark.parametrize("name", registered())
def test_opcheck(name: str) -> None:
    op, args = registered()[name]
    torch.library.opcheck(op, args)


def test_one_graph_for_any_number_of_tokens(seed: int) -> None:
    _, w, b, _ = (t.requires_grad_() for t in drawn(1, 24, seed))
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, r: run(x, w, b, r), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (9, 3, 13):
            x, _, _, r = (t.requires_grad_() for t in drawn(tokens, 24, seed))
            upstream = draw(tokens, 24, seed=seed + 6)
            got, wanted = compiled(x, r), run(x, w, b, r)
            assert torch.equal(got, wanted)
            leaves = [x, w, b, r]
            for mine, eager in zip(
                torch.autograd.grad(got, leaves, upstream),
                torch.autograd.grad(wanted, leaves, upstream),
                strict=True,
            ):
                assert torch.equal(mine, eager)
    torch.compiler.reset()


def test_autocast_gives_the_dtype_that_torch_gives(seed: int) -> None:
    x, w, b, r = drawn(6, 24, seed)
    with torch.autocast("cpu", torch.float16):
        for narrow in (x.half(), x):
            for added in (None, r, r.half()):
                wanted = layer_norm_torch.layer_norm(narrow, w, b, EPS, added)
                assert run(narrow, w, b, added).dtype == wanted.dtype


def test_launches_are_direct_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatched(*_: Any) -> None:
        raise RuntimeError("dispatched")

    monkeypatch.setattr(layer_norm_triton, "layer_norm_op", dispatched)
    x, w, b, r = drawn(5, 24, 1)
    run(x, w.requires_grad_().detach(), b, r)
    with torch.no_grad():
        run(x, w, b, r)
    with pytest.raises(RuntimeError, match="dispatched"):
        run(x, w, b, r)
