"""The embed kernel: wide rows, table gradients in parts, torch.library, autocast.

Tests of all backends are in test_embed.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import EmbeddingTables, embed_torch
from nomicbert_kernels import embed as reference
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

from nomicbert_kernels import embed_triton
from nomicbert_kernels.embed_triton import embed

EPS = 1e-5
LIMITS = WORDS, TYPES, POSITIONS = 6, 2, 5


def draw_ids(tokens: int, seed: int) -> list[Tensor]:
    """Ids of words, types and positions."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(limit, (tokens,), generator=generator) for limit in LIMITS]


def drawn(width: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The three tables, weight, bias."""
    shapes = [*((limit, width) for limit in LIMITS), (width,), (width,)]
    return [draw(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]


def run(form: Any, ids: list[Tensor], *leaves: Tensor) -> Tensor:
    *tables, w, b = leaves
    return form(*ids, EmbeddingTables(*tables), w, b, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("width", [1, 768, 1030])
def test_tiles_of_every_shape(width: int, dtype: torch.dtype, seed: int) -> None:
    leaves, ids = drawn(width, seed, dtype), draw_ids(9, seed)
    truth = run(reference.embed, ids, *(t.double() for t in leaves))
    z = sum((t[i] for t, i in zip(leaves, ids, strict=False)), torch.zeros((), dtype=dtype))
    plain = F.layer_norm(z, (width,), *leaves[3:], EPS)
    apart = [*map(spread, leaves[:3]), *leaves[3:]]  # NaN between the rows of the tables
    for kind in (torch.int64, torch.int32):
        got = run(embed, [i.to(kind) for i in ids], *apart)
        assert_within(got, truth, plain, dtype)


def test_a_row_too_wide() -> None:
    with refuses(
        "rows of 8193 columns are too wide for backend 'triton', which supports at most 8192"
    ):
        run(embed, draw_ids(1, 1), *drawn(8193, 1))


def test_fp64_is_refused() -> None:
    with refuses("weight is torch.float64, but backend 'triton' computes in fp32"):
        run(embed, draw_ids(1, 1), *(t.double() for t in drawn(8, 1)))


def test_a_row_has_the_same_bits_in_any_batch(seed: int) -> None:
    leaves, ids = drawn(40, seed), draw_ids(11, seed)
    whole = run(embed, ids, *leaves)
    for rows in (slice(0, 1), slice(1, 6), slice(3, 11)):
        assert torch.equal(run(embed, [i[rows] for i in ids], *leaves), whole[rows])


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_gradients_for_any_number_of_parts(
    tokens: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part per table row, or several: with TOKENS = 2, 40 tokens make 5 parts."""
    monkeypatch.setattr(embed_triton, "TOKENS", 2)
    monkeypatch.setattr(embed_triton, "PROGRAMS", 24)
    ids = draw_ids(tokens, seed)
    if tokens > 1:  # rows that no token uses have a gradient of zero
        ids[0] = ids[0].clamp_max(WORDS - 2)
    assert_gradients(
        lambda *leaves: run(embed, ids, *leaves),
        lambda *leaves: run(reference.embed, ids, *leaves),
        *drawn(13, seed),
        seed=seed,
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_of_a_table_is_a_sum_by_id(
    parts: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_triton, "MOST_PARTS", parts)
    monkeypatch.setattr(embed_triton, "TOKENS", 2)
    dz = draw(60, 130, seed=seed)
    ids = draw_ids(60, seed)[1] * 2 + 1  # no token uses an even row
    truth = torch.zeros(5, 130, dtype=torch.float64).index_add_(0, ids, dz.double())
    plain = torch.zeros(5, 130).index_add_(0, ids, dz)
    found = [
        embed_triton.table_gradient_op(dz, kind, 5, torch.float32) for kind in (ids, ids.int())
    ]
    assert_within(found[0], truth, plain, torch.float32)
    assert torch.equal(*found)
    assert not found[0][::2].any()
    half = embed_triton.table_gradient_op(dz, ids, 5, torch.float16)
    assert torch.equal(half, found[0].half())


def test_gradients_are_bit_identical_in_every_run(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_triton, "TOKENS", 2)
    leaves, ids = [t.requires_grad_() for t in drawn(13, seed)], draw_ids(30, seed)
    upstream = draw(30, 13, seed=seed + 7)
    first, second = (
        torch.autograd.grad(run(embed, ids, *leaves), leaves, upstream) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_required_gradients_are_computed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def summed(*_: Any) -> None:
        raise RuntimeError("summed")

    monkeypatch.setattr(embed_triton, "table_gradient_op", summed)
    word, kinds, places, w, b = drawn(13, seed)
    ids = draw_ids(9, seed)
    run(embed, ids, word, kinds, places, w.requires_grad_(), b).sum().backward()
    assert w.grad is not None
    with pytest.raises(RuntimeError, match="summed"):
        run(embed, ids, word.requires_grad_(), kinds, places, w, b).sum().backward()


def test_narrow_tables_get_gradients_of_their_own_dtype(seed: int) -> None:
    leaves, ids = drawn(13, seed), draw_ids(9, seed)
    narrow = [*(t.half() for t in leaves[:3]), *leaves[3:]]
    upstream = draw(9, 13, seed=seed + 7)
    found, wanted = (
        torch.autograd.grad(run(embed, ids, *given), given, upstream)
        for given in (
            [t.requires_grad_() for t in narrow],
            [t.detach().float().requires_grad_() for t in narrow],
        )
    )
    for mine, exact, leaf in zip(found, wanted, narrow, strict=True):
        assert mine.dtype == leaf.dtype
        assert torch.equal(mine, exact.to(leaf.dtype))


def test_no_tokens_have_gradients_of_zero() -> None:
    leaves = [t.requires_grad_() for t in drawn(7, 1)]
    for grad in torch.autograd.grad(run(embed, draw_ids(0, 1), *leaves).sum(), leaves):
        assert not grad.any()


def registered() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    leaves = [t.requires_grad_() for t in drawn(24, 1)]
    tables, affine, ids = leaves[:3], leaves[3:], draw_ids(9, 1)
    x, dy = draw(9, 24, seed=7).requires_grad_(), draw(9, 24, seed=8)
    plain = [t.detach() for t in leaves]
    rest = EPS, torch.float32
    return {
        "all": (embed_triton.embed_op, (*ids, *tables, None, *affine, *rest)),
        "untyped": (
            embed_triton.embed_op,
            (ids[0].int(), None, None, *tables[:2], None, None, *affine, *rest),
        ),
        "embeds": (
            embed_triton.embed_op,
            (None, None, None, plain[0], None, None, x, *affine, *rest),
        ),
        "backward": (
            embed_triton.embed_backward_op,
            (dy, *ids, *plain[:3], None, *plain[3:], EPS, [True, False]),
        ),
        "table": (embed_triton.table_gradient_op, (dy, ids[0], WORDS, torch.float16)),
    }


@pytest.mark.parametrize("name", registered())
def test_opcheck(name: str) -> None:
    op, args = registered()[name]
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("typed", [False, True])
def test_one_graph_for_any_number_of_tokens(typed: bool, seed: int) -> None:
    leaves = [t.requires_grad_() for t in drawn(24, seed)]

    def form(words: Tensor, types: Tensor, places: Tensor) -> Tensor:
        return run(embed, [words, types if typed else None, places], *leaves)  # type: ignore[list-item]

    torch.compiler.reset()
    compiled = torch.compile(form, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (9, 3, 13):
            ids, upstream = draw_ids(tokens, seed), draw(tokens, 24, seed=seed + 6)
            got, wanted = compiled(*ids), form(*ids)
            assert torch.equal(got, wanted)
            for mine, eager in zip(
                torch.autograd.grad(got, leaves, upstream),
                torch.autograd.grad(wanted, leaves, upstream),
                strict=True,
            ):
                assert torch.equal(mine, eager)
    torch.compiler.reset()


def test_autocast_gives_the_dtype_that_torch_gives(seed: int) -> None:
    ids = draw_ids(6, seed)
    with torch.autocast("cpu", torch.float16):
        for dtype in (torch.float16, torch.float32):
            leaves = drawn(24, seed, dtype)
            wanted = run(embed_torch.embed, ids, *leaves)
            assert run(embed, ids, *leaves).dtype == wanted.dtype


def test_launches_are_direct_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatched(*_: Any) -> None:
        raise RuntimeError("dispatched")

    monkeypatch.setattr(embed_triton, "embed_op", dispatched)
    leaves, ids = drawn(24, 1), draw_ids(5, 1)
    run(embed, ids, *leaves)
    leaves[0].requires_grad_()
    with torch.no_grad():
        run(embed, ids, *leaves)
    with pytest.raises(RuntimeError, match="dispatched"):
        run(embed, ids, *leaves)
