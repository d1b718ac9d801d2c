"""attention against torch's fused kernels: on texts of one length, and on a mixture.

On a mixture torch's kernels get texts padded to the longest, as models do; the padding is not
timed. Only real tokens are counted, for every candidate. `varlen_attn`, if this torch has it, takes
packed texts.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors, offsets_of

# torch's own choice comes first: its error gives the bound.
KERNELS: dict[str, dict[str, SDPBackend | None]] = {
    "cuda": {
        "auto": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    },
    "cpu": {"auto": None, "math": SDPBackend.MATH},
}
# Length of a text -> its share of the mixture's tokens.
SHARES = {8: 0.1, 70: 0.6, 1024: 0.3}


def mixture(tokens: int) -> list[int]:
    """Lengths of queries, passages and documents by their share of the tokens, shuffled."""
    lengths = [
        length for length, share in SHARES.items() for _ in range(int(tokens * share / length))
    ]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    return [lengths[i] for i in order]


def padded(lengths: Sequence[int], backend: SDPBackend | None, scale: float) -> Peer:
    """SDPA on a dense batch: (texts, heads, longest, head size) each."""
    longest = max(lengths)
    whole = min(lengths) == longest
    kept = torch.arange(longest) < torch.tensor(lengths)[:, None]

    def call(t: Tensors) -> Call:
        qkv, mask = t["qkv"], kept.to(t["qkv"].device)
        if whole:
            dense = qkv.view(-1, longest, *qkv.shape[1:])
        else:
            dense = qkv.new_zeros(len(lengths), longest, *qkv.shape[1:])
            dense[mask] = qkv
        q, k, v = dense.permute(2, 0, 3, 1, 4)
        chosen = None if whole else mask[:, None, None, :]

        def run() -> Tensor:
            with sdpa_kernel(backend) if backend else contextlib.nullcontext():
                return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen, scale=scale)

        return run

    def read(out: Tensor) -> Tensor:
        return out.transpose(1, 2)[kept.to(out.device)].flatten(1)

    return Peer(call, read)


def packed(lengths: Sequence[int], attend: Callable[..., Tensor], scale: float) -> Peer:
    """Torch's attention over packed texts."""

    def call(t: Tensors) -> Call:
        q, k, v = t["qkv"].unbind(1)
        offsets = offsets_of(lengths, q.device)
        longest = max(lengths)
        return functools.partial(attend, q, k, v, offsets, offsets, longest, longest, scale=scale)

    return Peer(call, lambda out: out.flatten(1))


def peers_of(bench: Bench, model: Model, lengths: Sequence[int]) -> dict[str, Peer]:
    scale = model.head_dim**-0.5
    kind = "sdpa" if min(lengths) == max(lengths) else "padded sdpa"
    found = {
        f"{kind} {name}": padded(lengths, backend, scale)
        for name, backend in KERNELS[bench.device.type].items()
    }
    if bench.device.type == "cuda" and bench.dtype != torch.float32:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return found
        found["varlen_attn"] = packed(lengths, varlen_attn, scale)
    return found


LENGTHS = [8, 32, 128, 512, 2048, 8192]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
@pytest.mark.parametrize("length", LENGTHS)
def test_one_length(bench: Bench, model: Model, length: int, tokens: int) -> None:
    if length > tokens:
        pytest.skip(f"a text of {length} tokens is longer than a batch of {tokens}")
    lengths = [length] * (tokens // length)
    problem = problems.attention(model, bench.draw(), lengths)
    case = f"{len(lengths)} x {length}"
    bench.compare(problem, peers_of(bench, model, lengths), model=model.name, case=case)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_mixture(bench: Bench, model: Model, tokens: int) -> None:
    lengths = mixture(tokens) or [3, tokens - 3]
    if min(lengths) == max(lengths):
        pytest.skip(f"a batch of {tokens} tokens has no mixture of lengths")
    problem = problems.attention(model, bench.draw(), lengths)
    case = f"mixture, {sum(lengths)}"
    bench.compare(
        problem,
        peers_of(bench, model, lengths),
        model=model.name,
        case=case,
        texts=len(lengths),
        padded_tokens=len(lengths) * max(lengths),
    )
