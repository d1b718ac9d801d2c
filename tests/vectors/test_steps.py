"""Modules after pooling, and several pooling modes at once, against sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import nn

from nomicbert import Embedder
from nomicbert.describe import describe
from nomicbert.modeling.packing import pack
from nomicbert.vectors.steps import Dropout
from nomicbert.verify.formula import read_steps
from nomicbert_kernels.linear_int8 import why_not
from tests.ops.cases import INTERPRETS  # gives the interpreter's sums a fixed order
from tests.parity.bounds import BACKENDS, EMBEDDING
from tests.support.module_folders import Spec, build_modules
from tests.support.vocabularies import SENTENCES

TEXTS = [*SENTENCES, "", "the river is long and deep " * 5]


def dense(out: int, **settings: Any) -> Spec:
    return ("Dense", {"out_features": out, **settings})


NORM: Spec = ("LayerNorm", {})
UNIT: Spec = ("Normalize", {})
DROP: Spec = ("Dropout", {"dropout": 0.4})
GELU = nn.GELU()
# name -> pooling modes, the modules after it, and what `nomicbert info` says of them
CASES: dict[str, tuple[Any, list[Spec], str]] = {
    "two modes": (["cls", "mean"], [], "cls+mean"),
    "not in the old order": (["weightedmean", "max", "cls"], [UNIT], "weightedmean+max+cls, L2"),
    "twice the same": (["mean", "mean", "mean_sqrt_len_tokens"], [], "mean+mean+mean_sqrt_len"),
    "one token each": (
        ["lasttoken", "cls"],
        [dense(96), UNIT],
        "lasttoken+cls, Dense 512 -> 96 (Tanh), L2",
    ),
    "norm": ("mean", [NORM], "mean, LayerNorm"),
    "all": (
        "cls",
        [dense(96, activation_function=GELU), DROP, NORM, UNIT],
        "cls, Dense 256 -> 96 (GELU), Dropout 0.4 in training, LayerNorm, L2",
    ),
    "unit first": ("mean", [UNIT, dense(300)], "mean, L2, Dense 256 -> 300 (Tanh)"),
    "unit twice": ("max", [UNIT, UNIT], "max, L2, L2"),
    "unit, then dropout": ("mean", [UNIT, DROP], "mean, L2, Dropout 0.4 in training"),
    "residual": (
        "mean",
        [dense(256, use_residual=True), dense(80, use_residual=True, bias=False)],
        "mean, Dense 256 -> 256 (Tanh, residual), Dense 256 -> 80 (Tanh, residual)",
    ),
    "other names": (
        "mean",
        [
            dense(64, module_output_name="inner"),
            ("Normalize", {"module_input_name": "inner", "module_output_name": "outer"}),
            dense(32, module_input_name="outer", module_output_name="sentence_embedding"),
        ],
        "mean, Dense 256 -> 64 (Tanh), L2, Dense 64 -> 32 (Tanh)",
    ),
}


def agree(found: np.ndarray, truth: np.ndarray) -> None:
    """Errors relative to each vector's norm, as those of unit vectors."""
    norms = np.linalg.norm(truth, axis=1, keepdims=True)
    assert np.abs(found / norms - truth / norms).max() <= EMBEDDING


@pytest.mark.parametrize("name", CASES)
def test_vectors_equal_sentence_transformers(name: str, tmp_path: Path) -> None:
    modes, steps, said = CASES[name]
    judge = build_modules(tmp_path / "a", steps, pooling_mode=modes)
    truth = judge.encode(TEXTS)
    width = truth.shape[1]
    for backend in BACKENDS:
        embedder = Embedder(tmp_path / "a", backend=backend)
        found = embedder.encode(TEXTS)
        agree(found, truth)
        assert found.dtype == np.float32
        agree(embedder.encode(TEXTS, truncate_dim=20), truth[:, :20])
        short = F.normalize(torch.from_numpy(truth[:, :20])).numpy()
        agree(embedder.encode(TEXTS, matryoshka_dim=20), short)
        agree(embedder.encode(TEXTS[:1]), truth[:1])
    assert embedder.get_embedding_dimension() == width
    embedder.save_pretrained(tmp_path / "b")
    again = Embedder(tmp_path / "b")
    np.testing.assert_array_equal(again.encode(TEXTS), found)
    agree(SentenceTransformer(str(tmp_path / "b"), device="cpu").encode(TEXTS), truth)
    for folder in ("a", "b"):
        seen = describe(tmp_path / folder)
        assert ", ".join([seen.pooling.mode, *seen.steps]) == said
        assert seen.pooling.embedding_dimension == width
        assert seen.files.parameters == sum(p.numel() for p in again.embedding_model.parameters())
    # the independent formula of `nomicbert verify`
    ids = embedder.tokenizer.encode(TEXTS, 200)[0]
    with torch.inference_mode():
        hidden = embedder.model.encode_packed(pack(ids)).double()
    formula = read_steps(tmp_path / "a")
    parts = torch.split(hidden, [*map(len, ids)])
    agree(torch.stack([formula.vector(part) for part in parts]).numpy(), truth)


