"""`Finish`: a pooled vector is finished to the same bits in one op or two, alone or in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nomicbert.errors import BackendError
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize, Step
from nomicbert_kernels import compute_dtype
from nomicbert_kernels.linear_torch import onednn_packs
from tests.support import finishing

IDS = [[5, 9, 7], [8, 6, 11, 30], [4]]


@pytest.mark.parametrize(("dtype", "backend"), finishing.KINDS, ids=str)
def test_bits(dtype: torch.dtype, backend: Any) -> None:
    if not onednn_packs(compute_dtype(torch.device("cpu"), dtype)):
        pytest.skip("without oneDNN a row's bits depend on the number of rows")
    try:
        cases = [*finishing.compare(dtype, backend, widths=finishing.WIDTHS[:1])]
    except BackendError as error:
        pytest.skip(str(error))
    assert len(cases) == len(finishing.POOLINGS) * len(finishing.FINISHES) * 2
    assert not [case for case in cases if case.differ]
    assert min(case.compared for case in cases) == 9


def model_of(*steps: Step, **settings: Any) -> EmbeddingModel:
    return finishing.built(
        lambda width, dtype: Pooling(width, steps=steps, **settings), 64, torch.float32, "torch"
    )


@torch.inference_mode()
def vectors(model: EmbeddingModel, finish: Finish) -> torch.Tensor:
    return model.encode_ids(IDS, finish)


def test_unnormalized_is_what_l2_is_applied_to() -> None:
    """The values, against plain torch."""
    model = model_of(matryoshka_layer_norm=True, normalize=True)
    raw = vectors(model, Finish(unnormalized=True))
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(F.normalize(raw), vectors(model, Finish()))
    short = vectors(model, Finish(matryoshka_dim=24, unnormalized=True))
    torch.testing.assert_close(short, F.layer_norm(raw, (64,))[:, :24])
    torch.testing.assert_close(F.normalize(short), vectors(model, Finish(matryoshka_dim=24)))
    cut = vectors(model, Finish(truncate_dim=24, unnormalized=True))
    assert torch.equal(cut, raw[:, :24])
    model.pooling.normalize = False
    assert torch.equal(vectors(model, Finish()), raw)


@pytest.mark.parametrize(
    "ends",
    [
        [Normalize()],
        [Normalize(), Normalize()],
        [Normalize(), Dropout(0.5)],
        [Dropout(0.5), Normalize(), Dropout(0.5)],
    ],
    ids=lambda ends: ", ".join(map(str, ends)),
)
def test_every_l2_at_the_end_is_left_out(ends: list[Step]) -> None:
    """Also one before dropout, or before another; an L2 that another module follows stays."""
    for before in ([], [Normalize(), Dense(64, 50)], [LayerNorm(64)]):
        bare = model_of(*before)
        raw = vectors(bare, Finish())
        assert not before or (raw.norm(dim=1) - 1).abs().min() > 0.1
        for last in (False, True):
            model = model_of(*before, *ends, normalize=last)
            model.load_state_dict(bare.state_dict())
            torch.testing.assert_close(vectors(model, Finish()), F.normalize(raw))
            assert torch.equal(vectors(model, Finish(unnormalized=True)), raw)


def test_both_are_refused() -> None:
    pooling = Pooling(8)
    pooling.check(Finish(unnormalized=True))
    pooling.check(Finish(matryoshka_dim=4, unnormalized=True))
    with pytest.raises(ValueError, match="give normalize or unnormalized, not both"):
        pooling.check(Finish(normalize=True, unnormalized=True))
