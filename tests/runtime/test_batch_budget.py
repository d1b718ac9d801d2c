"""runtime.batch_budget: batches with full waves on a GPU that fit into its memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nomicbert import EncoderConfig, NomicBert
from nomicbert.runtime import batch_budget
from nomicbert.runtime.batch_budget import MOST, batch_tokens, even_tokens, fill, sizes

H200 = 132
NOMIC = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
BERT_LARGE = ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096))


@pytest.mark.parametrize(
    ("products", "tile", "wanted"),
    [
        # 44 rows of tiles: 44 x 9, 44 x 3 and 44 x 12 tiles are whole waves of 132
        (NOMIC, (128, 256), 16896),
        (NOMIC, (128, 128), 16896),
        (BERT_LARGE, (128, 256), 16896),
    ],
)
def test_even_tokens_fill_waves(
    products: tuple[tuple[int, int], ...], tile: tuple[int, int], wanted: int
) -> None:
    assert even_tokens(products, H200, tile, MOST) == wanted
    assert fill(wanted, products, H200, tile) == 1.0
    # less memory: the next smaller size
    below = even_tokens(products, H200, tile, wanted - 1)
    assert below < wanted
    assert fill(below, products, H200, tile) > 0.99


def test_fill_by_hand() -> None:
    # 64 x 6 tiles on 132 processors are 3 waves, 396 places
    assert fill(8192, ((768, 768),), H200, (128, 128)) == pytest.approx(384 / 396)
    # a tile with half of its rows used
    assert fill(64, ((128, 8),), 1, (128, 128)) == 0.5


def test_little_memory() -> None:
    assert even_tokens(NOMIC, H200, (128, 128), 200) == 128
    assert even_tokens(NOMIC, H200, (128, 128), 100) == 100
    assert even_tokens(NOMIC, H200, (128, 128), 0) == 1


def config(kind: str, hidden: int, inner: int) -> EncoderConfig:
    return EncoderConfig(kind, 100, hidden, 1, 4, inner, 2, 512, 1e-12)


def test_sizes() -> None:
    assert sizes(config("bert", 768, 3072)) == (NOMIC, 2 * 768 + 3 * 3072)
    assert sizes(config("bert", 768, 128))[1] == 6 * 768


def test_cpu() -> None:
    model = NomicBert(config("bert", 32, 64))
    assert batch_tokens(model) == batch_budget.CPU_TOKENS


@pytest.mark.parametrize(("total", "wanted"), [(140e9, 16896), (400e6, 2816)])
def test_gpu(
    total: float,
    wanted: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch takes at most a quarter of the memory; the amount is logged."""
    model: Any = SimpleNamespace(
        device=torch.device("cuda"),
        compute_dtype=torch.bfloat16,
        config=config("bert", 768, 3072),
    )
    properties = SimpleNamespace(multi_processor_count=H200, total_memory=int(total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    batch_budget.gpu_tokens.cache_clear()
    batch_budget.launch.architecture.cache_clear()
    caplog.set_level(logging.INFO, "nomicbert.runtime.batch_budget")
    found = batch_tokens(model)
    batch_budget.gpu_tokens.cache_clear()
    batch_budget.launch.architecture.cache_clear()
    token = (2 * 768 + 3 * 3072) * 2
    assert found * token <= total / 4
    assert found == wanted
    assert f"batches of up to {found} tokens on cuda: at most {found * token / 1e9:.2f} GB" in (
        caplog.text
    )
