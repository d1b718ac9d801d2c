"""rope: angles of rotary positions, and dynamic NTK scaling as a pure function of length."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert import EncoderConfig
from nomicbert.modeling.packing import offsets, pack
from nomicbert.modeling.rope import RotaryTables, angles
from nomicbert_kernels import Rope, select_ops

V15 = EncoderConfig(
    model_type="nomic_bert",
    vocab_size=50,
    hidden_size=768,
    num_hidden_layers=1,
    num_attention_heads=12,
    intermediate_size=8,
    type_vocab_size=2,
    max_position_embeddings=8192,
    layer_norm_eps=1e-12,
    rotary_dim=64,
    rope_theta=1000.0,
    max_trained_positions=2048,
)
# A model whose scaling starts at short lengths, which keeps the tests small.
SMALL = dataclasses.replace(
    V15, rotary_dim=8, rotary_scaling_factor=2.0, max_trained_positions=32, rope_theta=1000.0
)


def oracle(length: int, theta: float, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cos and sin of all positions, from the formula in fp64."""
    turn = np.arange(length)[:, None] / theta ** (np.arange(dim // 2) * 2 / dim)
    return np.cos(turn), np.sin(turn)


def in_reference_order(length: int, theta: float, dim: int) -> tuple[Tensor, Tensor]:
    """As both reference implementations compute it in fp32, with one outer product."""
    inv_freq = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    turn = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    return turn.cos(), turn.sin()


def scaled_theta(length: int, config: EncoderConfig) -> float:
    a, trained, d = config.rotary_scaling_factor, config.max_trained_positions, config.rotary_dim
    if a is None or length <= trained:
        return config.rope_theta
    return config.rope_theta * (a * length / trained - (a - 1)) ** (d / (d - 2))


def rows_of(rope: Rope, lengths: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Cos and sin of each text's tokens."""
    row = rope.row.long()
    return list(zip(rope.cos[row].split(lengths), rope.sin[row].split(lengths), strict=True))


def table(tables: RotaryTables, lengths: list[int]) -> Rope:
    batch = pack([[0] * n for n in lengths])
    return tables.table(batch.rope_lengths, batch.lengths, batch.position_ids)


@pytest.mark.parametrize("theta", [1000.0, 10000.0, 7453.5])
@pytest.mark.parametrize("dim", [64, 32, 24, 6, 2])
def test_angles(theta: float, dim: int) -> None:
    exponent = np.arange(dim // 2) * 2 / dim
    # fp32 rounds an angle four times: the exponent, which log theta magnifies, the power, its
    # reciprocal, the product. For an angle of 8191 the error is 5e-4.
    roundings = (3 + exponent * np.log(theta)) / 2 * np.finfo(np.float32).eps
    turn = np.arange(8192)[:, None] / theta**exponent
    for mine, exact, same in zip(
        angles(8192, theta, dim),
        oracle(8192, theta, dim),
        in_reference_order(8192, theta, dim),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        error = np.abs(mine[:8192].double().numpy() - exact)
        assert (error <= turn * roundings + np.finfo(np.float32).eps).all()
        # ... and it is rounded as the references round it
        assert torch.equal(mine[:8192], same)


@given(st.integers(0, 1500))
@settings(max_examples=25)
def test_angles_do_not_depend_on_the_length_of_the_table(length: int) -> None:
    long = angles(2000, 1000.0, 24)
    for short, whole in zip(angles(length, 1000.0, 24), long, strict=True):
        assert short.shape[0] >= length
        assert torch.equal(short[:length], whole[:length])


@pytest.mark.parametrize(
    ("factor", "thetas"),
    [
        (1.0, [1000, 1000.5, 1483.0, 2045.2, 3108.2, 4182.9]),
        (2.0, [1000, 1001.0, 1971.0, 3108.2, 5266.4, 7453.5]),
        (4.0, [1000, 1002.0, 2957.9, 5266.4, 9661.1, 14121.4]),
        (None, [1000] * 6),
    ],
)
def test_scaled_theta(factor: float | None, thetas: list[float]) -> None:
    """By hand from the remote code of nomic-embed-text-v1. A factor of 1 still scales."""
    tables = RotaryTables(dataclasses.replace(V15, rotary_scaling_factor=factor))
    found = [tables.scaled_theta(n) for n in (2048, 2049, 3000, 4096, 6144, 8192)]
    assert found == [pytest.approx(theta, abs=0.051) for theta in thetas]
    assert tables.scaled_theta(1) == tables.scaled_theta(0) == 1000.0


def test_two_rotary_dimensions_have_no_theta_to_scale() -> None:
    """Their one frequency is 1 whatever theta is; the exponent d / (d - 2) is not evaluated."""
    tables = RotaryTables(dataclasses.replace(SMALL, rotary_dim=2))
    assert tables.scaled_theta(500) == 1000.0


@given(st.lists(st.sampled_from([0, 1, 5, 31, 32, 33, 40, 64, 300]), max_size=8))
def test_table_of_a_batch(lengths: list[int]) -> None:
    """Several lengths above the trained one in one batch, each with its own theta."""
    rope = table(RotaryTables(SMALL), lengths)
    assert rope.rotary_dim == 8
    assert rope.row.dtype == torch.int32
    assert rope.cos.dtype == rope.sin.dtype == torch.float32
    for n, found in zip(lengths, rows_of(rope, lengths), strict=True):
        exact = oracle(n, scaled_theta(n, SMALL), 8)
        same = in_reference_order(n, scaled_theta(n, SMALL), 8)
        for mine, a, b in zip(found, exact, same, strict=True):
            np.testing.assert_allclose(mine.double().numpy(), a, atol=2e-5)
            assert torch.equal(mine, b)


def test_interleaving_is_passed_on() -> None:
    assert not table(RotaryTables(SMALL), [3, 40]).interleaved
    config = dataclasses.replace(SMALL, rotary_interleaved=True)
    assert table(RotaryTables(config), [3]).interleaved
    assert table(RotaryTables(config), [3, 40]).interleaved


def test_one_row_serves_all_texts_that_can_share_it() -> None:
    rope = table(RotaryTables(SMALL), [5, 9, 40, 40, 64])
    blocks = [rope.row[a:b].tolist() for a, b in [(0, 5), (5, 14), (14, 54), (54, 94)]]
    assert blocks[0] == blocks[1][:5]
    assert blocks[2] == blocks[3]
    assert not set(blocks[1]) & set(blocks[2])


@settings(max_examples=12)
@given(
    st.permutations([[7], [40], [300], [5, 40, 64], [600], [33, 600]]),
    st.sampled_from([None, 2.0]),
)
def test_earlier_batches_do_not_matter(calls: list[list[int]], factor: float | None) -> None:
    """Earlier batches and a longer cached table change no bit of a text's angles."""
    config = dataclasses.replace(SMALL, rotary_scaling_factor=factor)
    used = RotaryTables(config)
    for lengths in [*calls, *calls]:
        fresh = RotaryTables(config)
        for n, mine in zip(lengths, rows_of(table(used, lengths), lengths), strict=True):
            (alone,) = rows_of(table(fresh, [n]), [n])
            assert torch.equal(mine[0], alone[0])
            assert torch.equal(mine[1], alone[1])


def test_the_padded_length_sets_theta() -> None:
    """Texts of 3 and 5 tokens from padded rows of 40 columns use the theta of 40."""
    position_ids = torch.tensor([37, 38, 39, 0, 2, 4, 6, 39])
    rope = RotaryTables(SMALL).table([40, 40], [3, 5], position_ids)
    cos, sin = in_reference_order(40, scaled_theta(40, SMALL), 8)
    assert torch.equal(rope.cos[rope.row.long()], cos[position_ids])
    assert torch.equal(rope.sin[rope.row.long()], sin[position_ids])


@pytest.mark.parametrize("lengths", [[3], [3, 40]])
def test_a_training_step_after_inference_mode(lengths: list[int]) -> None:
    """Tables made under inference_mode are cached and must work in a backward pass."""
    tables = RotaryTables(SMALL)
    with torch.inference_mode():
        kept = table(tables, lengths)
    ops = select_ops("cpu", torch.float32)
    x = torch.randn(sum(lengths), 16)
    weight = torch.randn(48, 16, requires_grad=True)
    rope = table(tables, lengths)
    assert torch.equal(rope.cos, kept.cos)
    assert not rope.cos.is_inference()
    qkv = ops.qkv_rotary(x, ops.prepare(weight, None, "linear"), rope, 2)
    plan = ops.plan(lengths, 2, 8, torch.float32)
    ops.attention(qkv, offsets(lengths), plan, 1.0).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().max() > 0


def test_no_tokens() -> None:
    for rope_lengths in ([], [0], [40, 40]):
        lengths = [0] * len(rope_lengths)
        none = torch.zeros(0, dtype=torch.int64)
        assert RotaryTables(SMALL).table(rope_lengths, lengths, none).row.shape == (0,)


@pytest.mark.parametrize("config", [V15, SMALL, dataclasses.replace(SMALL, rotary_dim=2)])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 70])
def test_texts_of_one_length(config: EncoderConfig, length: int) -> None:
    """By tensors, as torch.export records them, the tables are those of any batch."""
    tables = RotaryTables(config)
    found = rows_of(tables.of_equal_lengths(3, length), [length] * 3)
    for ours, wanted in zip(found, rows_of(table(tables, [length] * 3), [length] * 3), strict=True):
        for one, other in zip(ours, wanted, strict=True):
            # the angles are the same; the last bit of cos and sin depends on the vector's tail
            assert (one - other).abs().max() <= 2**-23
