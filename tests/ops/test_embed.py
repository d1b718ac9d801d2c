"""embed: LayerNorm(word[id] + token_type[type] + position[position])."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import EmbeddingTables
from tests.ops.cases import (
    ALL_DTYPES,
    EVERY_FORM,
    ROWS,
    SEEDS,
    SLICES,
    WIDTHS,
    assert_exact,
    assert_gradients,
    assert_within,
    draw,
    ops_of,
    refuses,
    spread,
)

EPS = 1e-5
WORDS, TYPES, POSITIONS = 50, 2, 140


def one_hot(ids: Tensor, table: Tensor) -> Tensor:
    """Gather rows of a table as a one-hot matmul in fp64, independently of indexing."""
    return F.one_hot(ids.long(), table.shape[0]).double() @ table.double()


def norm(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = z - z.mean(1, keepdim=True)
    scale = (centred**2).mean(1, keepdim=True) + EPS
    return centred / scale**0.5 * w.double() + b.double()


def draw_ids(rows: int, limit: int, seed: int) -> Tensor:
    return torch.randint(limit, (rows,), generator=torch.Generator().manual_seed(seed))


def draw_tables(width: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    sizes = (WORDS, width), (TYPES, width), (POSITIONS, width), (width,), (width,)
    return tuple(draw(*size, seed=seed + i, dtype=dtype) for i, size in enumerate(sizes))


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, WIDTHS, st.booleans(), st.booleans(), st.booleans(), st.booleans(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    types: bool,
    typed: bool,
    positions: bool,
    embeds: bool,
    seed: int,
) -> None:
    word, token_type, position, w, b = draw_tables(width, seed, dtype)
    ids, kinds, places = (draw_ids(rows, n, seed) for n in (WORDS, TYPES, POSITIONS))
    x = draw(rows, width, seed=seed + 9, dtype=dtype)
    truth, plain = (x.double(), x) if embeds else (one_hot(ids, word), word[ids])
    if types:
        used = kinds if typed else torch.zeros_like(kinds)
        truth, plain = truth + one_hot(used, token_type), plain + token_type[used]
    if positions:
        truth, plain = truth + one_hot(places, position), plain + position[places]
    tables = EmbeddingTables(word, token_type if types else None, position if positions else None)
    got = ops_of(form, dtype).embed(
        None if embeds else ids,
        kinds if typed else None,
        places if positions else None,
        tables,
        w,
        b,
        EPS,
        spread(x) if embeds else None,
    )
    assert_within(got, norm(truth, w, b), F.layer_norm(plain, (width,), w, b, EPS), dtype)


def test_reference_is_the_formula(seed: int) -> None:
    word, token_type, position, w, b = draw_tables(7, seed, torch.float64)
    ids, kinds, places = (draw_ids(40, n, seed).int() for n in (WORDS, TYPES, POSITIONS))
    tables = EmbeddingTables(word, token_type, position)
    got = ops_of("reference", torch.float64).embed(ids, kinds, places, tables, w, b, EPS)
    z = one_hot(ids, word) + one_hot(kinds, token_type) + one_hot(places, position)
    assert_exact(got, norm(z, w, b))


@EVERY_FORM
def test_tables_stored_in_a_narrower_dtype(form: str, seed: int) -> None:
    """Sums are computed in the wider dtype, bit for bit."""
    wide = [t.half().float() for t in draw_tables(13, seed)]
    word, token_type, position = (t.half() for t in wide[:3])
    ids, kinds, places = (draw_ids(17, n, seed) for n in (WORDS, TYPES, POSITIONS))
    for typed in (kinds, None):
        for row, embeds in ((ids, None), (None, word[ids])):
            tables, embed = EmbeddingTables(word, token_type, position), ops_of(form).embed
            got = embed(row, typed, places, tables, *wide[3:], EPS, embeds)
            truth = embed(ids, typed, places, EmbeddingTables(*wide[:3]), *wide[3:], EPS)
            assert got.dtype == torch.float32
            assert torch.equal(got, truth)


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    word, token_type, position, w, b = draw_tables(7, 1)
    none = torch.zeros(0, dtype=torch.int64)
    tables = EmbeddingTables(word, token_type, position)
    assert ops_of(form).embed(none, none, none, tables, w, b, EPS).shape == (0, 7)
    assert ops_of(form).embed(None, None, none, tables, w, b, EPS, torch.ones(0, 7)).numel() == 0


@EVERY_FORM
@pytest.mark.parametrize("typed", [False, True])
def test_gradients(form: str, typed: bool, seed: int) -> None:
    ids, kinds, places = (draw_ids(17, n, seed) for n in (WORDS, TYPES, POSITIONS))
    row = kinds if typed else torch.zeros_like(kinds)
    ops = ops_of(form)

    def op(word: Tensor, token_type: Tensor, position: Tensor, w: Tensor, b: Tensor) -> Tensor:
        tables = EmbeddingTables(word, token_type, position)
        return ops.embed(ids, kinds if typed else None, places, tables, w, b, EPS)

    def formula(word: Tensor, token_type: Tensor, position: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = one_hot(ids, word) + one_hot(row, token_type) + one_hot(places, position)
        return norm(z, w, b)

    assert_gradients(op, formula, *draw_tables(13, seed), seed=seed)


@EVERY_FORM
def test_gradients_of_inputs_embeds(form: str, seed: int) -> None:
    word, token_type, _, w, b = draw_tables(13, seed)
    tables = EmbeddingTables(word, token_type)
    assert_gradients(
        lambda x: ops_of(form).embed(None, None, None, tables, w, b, EPS, x),
        lambda x: norm(x + token_type[0].double(), w, b),
        draw(17, 13, seed=seed + 9),
        seed=seed,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype, seed: int) -> None:
    word, token_type, position, w, b = draw_tables(37, seed, dtype)
    tables = EmbeddingTables(word, token_type, position)
    ids = [draw_ids(333, n, seed) for n in (WORDS, TYPES, POSITIONS)]
    embed = ops_of("torch", dtype).embed
    whole = embed(*ids, tables, w, b, EPS)
    for start, count in SLICES:
        part = embed(*(i[start : start + count] for i in ids), tables, w, b, EPS)
        assert torch.equal(part, whole[start : start + count])


IDS = torch.tensor([1, 0, 1])
V = torch.ones(4)
BOTH = "embed needs exactly one of input_ids and inputs_embeds"
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (BOTH, {"input_ids": None}),
    (BOTH, {"inputs_embeds": torch.ones(3, 4)}),
    ("inputs_embeds must have 2 dimensions", {"input_ids": None, "inputs_embeds": V}),
    (
        "inputs_embeds must be fp32, fp16, bf16 or fp64, not torch.int64",
        {"input_ids": None, "inputs_embeds": torch.ones(3, 4).long()},
    ),
    ("inputs_embeds must be (3, 4), not (3, 5)", {"input_ids": None,
                                                  "inputs_embeds": torch.ones(3, 5)}),
    (
        "inputs_embeds is on meta, but must be on cpu",
        {"input_ids": None, "inputs_embeds": torch.ones(3, 4, device="meta")},
    ),
    ("a model with learned positions needs position_ids", {"position_ids": None}),
    ("token_type_ids must be (3,), not (2,)", {"token_type_ids": IDS[:2]}),
    ("position_ids must be (3,), not (1, 3)", {"position_ids": IDS[None]}),
    ("input_ids is on meta, but must be on cpu", {"input_ids": IDS.to("meta")}),
    ("token_type_ids is on meta", {"token_type_ids": IDS.to("meta")}),
    ("position_ids is on meta", {"position_ids": IDS.to("meta")}),
    ("input_ids contains 6, but the table has 6 rows (0 to 5)", {"input_ids": IDS + 5}),
    ("input_ids contains -1, but the table has 6 rows (0 to 5)", {"input_ids": IDS - 1}),
    ("token_type_ids contains 2, but the table has 2 rows", {"token_type_ids": IDS + 1}),
    ("position_ids contains 8, but the table has 8 rows", {"position_ids": IDS + 7}),
    ("position_ids contains -3, but the table has 8 rows", {"position_ids": IDS - 3}),
]  # fmt: skip


@EVERY_FORM
@pytest.mark.parametrize(("message", "changed"), REFUSED)
def test_refusals(form: str, message: str, changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "input_ids": IDS,
        "token_type_ids": IDS,
        "position_ids": IDS,
        "tables": EmbeddingTables(torch.ones(6, 4), torch.ones(2, 4), torch.ones(8, 4)),
        "weight": V,
        "bias": V,
        "eps": EPS,
    }
    ops_of(form).embed(**arguments)
    with refuses(message):
        ops_of(form).embed(**arguments | changed)