def test_old_flags_have_one_order(tmp_path: Path) -> None:
    judge = build_modules(tmp_path / "a", [], pooling_mode=["cls", "mean_sqrt_len_tokens"])
    file = tmp_path / "a" / "1_Pooling" / "config.json"
    flags = '"pooling_mode_mean_sqrt_len_tokens": true, "pooling_mode_cls_token": 1'
    file.write_text(f'{{"word_embedding_dimension": 256, {flags}}}', "utf-8")
    truth = judge.encode(TEXTS)
    agree(SentenceTransformer(str(tmp_path / "a"), device="cpu").encode(TEXTS), truth)
    assert read_steps(tmp_path / "a").modes == ("cls", "mean_sqrt_len")
    embedder = Embedder(tmp_path / "a")
    agree(embedder.encode(TEXTS), truth)
    embedder.save_pretrained(tmp_path / "b")
    assert "pooling_mode_cls_token" in (tmp_path / "b" / "1_Pooling" / "config.json").read_text()


@pytest.mark.skipif(not INTERPRETS, reason="a GPU's kernels are tested in tests/gpu")
def test_bits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    build_modules(tmp_path / "a", [NORM, dense(100), UNIT, NORM], pooling_mode=["max", "mean"])
    embedder = Embedder(tmp_path / "a", backend="invariant")
    together = embedder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(embedder.encode(text), vector)


INT8 = pytest.param("int8", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))


@pytest.mark.parametrize("backend", ["torch", INT8])
def test_other_dtypes_and_backends(backend: str, tmp_path: Path) -> None:
    steps = [dense(128), NORM, DROP, dense(128, use_residual=True)]
    truth = build_modules(tmp_path / "a", steps, pooling_mode=["mean", "cls"]).encode(TEXTS)
    dtype = torch.float32 if backend == "int8" else torch.bfloat16
    found = Embedder(tmp_path / "a", backend=backend, dtype=dtype).encode(TEXTS)  # type: ignore[arg-type]
    cosines = (found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)
    assert cosines.min() > 0.999


def test_dropout_is_for_training(tmp_path: Path) -> None:
    build_modules(tmp_path / "a", [DROP], pooling_mode="mean")
    embedder = Embedder(tmp_path / "a")
    wanted = embedder.encode(TEXTS)
    embedder.pooling.train()
    np.testing.assert_array_equal(embedder.encode(TEXTS), wanted)
    embedder.pooling.train()
    with torch.inference_mode():  # by the same ops as encode
        drawn = embedder.embedding_model(embedder.batch(TEXTS)).numpy()
    assert 0.2 < (drawn == 0).mean() < 0.6
    kept = drawn != 0
    np.testing.assert_allclose(drawn[kept], wanted[kept] / 0.6, rtol=1e-5)


def test_the_recipe_of_nomic_checkpoints(tmp_path: Path) -> None:
    """Its layer_norm belongs to plain means, which Dropout leaves as they are."""
    for number, (steps, modes, recipe) in enumerate(
        [([DROP], "mean", True), ([NORM], "mean", False), ([], ["mean", "max"], False)]
    ):
        folder = tmp_path / str(number)
        build_modules(folder, steps, "nomic-v1", pooling_mode=modes)
        assert Embedder(folder).pooling.matryoshka_layer_norm == recipe
    assert isinstance(Embedder(tmp_path / "0").pooling.steps[0], Dropout)


def test_gradients_reach_every_module(tmp_path: Path) -> None:
    build_modules(
        tmp_path / "a", [NORM, dense(40, use_residual=True)], pooling_mode=["mean", "max"]
    )
    embedder = Embedder(tmp_path / "a")
    embedder.embedding_model(embedder.batch(TEXTS)).square().sum().backward()
    named = embedder.pooling.named_parameters()
    assert {name for name, p in named if p.grad is not None and p.grad.abs().sum() > 0} == {
        "steps.0.norm.weight",
        "steps.0.norm.bias",
        "steps.1.linear.weight",
        "steps.1.linear.bias",
        "steps.1.residual.weight",
    }
    again = embedder.encode(TEXTS)
    with torch.no_grad():
        embedder.pooling.steps[0].norm.weight.mul_(2)
        embedder.pooling.steps[1].residual.weight.mul_(2)
    assert np.abs(embedder.encode(TEXTS) - again).max() > 0.01


def test_a_wrapped_layer_is_called(tmp_path: Path) -> None:
    build_modules(tmp_path / "a", [NORM, dense(40)], pooling_mode="mean")
    embedder = Embedder(tmp_path / "a")
    wanted = embedder.encode(TEXTS)
    ran = []
    for step, part in ((0, "norm"), (1, "linear")):
        layer = getattr(embedder.pooling.steps[step], part)
        layer.register_forward_hook(lambda *_: ran.append(1))
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, rtol=0, atol=1e-5)
    assert len(ran) == 2
