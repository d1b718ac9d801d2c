"""Positions: padding on either side, masks with holes, position ids, token types.

Each against transformers for one variant with rotary and one with learned positions, and against
the oracle for the variant with experts, which transformers does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert.user_warnings import EmptyRowWarning
from tests.parity.bounds import BACKENDS, HIDDEN
from tests.parity.report import difference, held
from tests.parity.support import (
    ORACLE_ONLY,
    Batch,
    Case,
    clear_tokens,
    hidden_states,
    masked,
    oracle_states,
    ours,
    theirs,
)
from tests.support.checkpoints import read_tensors

WORDS = "embeddings.word_embeddings.weight"
ROWS = ("nomic-v1.5", "bge-en", "nomic-v2-moe")


def left(case: Case, folder: Path) -> Batch:
    return case.batch(folder, side="left")


def holes(case: Case, folder: Path) -> Batch:
    """A mask with zeros anywhere, first and last column included; every text keeps a token."""
    batch = case.batch(folder)
    mask = (torch.rand(batch["attention_mask"].shape) < 0.6).long()
    mask[:, 7] = 1
    mask[0, 0], mask[1, -1], mask[2, 0] = 0, 0, 1
    assert (mask.diff().abs().sum(1) > 2).all()
    return batch | {"attention_mask": mask}


def single_column(case: Case, folder: Path) -> Batch:
    return case.batch(folder, lengths=(1, 1, 1))


def no_mask(case: Case, folder: Path) -> Batch:
    return case.batch(folder) | {"attention_mask": None}


def all_ones(case: Case, folder: Path) -> Batch:
    return case.batch(folder, lengths=(19, 19))


def shared_positions(case: Case, folder: Path) -> Batch:
    return case.batch(folder) | {"position_ids": torch.randperm(60)[None, :32]}


def own_positions(case: Case, folder: Path) -> Batch:
    return case.batch(folder, side="left") | {"position_ids": torch.randint(60, (6, 32))}


def no_types(case: Case, folder: Path) -> Batch:
    return case.batch(folder) | {"token_type_ids": None}


def embedded(case: Case, folder: Path) -> Batch:
    """Word embeddings instead of ids."""
    batch = case.batch(folder, side="left")
    words = 0.05 * torch.randn(*batch["input_ids"].shape, read_tensors(folder)[WORDS].shape[1])
    return batch | {"input_ids": None, "inputs_embeds": words}


INPUTS: tuple[Callable[[Case, Path], Batch], ...] = (
    left,
    holes,
    single_column,
    no_mask,
    all_ones,
    shared_positions,
    own_positions,
    no_types,
    embedded,
)


def truth(case: Case, variant: str, batch: Batch) -> Tensor:
    if variant in ORACLE_ONLY:
        return oracle_states(case.build(variant), batch)
    return masked(hidden_states(theirs(case.build_native(variant)), batch), batch)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("variant", ROWS)
def test_inputs_equal_the_reference(
    variant: str, make: Callable[[Case, Path], Batch], case: Case
) -> None:
    folder = case.build(variant)
    batch = make(case, folder)
    wanted = truth(case, variant, batch)
    rows = ... if variant not in ORACLE_ONLY else (slice(None), clear_tokens(folder, batch))
    mask = batch["attention_mask"]
    if batch.get("inputs_embeds") is not None:  # padding must not be read
        batch["inputs_embeds"][mask == 0] = torch.nan
    for backend in BACKENDS:
        mine = hidden_states(ours(folder, backend), batch)
        held("hidden states", mine[rows], wanted[rows], HIDDEN, backend)
        assert mask is None or not mine[:, mask == 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_row_of_padding_only_is_zero(variant: str, backend: str, case: Case) -> None:
    """It does not affect other rows; a batch of such rows only works too."""
    folder = case.build(variant)
    model = ours(folder, backend)
    batch = case.batch(folder)
    before = hidden_states(model, batch)
    batch["attention_mask"][2] = 0
    with pytest.warns(EmptyRowWarning, match="row 2 of attention_mask keeps no token"):
        after = hidden_states(model, batch)
    assert (after[:, 2] == 0).all()
    rest = [0, 1, 3, 4, 5]
    held("hidden states", after[:, rest], before[:, rest], HIDDEN)
    assert before[:, 2].any()
    batch["attention_mask"][:] = 0
    with pytest.warns(EmptyRowWarning, match="rows 0, 1, 2, 3, 4 and 1 more of attention_mask"):
        nothing = hidden_states(model, batch)
    assert (nothing == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float16])
def test_mask_dtypes(dtype: torch.dtype, case: Case) -> None:
    folder = case.build("nomic-v1.5")
    model, batch = ours(folder, "torch"), case.batch(folder)
    wanted = hidden_states(model, batch)
    other = batch | {"attention_mask": batch["attention_mask"].to(dtype)}
    assert difference(hidden_states(model, other), wanted) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_of_ones_equals_no_mask(backend: str, case: Case) -> None:
    folder = case.build("bge-en")
    model, batch = ours(folder, backend), case.batch(folder, lengths=(9, 9))
    wanted = hidden_states(model, batch)
    for without in (batch | {"attention_mask": None}, {**batch, "position_ids": torch.arange(9)}):
        assert difference(hidden_states(model, without), wanted) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_padding_does_not_matter(variant: str, backend: str, case: Case) -> None:
    """Texts alone, padded right, padded left, to any width: rotary angles are relative."""
    folder = case.build(variant)
    model = ours(folder, backend)
    batch = case.batch(folder, side="left")
    padded = hidden_states(model, batch)
    starts = (batch["attention_mask"] == 0).sum(1).tolist()
    for row, start in enumerate(starts):
        text = {name: value[row : row + 1, start:] for name, value in batch.items()}
        # learned positions count columns, so a text alone gets the position ids of its columns
        if variant == "bge-en":
            text["position_ids"] = torch.arange(start, start + text["input_ids"].shape[1])
        held("hidden states", hidden_states(model, text)[:, 0], padded[:, row, start:], HIDDEN)
