"""The attention kernels: tiles, strides, isolation of NaN, gradients, torch.library.

Tests of all backends are in test_attention.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Plan, tiling
from tests.ops.cases import (
    INTERPRETS,
    LENGTHS,
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

from nomicbert_kernels import attention_triton

SIZES = st.sampled_from([16, 32, 64, 33])
SHORT_AND_LONG = pytest.mark.parametrize("short", [tiling.SHORT, 0], ids=["short", "long"])
# neighbours that share a tile and may fill it, texts of two tiles, full and partial key blocks
MIXED = [3, 1, 0, 40, 5, 16, 11, 64]
NAN = float("nan")


def formula(qkv: Tensor, lengths: list[int], scale: float) -> Tensor:
    """softmax(q kᵀ scale) v, text by text, in qkv's dtype."""
    out = []
    for text in qkv.split(lengths):
        q, k, v = text.unbind(1)
        weights = torch.softmax(torch.einsum("ihd,jhd->hij", q, k) * scale, 2)
        out.append(torch.einsum("hij,jhd->ihd", weights, v).flatten(1))
    return torch.cat(out)


def run(qkv: Tensor, lengths: list[int], scale: float, **options: Any) -> Tensor:
    plan = tiling.plan_tiles(lengths, qkv.shape[3], qkv.dtype, "cpu")
    return attention_triton.attention(qkv, offsets_of(lengths), plan, scale, **options)


def draw_qkv(lengths: list[int], size: int, seed: int, dtype=torch.float32) -> Tensor:
    return draw(sum(lengths), 3, 2, size, seed=seed, dtype=dtype, scale=1.5)


def gradient(qkv: Tensor, lengths: list[int], **options: Any) -> Tensor:
    leaf = qkv.detach().clone().requires_grad_()
    got = run(leaf, lengths, 0.3, **options)
    upstream = draw(*got.shape, seed=7, dtype=got.dtype)
    return torch.autograd.grad(got, leaf, upstream)[0]


@SHORT_AND_LONG
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_values(short: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "SHORT", short)

    @settings(max_examples=5)
    @example([5, 16, 11, 3], 16, False, 0)  # a full block of keys in a shared tile
    @given(LENGTHS, SIZES, st.booleans(), SEEDS)
    def check(lengths: list[int], size: int, apart: bool, seed: int) -> None:
        qkv = draw_qkv(lengths, size, seed, dtype)
        got = run(spread(qkv) if apart and len(qkv) else qkv, lengths, size**-0.5)
        truth = formula(qkv.double(), lengths, size**-0.5)
        assert_within(got, truth, formula(qkv, lengths, size**-0.5), dtype)

    check()


@pytest.mark.parametrize("order", [(1, 2, 0, 3), (3, 1, 2, 0)])
def test_any_strides(order: tuple[int, ...], seed: int) -> None:
    lengths = [5, 33]
    qkv = draw_qkv(lengths, 16, seed)
    inverse = [order.index(place) for place in range(4)]
    view = qkv.permute(order).contiguous().permute(inverse)
    assert torch.equal(run(view, lengths, 0.3), run(qkv, lengths, 0.3))
    assert torch.equal(gradient(view, lengths), gradient(qkv, lengths))


def test_descriptors_change_no_bit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = draw_qkv(MIXED, 16, seed)
    assert attention_triton.describable(qkv)
    described = run(qkv, MIXED, 0.3)
    monkeypatch.setattr(attention_triton, "describable", lambda qkv: False)
    assert torch.equal(run(qkv, MIXED, 0.3), described)


def test_describable() -> None:
    qkv = torch.empty(4, 3, 2, 16)
    wide = torch.empty(4, 100)
    assert attention_triton.describable(wide[:, :96].unflatten(1, (3, 2, 16)))
    assert not attention_triton.describable(wide[:, 1:97].unflatten(1, (3, 2, 16)))
    assert not attention_triton.describable(torch.empty(4, 99)[:, :96].unflatten(1, (3, 2, 16)))
    assert not attention_triton.describable(qkv.transpose(1, 2).contiguous().transpose(1, 2))
    assert not attention_triton.describable(torch.empty(4, 3, 2, 24))


@SHORT_AND_LONG
@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0])
def test_gradients(short: int, scale: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "SHORT", short)
    lengths = MIXED if scale > 0 else [3, 1, 17]
    assert_gradients(
        lambda qkv: run(qkv, lengths, scale),
        lambda qkv: formula(qkv, lengths, scale),
        draw_qkv(lengths, 9, seed),
        seed=seed,
    )


@SHORT_AND_LONG
def test_gradients_of_rows(short: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "SHORT", short)
    lengths = [3, 1, 70, 5, 2]
    rows = torch.tensor([1, 3, 73, 74, 80])
    qkv = draw_qkv(lengths, 9, seed)
    assert_gradients(
        lambda qkv: run(qkv, lengths, 0.3, rows=rows),
        lambda qkv: formula(qkv, lengths, 0.3)[rows],
        qkv,
        seed=seed,
    )
    others = [token for token in range(sum(lengths)) if token not in rows.tolist()]
    assert not gradient(qkv, lengths, rows=rows)[others, 0].any()


