"""Our attention compared with torch's kernels and FlashAttention-4, by text length.

Head sizes are 64 (nomic, BERT-large) and 32 (MiniLM); all cases have about the same number of
tokens. In the mixture of lengths, kernels that do not take packed texts get padded ones.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.bench_attention import mixture, packed, peers_of
from bench.gpu.forms import of_attention
from bench.gpu.place import Place
from bench.gpu.race import Task, contest
from bench.harness import Peer
from bench.problem import Call, Tensors
from nomicbert.benchmark.lines import Line

LENGTHS, TOKENS = (32, 128, 512, 1024, 2048, 4096, 8192), 65536
DRY_LENGTHS, DRY_TOKENS = (8, 16), 256
GROUP, MIXTURE = "attention", "mixture"
# One model per head size; BERT-large has that of nomic.
NAMES = ("nomic", "minilm")


def tasks(place: Place) -> Iterator[Task]:
    """Each head size at each length, and the mixture."""
    for model in place.models(*NAMES):
        for length in DRY_LENGTHS if place.dry else LENGTHS:
            yield task_of(place, model, f"S={length}")
        yield task_of(place, model, MIXTURE)


def lengths_of(place: Place, case: str) -> list[int]:
    """Lengths of the texts of a case: all equal, or queries, passages and documents."""
    tokens = DRY_TOKENS if place.dry else TOKENS
    if case == MIXTURE:
        return mixture(tokens) or [3, tokens - 3]
    length = int(case.removeprefix("S="))
    return [length] * (tokens // length)


def task_of(place: Place, model: Model, case: str) -> Task:
    """The task of a case."""
    lengths = lengths_of(place, case)
    tokens = sum(lengths)
    more = {
        "head_dim": model.head_dim,
        "batch": f"{len(lengths)} texts",
        "texts": len(lengths),
        "padded_tokens": len(lengths) * max(lengths),
    }
    # queries, keys, values and the result, once each
    moved = 4.0 * tokens * model.hidden * place.dtype.itemsize
    flops = flops_of(model, lengths)
    return Task("attention", model.name, case, GROUP, tokens, flops, moved, more)


def flops_of(model: Model, lengths: list[int]) -> float:
    """FLOPs of Q K^T and P V: 2 matmuls of (n, n, head size) per head and text."""
    return 4.0 * model.hidden * sum(n * n for n in lengths)


def measure(place: Place, task: Task) -> list[Line]:
    """One case."""
    (model,) = place.models(task.model)
    lengths = lengths_of(place, task.case)
    problem = problems.attention(model, place.bench.draw(), lengths)
    found = peers_of(place.bench, model, lengths)
    if "varlen_attn" in found:
        # some versions of torch take no scale; the default scale is the same
        found["varlen_attn"] = packed(lengths, without_scale(), model.head_dim**-0.5)
    found["flash-attn-4"] = flash_4(lengths, model.head_dim**-0.5)
    forms = of_attention(place, model.head_dim, max(lengths), problem)
    return contest(place, task, problem, found, forms)


def without_scale() -> Callable[..., Tensor]:
    """varlen_attn, called without a scale."""
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn

    def call(*arguments: Any, scale: float) -> Tensor:
        out: Tensor = attend(*arguments)
        return out

    return call


def flash_4(lengths: list[int], scale: float) -> Peer:
    """FlashAttention-4 over packed texts; ImportError if it is not installed."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, first: Tensor, second: Tensor, a: int, b: int, scale: float
    ) -> Tensor:
        from flash_attn.cute import flash_attn_varlen_func

        found = flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=first,
            cu_seqlens_k=second,
            max_seqlen_q=a,
            max_seqlen_k=b,
            softmax_scale=scale,
        )
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    peer = packed(lengths, attend, scale)

    def call(t: Tensors) -> Call:
        if find_spec("flash_attn") is None:
            raise ImportError("flash-attn-4 is not installed")
        return peer.call(t)

    return Peer(call, peer.read)
