"""pool with LayerNorm, slice and L2, against torch's ways to average packed texts."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors

LENGTHS = [8, 70, 512]


def finish(pooled: Tensor, dim: int) -> Tensor:
    return F.normalize(F.layer_norm(pooled, pooled.shape[1:])[:, :dim], dim=1)


def summed(lengths: Sequence[int], dim: int) -> Peer:
    """index_add of the tokens into the row of their text."""

    def call(t: Tensors) -> Call:
        device = t["hidden"].device
        counts = torch.tensor(lengths, device=device)
        text = torch.arange(len(lengths), device=device).repeat_interleave(counts)

        def run() -> Tensor:
            hidden = t["hidden"].float()
            total = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, text, hidden)
            return finish(total / counts[:, None], dim)

        return run

    return Peer(call, compiled=True)


def segmented(lengths: Sequence[int], dim: int) -> Peer:
    """torch.segment_reduce."""

    def call(t: Tensors) -> Call:
        counts = torch.tensor(lengths, device=t["hidden"].device)
        return lambda: finish(
            torch.segment_reduce(t["hidden"].float(), "mean", lengths=counts), dim
        )

    return Peer(call)


def masked(lengths: Sequence[int], dim: int) -> Peer:
    """The masked mean over a padded batch; the padding is not timed."""
    longest = max(lengths)

    def call(t: Tensors) -> Call:
        hidden = t["hidden"]
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        mask = mask.to(hidden.device)
        dense = hidden.new_zeros(len(lengths), longest, hidden.shape[1])
        dense[mask] = hidden
        weight = mask[..., None].float()
        return lambda: finish((dense * weight).sum(1) / weight.sum(1), dim)

    return Peer(call, compiled=True)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
@pytest.mark.parametrize("length", LENGTHS)
def test_pool(bench: Bench, model: Model, length: int, tokens: int) -> None:
    if length > tokens:
        pytest.skip(f"a text of {length} tokens is longer than a batch of {tokens}")
    lengths, dim = [length] * (tokens // length), model.hidden // 3
    options = {"layer_norm": True, "dim": dim, "normalize": True}
    problem = problems.pool(model, bench.draw(), lengths, **options)
    peers = {
        "index_add": summed(lengths, dim),
        "segment_reduce": segmented(lengths, dim),
        "masked mean": masked(lengths, dim),
    }
    case = f"{len(lengths)} x {length}"
    bench.compare(problem, peers, model=model.name, case=case, texts=len(lengths))
