"""Devices that cannot compute are refused wherever one can be named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import CrossEncoder, Embedder
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

META = "the device 'meta' holds no numbers: choose one that computes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("devices"), "minilm", num_hidden_layers=1)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("meta", META),
        (torch.device("meta"), META),
        (None, "device must be one device's name, not None"),
        (3.5, "must be one device's name, not 3.5"),
        (["cpu"], r"must be one device's name, not \['cpu'\]"),
        ("gpu", "unknown device 'gpu'"),
        ("", "unknown device ''"),
        ("cpu:-1", "unknown device 'cpu:-1'"),
        ("mtia", "this torch cannot use the device 'mtia'"),
    ],
)
def test_an_embedder_stays_where_it_is(device: Any, text: str, folder: Path) -> None:
    embedder = Embedder(folder)
    wanted = embedder.encode("a")
    with pytest.raises(ValueError, match=text):
        embedder.to(device)
    assert embedder.device == torch.device("cpu")
    assert (embedder.encode("a") == wanted).all()
    assert embedder.to("cpu") is embedder


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match="this torch cannot use the device 'cuda'"):
        Embedder(folder).to("cuda")


def test_meta_is_refused_by_every_other_call(folder: Path, tmp_path: Path) -> None:
    reranker = CrossEncoder(build_reranker(tmp_path))
    calls = [
        lambda: Embedder(folder, device="meta"),
        lambda: Embedder(folder, device_map="meta"),
        lambda: Embedder(folder).encode("a", device="meta"),
        lambda: Embedder(folder).encode(["a"], device=["cpu", "meta"]),
        lambda: CrossEncoder(tmp_path, device="meta"),
        lambda: reranker.predict(("a", "b"), device="meta"),
        lambda: reranker.rank("a", ["b"], device=torch.device("meta")),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=META):
            call()
    assert reranker.device == torch.device("cpu")
