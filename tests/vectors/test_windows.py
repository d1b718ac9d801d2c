"""Windows' vectors -> texts' vectors, against NumPy in float64, and their bits in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nomicbert.vectors.windows import mean_of_windows, token_mean

COUNTS = [1, 3, 1, 2, 17, 1, 5]
WIDTHS = [7, 24, 100, 768]
TOKENS = [4, 9, 9, 2, 8, 8, 1, *[7] * 16, 3, 12, 9, 9, 9, 9, 5]
BOUND = 5e-7


def _rows(width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(sum(COUNTS), width, generator=draw)


def _parts(rows: torch.Tensor) -> list[np.ndarray]:
    return np.split(rows.double().numpy(), np.cumsum(COUNTS)[:-1])


@pytest.mark.parametrize("width", WIDTHS)
def test_mean_of_unit_vectors(width: int, seed: int) -> None:
    vectors = F.normalize(_rows(width, seed))
    wanted = np.stack([part.mean(0) for part in _parts(vectors)])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = mean_of_windows(vectors, COUNTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=BOUND)


@pytest.mark.parametrize("width", WIDTHS)
def test_mean_over_tokens(width: int, seed: int) -> None:
    means, tokens = _rows(width, seed), np.array(TOKENS)
    wanted = [
        np.average(part, axis=0, weights=share)
        for part, share in zip(_parts(means), np.split(tokens, np.cumsum(COUNTS)[:-1]), strict=True)
    ]
    found = token_mean(means, tokens, COUNTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_bits_do_not_depend_on_the_other_texts(width: int, seed: int) -> None:
    rows = F.normalize(_rows(width, seed))
    tokens = np.array(TOKENS)
    ends = np.cumsum(COUNTS)
    for join in (mean_of_windows, lambda r, c: token_mean(r, tokens[: len(r)], c)):
        for first, count in zip(ends - COUNTS, COUNTS, strict=True):
            alone = rows[first : first + count]
            wanted = join(alone, [count])[0]
            among = torch.cat([alone, rows, rows])
            assert torch.equal(join(among[: len(rows)], [count, len(rows) - count])[0], wanted)
        assert torch.equal(join(rows, COUNTS)[0], rows[0])


def test_one_window_keeps_every_bit(seed: int) -> None:
    """Zeros with a sign included, and a length that L2 would correct."""
    rows = F.normalize(_rows(24, seed))
    rows[:, 3], rows[0] = -0.0, rows[0] * (1 + 3e-7)
    assert not torch.equal(F.normalize(rows[:1]), rows[:1])
    alone = np.flatnonzero(np.array(COUNTS) == 1)
    places = (np.cumsum(COUNTS) - COUNTS)[alone]
    for found in (mean_of_windows(rows, COUNTS)[alone], mean_of_windows(rows[places], [1, 1, 1])):
        assert torch.equal(found.view(torch.int32), rows[places].view(torch.int32))


def test_no_direction_gives_zeros() -> None:
    row = F.normalize(torch.ones(1, 8))
    found = mean_of_windows(torch.cat([row, -row, 0 * row, row, row]), [2, 1, 2])
    assert not found[:2].any()
    torch.testing.assert_close(found[2], row[0])
    assert not token_mean(0 * row, np.array([0]), [1]).any()


@pytest.mark.parametrize("counts", [[2, 2], [4], [3, 0], [4, -1], []])
def test_counts_of_other_windows(counts: list[int]) -> None:
    rows = F.normalize(torch.ones(3, 8))
    with pytest.raises(ValueError, match="3 windows cannot be those of texts of "):
        mean_of_windows(rows, counts)
    with pytest.raises(ValueError, match="3 windows cannot be those of texts of "):
        token_mean(rows, np.ones(3), counts)
