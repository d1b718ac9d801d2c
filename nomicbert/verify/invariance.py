"""Check that a text's vector is bit-identical in any batch, memory alignment and thread count.

Each text is embedded alone, among others, among copies of itself, and with the inputs of every op
moved by a few elements in memory. If bits differ, the results of the ops are compared in order, and
the first op that differs is reported.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nomicbert.embedder import Embedder
from nomicbert.modeling.backend_module import BackendModule
from nomicbert.modeling.packing import pack
from nomicbert.verify.report import Row
from nomicbert.verify.texts import TEXTS
from nomicbert_kernels import Activation, Ops, compute_dtype
from nomicbert_kernels.linear_torch import onednn_packs

# Largest thread count for which vectors computed in bfloat16 stay bit-identical.
MOST_THREADS = 12
# The shortest texts take special code paths, for one row or a few rows.
SHORT = ("a", "a b", "a b c")
# Elements by which inputs are moved: not a multiple of 16 bytes in any dtype.
SHIFT = 3

Encode = Callable[[Sequence[str]], Tensor]
# The results of the ops in the order of their calls: name, rows.
Trace = list[tuple[str, Tensor]]


def invariance_row(embedder: Embedder, encode: Encode, few: Encode) -> Row:
    """Count vectors that are not bit-identical, the worst over several thread counts.

    Args:
        embedder: there is a bound of 0 only for backend invariant, or with oneDNN-packed weights.
        encode: texts -> (n, dim).
        few: the same in small batches.
    """
    dtype = embedder.model.dtype
    computed, backend = compute_dtype(embedder.device, dtype), embedder.model.ops.name
    now = torch.get_num_threads()
    on_cpu = embedder.device.type == "cpu"
    counts = sorted({1, 2, min(now, MOST_THREADS)}) if on_cpu else [now]
    promised = backend == "invariant" or onednn_packs(computed)
    found: dict[int, tuple[int, str]] = {}
    for threads in counts:
        with computing_on(threads):
            changed, total = _changed(embedder, encode, few)
            found[threads] = changed, _first_op(embedder) if changed else ""
    name = str(dtype).removeprefix("torch.")
    broken = {threads: op for threads, (changed, op) in found.items() if changed}
    what = f"{total} vectors, {_threads(counts)}"
    if broken:
        ops = " and ".join(sorted(set(broken.values())))
        what = f"{ops}, {_threads([*broken])} ({total} vectors)"
    worst = max(changed for changed, _ in found.values())
    return Row("invariance", name, backend, what, "changed", worst, 0 if promised else None)


def _threads(counts: Sequence[int]) -> str:
    """Format thread counts, such as "1 thread" or "1, 2 and 12 threads"."""
    *others, last = map(str, counts)
    said = f"{', '.join(others)} and {last}" if others else last
    return f"{said} thread{'' if said == '1' else 's'}"


@contextlib.contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Set torch's number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _changed(embedder: Embedder, encode: Encode, few: Encode) -> tuple[int, int]:
    """Number of texts with a vector that differs from the one computed alone, and of all texts."""
    texts = (*SHORT, *TEXTS)
    alone = torch.stack([encode([text])[0] for text in texts])
    # NaN differs from itself, so it counts as a change
    differ = (encode(texts) != alone).any(1) | (few(texts[::-1]).flip(0) != alone).any(1)
    for place in (0, 3):
        copies = encode([texts[place]] * 16)
        differ[place] |= (copies != alone[place]).any()
    with watched(embedder.model, shift=SHIFT):
        differ |= (encode(texts) != alone).any(1)
    return int(differ.sum()), len(texts)


def _first_op(embedder: Embedder) -> str:
    """The first op whose results differ, or "no single op" if none differs here.

    Ids are packed here directly, so the runtime around the model is left out.
    """
    texts = [*SHORT, *TEXTS]
    ids, _ = embedder.tokenizer.encode(texts, embedder.max_seq_length)
    alone = [_trace(embedder, [row])[0] for row in ids]
    places = [*range(len(ids))]
    for batch, shift in ((places, 0), ([0] * 16, 0), ([3] * 16, 0), (places, SHIFT)):
        together = _trace(embedder, [ids[place] for place in batch], shift)
        for place, trace in zip(batch, together, strict=True):
            for (op, mine), (_, theirs) in zip(alone[place], trace, strict=True):
                if not torch.equal(mine, theirs):
                    first: str = op
                    return first
    return "no single op"


def _trace(embedder: Embedder, ids: Sequence[Sequence[int]], shift: int = 0) -> list[Trace]:
    """The results of all ops, split by text."""
    whole: Trace = []
    batch = pack(ids, embedder.device)
    with watched(embedder.model, whole, shift), torch.inference_mode():
        embedder.embedding_model(batch)
    tokens, lengths = sum(batch.lengths), list(batch.lengths)
    traces: list[Trace] = [[] for _ in ids]
    for op, rows in whole:
        # one row per token, or one row per text
        sizes = lengths if rows.shape[0] == tokens else [1] * len(lengths)
        parts = torch.split(rows, sizes)
        for trace, part in zip(traces, parts, strict=True):
            trace.append((op, part))
    return traces


@contextlib.contextmanager
def watched(model: BackendModule, trace: Trace | None = None, shift: int = 0) -> Iterator[None]:
    """Replace a model's ops by ones that record their results and read shifted inputs."""
    ops = model.ops
    replaced: dict[str, Any] = {
        name: _watched(name, getattr(ops, name), trace, shift) for name in Ops.names()
    }
    model._ops = ops.replaced(**replaced)
    try:
        yield
    finally:
        model._ops = ops


def _watched(
    name: str, op: Callable[..., Any], trace: Trace | None, shift: int
) -> Callable[..., Any]:
    def call(x: Any, *args: Any, **keywords: Any) -> Any:
        result = op(moved(x, shift), *args, **keywords)
        if trace is not None:
            parts = (result.data, result.scale) if isinstance(result, Activation) else (result,)
            trace.extend((name, part.clone()) for part in parts if part is not None)
        return result

    return call


def moved(x: Any, shift: int) -> Any:
    """Copy a tensor to memory that starts `shift` elements after the start of an allocation."""
    if not shift or not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    buffer = x.new_empty(x.numel() + shift)
    return buffer[shift:].view(x.shape).copy_(x)
