"""packing: padded rows and lists of ids -> packed tokens, and back."""

from __future__ import annotations

import dataclasses
import re
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nomicbert.modeling.packing import PackedBatch, offsets, pack, unpad
from nomicbert.user_warnings import EmptyRowWarning

TEXTS = st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=6)
MASKS = st.integers(1, 9).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, 1), min_size=columns, max_size=columns), min_size=1, max_size=5
    )
)
SIDES = st.tuples(
    st.lists(st.integers(0, 9), min_size=1, max_size=6), st.booleans(), st.integers(0, 3)
)


def texts_of(batch: PackedBatch, values: torch.Tensor) -> list[list]:
    """The values of each text, split by cu_seqlens."""
    bounds = batch.cu_seqlens.tolist()
    return [values[a:b].tolist() for a, b in pairwise(bounds)]


def warned_of_empty(mask: Tensor) -> AbstractContextManager[Any]:
    """Expect a warning if a row keeps no token; otherwise any warning is an error."""
    return nullcontext() if mask.any(dim=1).all() else pytest.warns(EmptyRowWarning)


@given(TEXTS)
def test_pack(texts: list[list[int]]) -> None:
    batch = pack(texts)
    assert batch.input_ids is not None
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    assert texts_of(batch, batch.input_ids) == texts
    assert texts_of(batch, batch.position_ids) == [list(range(len(text))) for text in texts]
    assert batch.lengths == batch.rope_lengths == tuple(len(text) for text in texts)
    assert batch.token_type_ids is batch.inputs_embeds is None


@given(st.lists(st.integers(0, 5), max_size=9))
def test_offsets(lengths: list[int]) -> None:
    found = offsets(lengths)
    assert found.dtype == torch.int32
    assert found.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]


def test_first_and_last_tokens() -> None:
    batch = pack([[7, 8, 9], [5], [3, 4]])
    assert batch.input_ids is not None
    assert batch.input_ids[batch.first_tokens()].tolist() == [7, 5, 3]
    assert batch.input_ids[batch.last_tokens()].tolist() == [9, 5, 4]
    assert batch.first_tokens().dtype == batch.last_tokens().dtype == torch.int64


@given(TEXTS)
def test_without_empty(texts: list[list[int]]) -> None:
    """The same as packing only the other texts."""
    batch = dataclasses.replace(pack(texts), rope_lengths=tuple(range(len(texts))))
    found, kept = batch.without_empty()
    assert kept == [index for index, text in enumerate(texts) if text]
    wanted = pack([texts[index] for index in kept])
    assert found.lengths == wanted.lengths
    assert found.rope_lengths == tuple(kept)
    assert found.cu_seqlens.dtype == torch.int32
    for name in ("cu_seqlens", "position_ids", "input_ids"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert (found is batch) == all(texts)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8])
@given(mask=MASKS)
def test_round_trip_through_any_mask(dtype: torch.dtype, mask: list[list[int]]) -> None:
    """Holes, padding on both sides and rows of zeros included."""
    kept = np.array(mask)
    rows, columns = kept.shape
    ids = torch.arange(100, 100 + kept.size).view(rows, columns)
    types = ids % 2
    with warned_of_empty(torch.tensor(mask)):
        batch, padding = unpad(ids, torch.tensor(mask).to(dtype), types)
    assert batch.input_ids is not None
    assert batch.token_type_ids is not None
    by_row = [[c for c in range(columns) if row[c]] for row in mask]
    assert texts_of(batch, batch.position_ids) == by_row
    wanted = [[100 + r * columns + c for c in kept] for r, kept in enumerate(by_row)]
    assert texts_of(batch, batch.input_ids) == wanted
    assert batch.token_type_ids.tolist() == (batch.input_ids % 2).tolist()
    assert batch.lengths == tuple(len(row) for row in by_row)
    assert batch.rope_lengths == (columns,) * rows

    hidden = torch.stack([batch.input_ids.double(), -batch.input_ids.double()], dim=1)
    back = padding.pad(hidden).numpy()
    np.testing.assert_array_equal(back[..., 0], np.where(kept, ids.numpy(), 0))
    np.testing.assert_array_equal(back[..., 1], np.where(kept, -ids.numpy(), 0))


@given(SIDES)
def test_padding_on_one_side(drawn: tuple[list[int], bool, int]) -> None:
    """Positions are columns: left padding shifts them, right padding does not."""
    lengths, left, extra = drawn
    columns = max(lengths) + extra
    mask = torch.arange(columns) < torch.tensor(lengths)[:, None]
    ids = torch.randint(100, mask.shape)
    with warned_of_empty(mask):
        batch, _ = unpad(ids, mask.flip(1) if left else mask)
    for n, places in zip(lengths, texts_of(batch, batch.position_ids), strict=True):
        assert places == list(range(columns - n, columns) if left else range(n))


