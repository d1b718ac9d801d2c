"""Recorded graphs on a GPU give the vectors of single launches, in any order of calls."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nomicbert import Embedder
from nomicbert.modeling.packing import pack
from nomicbert.runtime import graphs
from nomicbert.vectors.pooling import Finish
from tests.gpu.conftest import Record
from tests.gpu.support import DEVICE, INTERPRETED
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import WORDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        INTERPRETED, reason="only a GPU records graphs: see tests/runtime/test_graphs.py"
    ),
]

# fp32: largest difference of unit vectors; else 1 - cosine. A bucket has more rows than its batch,
# so that cuBLAS may sum in another order.
BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 5e-5}
# Ratio of memory after to memory before. Buckets may still be recorded later, and the allocator
# takes blocks of 20 MiB; a graph or a row kept per text would double the memory.
GROWTH = 1.25
VARIANTS = ("nomic-v1.5", "conan-v1", "bge-en", "nomic-v2-moe")


def load(folder: Path, variant: str, seed: int, dtype: torch.dtype = torch.float32) -> Embedder:
    build_checkpoint(folder, variant, seed=seed, num_hidden_layers=2)
    return Embedder.from_pretrained(folder, backend="triton", device=DEVICE, dtype=dtype)


def difference(found: np.ndarray, wanted: np.ndarray, dtype: torch.dtype) -> float:
    a, b = (x.astype(np.float64) for x in (found, wanted))
    assert np.isfinite(a).all()
    if dtype == torch.float32:
        return float(np.abs(a - b).max())
    return float((1 - (a * b).sum(1)).max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype)[6:])
def test_any_mixture(
    variant: str,
    dtype: torch.dtype,
    tmp_path: Path,
    seed: int,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of all sizes in any order, so that buffers contain leftovers of other batches."""
    embedder = load(tmp_path, variant, seed, dtype)
    rng = random.Random(seed)
    keywords = {"prompt": "", "normalize_embeddings": True, "max_length": 512}
    worst, repeats, kept = 0.0, 0, 0
    for _ in range(25):
        longest = rng.choice((4, 30, 300))
        count = rng.choice((1, 2, 9, 40, 200))
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]
        found = embedder.encode(texts, **keywords)
        repeats += int((embedder.encode(texts, **keywords) != found).sum())
        # check before the call without graphs, which frees them
        kept = max(kept, len(embedder.graphs._kept))
        with monkeypatch.context() as without:
            without.setenv(graphs.SWITCH, "0")
            wanted = embedder.encode(texts, **keywords)
        worst = max(worst, difference(found, wanted, dtype))
    record(worst, BOUNDS[dtype], check="graphs against launches", op=variant, dtype=dtype)
    record(repeats, 0, check="graphs repeat", op=variant, dtype=dtype)
    assert 0 < kept <= graphs.MOST


def test_parameters_that_change(tmp_path: Path, seed: int, record: Record) -> None:
    embedder = load(tmp_path, "nomic-v1.5", seed)
    before = embedder.encode("the river is long", prompt="")
    weight = embedder.model.layers[0].attention.out.weight
    with torch.no_grad():
        weight.mul_(2)
    in_place = embedder.encode("the river is long", prompt="")
    weight.data = weight.data / 2
    torch.cuda.empty_cache()
    back = embedder.encode("the river is long", prompt="")
    assert np.abs(in_place - before).max() > 1e-3
    record(float(np.abs(back - before).max()), 0, check="graphs of moved parameters")


def test_streams_and_threads(tmp_path: Path, seed: int, record: Record) -> None:
    """Threads with separate streams share one Embedder."""
    embedder = load(tmp_path, "nomic-v1.5", seed)
    texts = [" ".join(WORDS[: n + 1]) for n in range(8)]
    wanted = [embedder.encode(text, prompt="") for text in texts]
    wrong = [0] * len(texts)

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):  # type: ignore[no-untyped-call]
            for _ in range(30):
                found = embedder.encode(texts[number], prompt="")
                wrong[number] += int((found != wanted[number]).sum())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record(sum(wrong), 0, check="graphs in threads")


def test_a_stream_of_texts(tmp_path: Path, seed: int, record: Record) -> None:
    """Tokenizer thread, pinned memory and recording run concurrently; memory stays flat."""
    embedder = load(tmp_path, "nomic-v1.5", seed)
    texts = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 5]) for i in range(60_000)]
    wanted = embedder.encode(texts[:500], prompt="")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    rows = embedder.encode_iter(iter(texts), prompt="")
    first = [next(rows) for _ in range(20_000)]
    peak = torch.cuda.max_memory_allocated()
    worst = max(float(np.abs(a - b).max()) for a, b in zip(first, wanted, strict=False))
    for _ in rows:
        pass
    record(worst, BOUNDS[torch.float32], check="stream against encode")
    grown = torch.cuda.max_memory_allocated() / peak
    record(grown, GROWTH, check="memory of a stream")


def test_inside_a_recording_of_the_caller(tmp_path: Path, seed: int, record: Record) -> None:
    """A caller may record the packed core, but not texts, whose ids would be recorded too."""
    embedder = load(tmp_path, "nomic-v1.5", seed)
    model = embedder.embedding_model
    texts = [[5, 6, 7, 8], [9, 10]]
    with torch.inference_mode():
        ctx = model.encoder.context(pack(texts, DEVICE))

        def work() -> Tensor:
            if torch.cuda.is_current_stream_capturing():
                with pytest.raises(RuntimeError, match="while a CUDA graph is recorded"):
                    embedder.graphs(model, texts, Finish())
            return model.vectors(ctx, Finish())

        result, replay = graphs.Recorder()(work)
        wanted = model.vectors(ctx, Finish())
        result.fill_(torch.nan)
        replay()
    record(float((result - wanted).abs().max()), 0, check="the caller's own graph")


def test_graphs_come_and_go(
    tmp_path: Path, seed: int, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are kept, two Embedders alternate recording, and memory does not grow."""
    first, second = (load(tmp_path / name, "nomic-v1.5", seed) for name in ("a", "b"))
    monkeypatch.setattr(graphs, "MOST", 3)
    texts = [" ".join(WORDS[:n]) for n in (1, 5, 40)]
    wanted = [first.encode(text, prompt="", truncate_dim=8) for text in texts]
    wrong, held = 0, 0
    for turn in range(12):
        for embedder in (first, second):
            for dim in range(8, 14):
                found = [embedder.encode(t, prompt="", truncate_dim=dim) for t in texts]
                pairs = zip(found, wanted, strict=True)
                wrong += sum(int((a[:8] != b).sum()) for a, b in pairs)
        torch.cuda.synchronize()
        if turn == 3:
            held = torch.cuda.memory_reserved()
    record(wrong, 0, check="graphs come and go")
    record(torch.cuda.memory_reserved() / held, GROWTH, check="memory of graphs")