def test_gradient_of_a_sum_has_no_strides(seed: int) -> None:
    qkv = draw_qkv([3, 20], 9, seed).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    run(qkv, [3, 20], 0.3).sum().backward()
    formula(exact, [3, 20], 0.3).sum().backward()
    assert (qkv.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


# numpy warns about a maximum of only NaN
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("part", [0, 1, 2], ids="qkv")
@pytest.mark.parametrize(
    "lengths", [[5, 4, 3], [20, 33, 17], [33, 40, 70]], ids=["shared", "apart", "several blocks"]
)
def test_nan_stays_in_its_text(part: int, lengths: list[int], seed: int) -> None:
    first, second = lengths[0], lengths[0] + lengths[1]
    clean = draw_qkv(lengths, 16, seed)
    qkv = clean.clone()
    qkv[first:second, part] = NAN
    for result in (run, gradient):
        arguments = (0.3,) if result is run else ()
        got = result(qkv, lengths, *arguments)
        wanted = result(clean, lengths, *arguments)
        assert torch.equal(got[:first], wanted[:first])
        assert torch.equal(got[second:], wanted[second:])
        assert got[first:second].isnan().flatten(1).any(1).all()


@pytest.mark.parametrize("lengths", [[5, 4, 3], [20, 33, 17]], ids=["shared", "apart"])
def test_nan_in_a_gradient_stays_in_its_text(lengths: list[int], seed: int) -> None:
    first, second = lengths[0], lengths[0] + lengths[1]
    qkv = draw_qkv(lengths, 16, seed).requires_grad_()
    out = run(qkv, lengths, 0.3)
    upstream = draw(*out.shape, seed=seed + 1)
    wanted = torch.autograd.grad(out, qkv, upstream, retain_graph=True)[0]
    upstream[first] = NAN
    got = torch.autograd.grad(out, qkv, upstream)[0]
    assert torch.equal(got[:first], wanted[:first])
    assert torch.equal(got[second:], wanted[second:])
    assert got[first, 0].isnan().all()
    assert got[first:second, 1:].isnan().all()


def test_an_infinite_value_is_not_hidden(seed: int) -> None:
    """An overflowed value in a tile shared by texts."""
    qkv = draw_qkv([5, 4], 16, seed)
    qkv[2, 2, 1, 3] = float("inf")
    first, second = run(qkv, [5, 4], 0.3).unflatten(1, (2, 16)).split([5, 4])
    assert not first[:, 1, 3].isfinite().any()
    assert first[:, 0].isfinite().all()
    assert second.isfinite().all()


def test_the_same_bits_in_every_run(seed: int) -> None:
    qkv = draw_qkv(MIXED, 16, seed)
    assert torch.equal(run(qkv, MIXED, 0.3), run(qkv, MIXED, 0.3))
    assert torch.equal(gradient(qkv, MIXED), gradient(qkv, MIXED))


def rounding_bound(qkv: Tensor, lengths: list[int], scale: float, blocks: int) -> Tensor:
    """Error bound of fp32, (T, h D) in fp64, as is qkv. D is a power of two.

    A sum whose terms are rounded n times each is off by at most g(n) = n u / (1 - n u) of the sum
    of their magnitudes (Higham 2002, section 4.2). A logit s_j has one rounding of its products,
    log2 D of additions (tests/interpreter/dot.py), and two of the scale: itself, and multiplying by
    it. Subtracting the maximum, at once or block by block, rounds by u times the difference; 2 u
    also covers the error of the difference itself. exp2, once per block, is accurate to 4 units in
    the last place, 8 u. So the weight of key j is p_j exp(e_j) with

        |e_j| <= E_j = g(log2 D + 3) scale sum_d |q_d k_jd| + 2 u (max_i s_i - s_j) + 8 u blocks.

    As sum_j p_j (v_j - o) = 0, what these weights make of o is off by

        |sum_j p_j (exp(e_j) - 1) (v_j - o)| / sum_j p_j exp(e_j)
            <= exp(max E) sum_j p_j (exp(E_j) - 1) |v_j - o|.

    Then come the sums of p_j v_j and of p_j, over n keys in any order and rescaled once a block,
    and their quotient: g(2 (n + blocks) + 1) exp(2 max E) sum_j p_j |v_j|.
    """
    u = torch.finfo(torch.float32).eps / 2

    def g(n: int) -> float:
        return n * u / (1 - n * u)

    bounds = []
    for text in qkv.split(lengths):
        q, k, v = text.unbind(1)
        n, _, size = q.shape
        s = torch.einsum("ihd,jhd->hij", q, k) * scale
        p = torch.softmax(s, 2)
        sizes = torch.einsum("ihd,jhd->hij", q.abs(), k.abs()) * scale
        error = g(size.bit_length() + 2) * sizes + 2 * u * (s.amax(2, True) - s) + 8 * u * blocks
        worst = error.amax(2).exp()[..., None]
        o = torch.einsum("hij,jhd->hid", p, v)
        apart = (v.transpose(0, 1)[:, None] - o[:, :, None]).abs()  # (h, i, j, d)
        of_weights = worst * torch.einsum("hij,hijd->hid", p * error.expm1(), apart)
        of_sums = worst**2 * torch.einsum("hij,jhd->hid", p, v.abs())
        total = of_weights + g(2 * (n + blocks) + 1) * of_sums
        bounds.append(total.transpose(0, 1).flatten(1))
    return torch.cat(bounds)


def test_large_logits(seed: int) -> None:
    """Logits for which a softmax without subtracting the maximum would overflow."""
    lengths = [40, 3]
    qkv = draw_qkv(lengths, 16, seed) * 8
    truth = formula(qkv.double(), lengths, 2.0)
    # 43 keys in blocks of 32
    allowed = rounding_bound(qkv.double(), lengths, 2.0, blocks=2)
    error = (run(qkv, lengths, 2.0).double() - truth).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} of what is allowed"