def test_no_mask_keeps_everything() -> None:
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    batch, padding = unpad(ids)
    assert batch.input_ids is not None
    assert batch.input_ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.token_type_ids is None
    assert batch.lengths == (3, 3)
    assert torch.equal(padding.pad(ids.view(6, 1).float()).squeeze(2), ids.float())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_unpad(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape)
    with warned_of_empty(mask):
        batch, padding = unpad(torch.zeros(shape, dtype=torch.int64), mask)
    assert batch.lengths == (0,) * shape[0]
    assert batch.cu_seqlens.tolist() == [0] * (shape[0] + 1)
    assert padding.pad(torch.zeros(0, 4)).shape == (*shape, 4)


def test_embeddings_are_unpadded_in_place_of_ids() -> None:
    embeds = torch.randn(2, 3, 4)
    batch, _ = unpad(embeds, torch.tensor([[1, 0, 1], [0, 1, 0]]))
    assert batch.input_ids is None
    assert batch.inputs_embeds is not None
    assert torch.equal(batch.inputs_embeds, torch.stack([embeds[0, 0], embeds[0, 2], embeds[1, 1]]))


def test_gradients_flow_through_unpad_and_pad() -> None:
    embeds = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    batch, padding = unpad(embeds, mask)
    assert batch.inputs_embeds is not None
    padding.pad(batch.inputs_embeds * 3).sum().backward()
    assert torch.equal(embeds.grad, (mask * 3.0)[..., None].expand(2, 3, 4))


@pytest.mark.parametrize("form", ["(B, S)", "(1, S)", "(S,)"])
def test_position_ids(form: str) -> None:
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [1, 0, 1]])
    given_ids = {
        "(B, S)": torch.tensor([[5, 6, 7], [9, 8, 4]]),
        "(1, S)": torch.tensor([[5, 6, 7]]),
        "(S,)": torch.tensor([5, 6, 7], dtype=torch.int32),
    }[form]
    batch, _ = unpad(ids, mask, position_ids=given_ids)
    assert batch.position_ids.dtype == torch.int64
    assert batch.position_ids.tolist() == ([5, 6, 9, 4] if form == "(B, S)" else [5, 6, 5, 7])
    # the largest position decides the rotary scaling, of dropped tokens too
    assert batch.rope_lengths == ((10, 10) if form == "(B, S)" else (8, 8))


def test_positions_of_dropped_tokens_are_ignored() -> None:
    """If positions are counted from the mask, left padding often gets -1."""
    ids, mask = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0, 1, 1]])
    batch, _ = unpad(ids, mask, position_ids=mask.cumsum(1) - 1)
    assert batch.position_ids.tolist() == [0, 1]


IDS = torch.zeros(2, 3, dtype=torch.int64)
REFUSED = [
    ("attention_mask must be (2, 3), not (2, 2)", {"attention_mask": torch.ones(2, 2)}),
    ("attention_mask must be (2, 3), not (3,)", {"attention_mask": torch.ones(3)}),
    ("attention_mask must be (2, 3), not (2, 1, 1, 3)", {"attention_mask": torch.ones(2, 1, 1, 3)}),
    ("token_type_ids must be (2, 3), not (1, 3)", {"token_type_ids": IDS[:1]}),
    ("attention_mask must hold 0 and 1 only", {"attention_mask": torch.full((2, 3), 2)}),
    ("attention_mask must hold 0 and 1 only", {"attention_mask": torch.full((2, 3), 0.5)}),
    ("attention_mask must hold 0 and 1 only", {"attention_mask": torch.full((2, 3), -1e9)}),
    ("attention_mask must hold 0 and 1 only", {"attention_mask": torch.full((2, 3), torch.nan)}),
    ("position_ids must be (2, 3), not (2, 2)", {"position_ids": IDS[:, :2]}),
    ("position_ids must be (2, 3), not (2, 1)", {"position_ids": IDS[:, :1]}),
    ("position_ids must be (2, 3), not (3, 3)", {"position_ids": torch.zeros(3, 3)}),
    ("position_ids must be (2, 3), not ()", {"position_ids": torch.tensor(1)}),
    ("position_ids contains -2: positions count from 0", {"position_ids": IDS - 2}),
]


@pytest.mark.parametrize(("message", "extra"), REFUSED)
def test_refusals(message: str, extra: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        unpad(IDS, **extra)
