"""tiling: which tokens each program processes, and the number of tiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomicbert_kernels import launch, tiling
from nomicbert_kernels.tensors import Tiles
from tests.ops.cases import LENGTHS, refuses

CPU = torch.device("cpu")


def table_of(lengths: list[int], rows: int) -> list[tuple[int, ...]]:
    return [
        tuple(row) for row in tiling.tile_table(np.array(lengths, dtype=np.int64), rows).tolist()
    ]


def tiles_of(lengths: list[int], size: int = 16, dtype: torch.dtype = torch.float32) -> Tiles:
    tiles = tiling.plan_tiles(lengths, size, dtype, "cpu").tiles
    assert tiles is not None
    return tiles


def start(lengths: list[int], text: int) -> int:
    return sum(lengths[:text])


@settings(max_examples=200)
@given(LENGTHS, st.sampled_from([16, 32, 64, 128]))
def test_every_token_is_in_one_tile_with_its_whole_text_or_a_part(
    lengths: list[int], rows: int
) -> None:
    table = table_of(lengths, rows)
    seen: list[int] = []
    for token, count, first, last in table:
        assert 0 < count <= rows
        assert first < last
        assert all(lengths[first:last]), "a text without tokens is in no tile"
        seen += range(token, token + count)
        if last - first > 1:
            assert (token, token + count) == (start(lengths, first), start(lengths, last))
            assert all(length <= rows // 2 for length in lengths[first:last])
        else:
            assert (token - start(lengths, first)) % rows == 0
            assert token + count <= start(lengths, last)
    assert sorted(seen) == list(range(sum(lengths)))


@given(LENGTHS, st.sampled_from([16, 64]))
def test_neighbours_that_fit_share_a_tile(lengths: list[int], rows: int) -> None:
    shared = sorted(row for row in table_of(lengths, rows) if lengths[row[2]] <= rows // 2)
    for (_, count, _, last), (_, after, first, _) in pairwise(shared):
        assert last != first or count + lengths[first] > rows, (count, after)


@given(LENGTHS, st.sampled_from([16, 64]))
def test_longest_work_first(lengths: list[int], rows: int) -> None:
    keys = [
        start(lengths, last) - start(lengths, first)
        for _, _, first, last in table_of(lengths, rows)
    ]
    assert keys == sorted(keys, reverse=True)


def test_a_table_written_out() -> None:
    assert table_of([3, 0, 5, 2, 1, 20, 9, 8, 8], 16) == [
        (11, 16, 5, 6),
        (27, 4, 5, 6),
        (40, 16, 7, 9),
        (31, 9, 6, 7),
        (3, 8, 2, 5),
        (0, 3, 0, 1),
    ]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens(lengths: list[int]) -> None:
    tiles = tiles_of(lengths)
    assert tiles.table.shape == (0, 4)
    assert tiles.text.shape == (0,)


def test_on_the_device() -> None:
    tiles = tiles_of([2, 0, 3])
    assert tiles.table.dtype == tiles.text.dtype == torch.int32
    assert tiles.text.tolist() == [0, 0, 2, 2, 2]
    assert tiles.table.tolist() == [[2, 3, 2, 3], [0, 2, 0, 1]]
    assert tiles.table.is_contiguous()


@pytest.mark.parametrize("rows", [64, 128])
def test_number_of_tiles(rows: int) -> None:
    assert len(table_of([8192], rows)) == 8192 // rows
    assert len(table_of([8] * 20_000, rows)) == 20_000 * 8 // rows
    mixed = [8] * 1024 + [8192] + [8] * 1024
    assert len(table_of(mixed, rows)) == 2 * 1024 * 8 // rows + 8192 // rows


def test_long_batches_take_the_long_tiles() -> None:
    short, long = (
        launch.settings(name, CPU, torch.float32, head_dim=16)
        for name in ("attention_short", "attention_long")
    )
    assert short["BLOCK_M"] < long["BLOCK_M"]
    for length, wanted in ((1, short), (256, short), (257, long)):
        rows = tiles_of([3, length, 1]).rows
        assert rows == wanted["BLOCK_M"]
        assert tiling.settings_of(rows, 16, CPU, torch.float32) is wanted


@pytest.mark.parametrize("size", [0, 257])
def test_refuses_a_head_that_does_not_fit(size: int) -> None:
    with refuses(f"the head size must be 1 to 256 for backend 'triton', not {size}"):
        tiling.plan_tiles([3], size, torch.float32, "cpu")