def test_a_plan_of_other_texts_is_refused() -> None:
    plan = tiling.plan_tiles([3, 9], 16, torch.float32, "cpu")
    qkv = draw(16, 3, 2, 16, seed=1)
    with refuses("the plan is for 12 tokens, but qkv has 16: make it for the same lengths"):
        attention_triton.attention(qkv, offsets_of([16]), plan, 0.25)


def test_rows_and_offsets_of_any_stride() -> None:
    lengths = [5, 3, 8]
    qkv, plan = draw(16, 3, 2, 16, seed=1), tiling.plan_tiles([5, 3, 8], 16, torch.float32, "cpu")
    cu = offsets_of(lengths)
    apart = torch.stack((cu, torch.full_like(cu, 99)), 1)[:, 0]
    rows = torch.tensor([2, 99, 6, 99, 8, 99])[::2]
    wanted = attention_triton.attention(qkv, cu, plan, 0.25, rows=rows.contiguous())
    assert torch.equal(attention_triton.attention(qkv, apart, plan, 0.25, rows=rows), wanted)
    leaf = qkv.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(attention_triton.attention(leaf, c, plan, 0.25, rows=r).sum(), leaf)[0]
        for c, r in ((cu, rows.contiguous()), (apart, rows))
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("rows", [None, torch.tensor([2, 3, 20])], ids=["all", "rows"])
def test_opcheck(rows: Tensor | None, seed: int) -> None:
    lengths = [3, 1, 17]
    qkv = draw_qkv(lengths, 9, seed).requires_grad_()
    tiles = tiling.plan_tiles(lengths, 9, qkv.dtype, "cpu").tiles
    assert tiles is not None
    common = (qkv, offsets_of(lengths), tiles.table, tiles.text, rows)
    torch.library.opcheck(attention_triton.attention_op, (*common, tiles.rows, 0.3))
    with torch.no_grad():
        out, lse = attention_triton.attention_op(*common, tiles.rows, 0.3)
    arguments = (torch.ones_like(out), *common, out, lse, tiles.rows, 0.3)
    torch.library.opcheck(
        attention_triton.attention_backward_op,
        tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_graph_for_every_length(seed: int) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    def op(qkv: Tensor, offsets: Tensor, plan: Plan) -> Tensor:
        return attention_triton.attention(qkv, offsets, plan, 0.3)

    torch._dynamo.reset()
    compiled = torch.compile(op, backend=backend, fullgraph=True, dynamic=True)
    for lengths in ([3, 17, 40, 1, 9], [40, 9, 20, 2], [1, 1, 1, 50, 2, 60]):
        qkv = draw_qkv(lengths, 16, seed)
        plan = tiling.plan_tiles(lengths, 16, qkv.dtype, "cpu")
        got = compiled(qkv, offsets_of(lengths), plan)
        assert torch.equal(got, run(qkv, lengths, 0.3))
    assert len(graphs) == 1


def test_lse_is_not_stored_without_gradients(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is launched directly, and writes no logarithms of sums."""
    kept = []
    forward = attention_triton.forward
    monkeypatch.setattr(attention_triton, "forward", lambda *a: kept.append(a[7:]) or forward(*a))
    qkv = draw_qkv([3, 5], 16, seed)
    run(qkv, [3, 5], 0.3)
    assert kept.pop() == ()
    run(qkv.requires_grad_(), [3, 5], 0.3)
    assert kept.pop()[0].shape == (2, 8)


def test_refusals() -> None:
    qkv, offsets = torch.ones(2, 3, 1, 257), offsets_of([2])
    with refuses("the head size must be 1 to 256 for backend 'triton', not 257"):
        attention_triton.attention(qkv, offsets, Plan(), 1.0)
    with refuses("the plan has no tiles: make it with the `plan` of backend 'triton'"):
        attention_triton.attention(qkv[..., :8], offsets, Plan(), 1.0)
