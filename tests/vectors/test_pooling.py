"""Pooling through Embedder, against independent formulas on an independent forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nomicbert import Embedder, NomicBert
from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.modeling.packing import pack
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint, read_config, read_tensors
from tests.support.cpus import CPU_DTYPES
from tests.support.oracle import oracle_forward
from tests.support.oracle_pooling import oracle_pool
from tests.support.vocabularies import SENTENCES

# our name -> the boolean of sentence-transformers before version 6
MODES = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}
TEXTS = [*SENTENCES, "", "the fox and the dog run over the river " * 6]


def _set_mode(folder: Path, **settings: object) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), "utf-8")


def _oracle_hidden(folder: Path, embedder: Embedder) -> tuple[Tensor, Tensor]:
    ids, _ = embedder.tokenizer.encode(TEXTS, embedder.max_seq_length)
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    states = oracle_forward(read_config(folder), read_tensors(folder), padded, mask)
    return states[-1], mask


@pytest.fixture(scope="module", params=["nomic-v1.5", "bge-en"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pooling")
    return build_checkpoint(where, request.param, num_hidden_layers=2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("schema", ["flags", "name"])
def test_modes(mode: str, schema: str, folder: Path) -> None:
    flags: dict[str, object] = {flag: flag == MODES[mode] for flag in MODES.values()}
    settings = flags if schema == "flags" else {"embedding_dimension": 64, "pooling_mode": mode}
    _set_mode(folder, **settings)
    embedder = Embedder.from_pretrained(folder)
    hidden, mask = _oracle_hidden(folder, embedder)
    truth = oracle_pool(hidden, mask, mode, normalize=embedder.pooling.normalize)
    raw = embedder.encode(TEXTS, prompt="")
    np.testing.assert_allclose(raw, truth, rtol=0, atol=1e-4)
    unit = embedder.encode(TEXTS, prompt="", normalize_embeddings=True)
    np.testing.assert_allclose(unit, F.normalize(truth), rtol=0, atol=1e-6)
    # every other mode differs far more, so the bound separates them
    for other in set(MODES) - {mode}:
        wrong = F.normalize(oracle_pool(hidden, mask, other)[-1], dim=0)
        same_direction = {mode, other} == {"mean", "mean_sqrt_len"}
        assert same_direction or np.abs(unit[-1] - wrong.numpy()).max() > 1e-3


def test_no_mode_at_all_is_mean(folder: Path) -> None:
    _set_mode(folder, word_embedding_dimension=64)
    assert Embedder.from_pretrained(folder).pooling.mode == "mean"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling_mode": "attention"}, "'attention' is not supported"),
        ({"pooling_mode_attention": True}, "pooling_mode_attention"),
        ({MODES["mean"]: True, "word_embedding_dimension": 65}, "65 columns"),
        ({MODES["mean"]: True, "include_prompt": None}, "include_prompt must be true or false"),
    ],
)
def test_unsupported_settings(settings: dict[str, object], message: str, folder: Path) -> None:
    _set_mode(folder, **settings)
    with pytest.raises(ConfigError, match=message):
        Embedder.from_pretrained(folder)


def test_dense(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=2)
    embedder = Embedder.from_pretrained(tmp_path)
    assert embedder.get_sentence_embedding_dimension() == 112
    hidden, mask = _oracle_hidden(tmp_path, embedder)
    layer = load_file(tmp_path / "2_Dense" / "model.safetensors")
    dense = layer["linear.weight"], layer["linear.bias"]
    truth = oracle_pool(hidden, mask, "mean", dense=dense)
    np.testing.assert_allclose(embedder.encode(TEXTS), truth, rtol=0, atol=1e-4)
    unit = embedder.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(unit, F.normalize(truth), rtol=0, atol=1e-6)
    # sentence-transformers' default if the key is missing
    path = tmp_path / "2_Dense" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["activation_function"]
    path.write_text(json.dumps(config), "utf-8")
    bent = Embedder.from_pretrained(tmp_path).encode(TEXTS)
    np.testing.assert_allclose(bent, truth.tanh(), rtol=0, atol=1e-4)


def test_dense_that_does_not_fit(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    path = tmp_path / "2_Dense" / "config.json"
    fine = json.loads(path.read_text("utf-8"))
    for change, error, message in (
        ({"in_features": 63}, ConfigError, "in_features = 63, but .* gives 64 columns"),
        ({"out_features": 113}, CheckpointError, "113"),
        ({"activation_function": "torch.nn.modules.GLU"}, ConfigError, "not supported"),
    ):
        path.write_text(json.dumps(fine | change), "utf-8")
        with pytest.raises(error, match=message):
            Embedder.from_pretrained(tmp_path)


def _rows_computed(embedder: Embedder, texts: list[str]) -> list[int]:
    seen: list[int] = []
    handle = embedder.model.layers[-1].mlp.register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape[0])
    )
    embedder.encode(texts, prompt="")
    handle.remove()
    return seen


def test_the_last_layer_computes_what_pooling_needs(folder: Path) -> None:
    tokens = 0
    for mode, rows in (("mean", None), ("cls", len(TEXTS)), ("lasttoken", len(TEXTS))):
        _set_mode(folder, pooling_mode=mode)
        embedder = Embedder.from_pretrained(folder)
        tokens = sum(map(len, embedder.tokenizer.encode(TEXTS, 512)[0]))
        assert _rows_computed(embedder, TEXTS) == [tokens if rows is None else rows]
    assert tokens > len(TEXTS)


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_one_row_per_text_equals_the_full_computation(
    dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NomicBert.from_pretrained(folder, dtype=dtype, backend="torch")
    batch = pack([[101, *range(110, 110 + n), 102] for n in (200, 31, 31, 7, 0)])
    for rows in (batch.first_tokens(), batch.last_tokens()):
        with torch.inference_mode():
            full = model.encode_packed(batch)[rows]
            some = model.encode_packed(batch, rows=rows)
            # the matmul of one query with the keys sums in another order than that of many queries
            bound = 1e-6 if dtype == torch.float32 else 2e-2
            difference = F.normalize(full.float()) - F.normalize(some.float())
            assert difference.abs().max() <= bound
            # and that matmul is the only difference: all else is bit-identical
            patched = model.ops.replaced(attention=_attend_all(model.ops.attention))
            monkeypatch.setattr(model, "_ops", patched)
            assert torch.equal(model.encode_packed(batch, rows=rows), full)
            monkeypatch.undo()


def _attend_all(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def all_queries(*args: Any) -> Tensor:
        *before, rows = args
        out = attention(*before, None)
        return out if rows is None else out[rows]

    return all_queries


def test_finish_is_independent_of_the_backend(folder: Path) -> None:
    _set_mode(folder, pooling_mode="mean")
    finishes = [Finish(), Finish(matryoshka_dim=9), Finish(truncate_dim=9, normalize=True)]
    results = []
    for backend in ("reference", "torch"):
        embedder = Embedder.from_pretrained(folder, backend=backend)
        batch = pack(embedder.tokenizer.encode(TEXTS, 512)[0])
        with torch.inference_mode():
            results.append([embedder.embedding_model(batch, f) for f in finishes])
    for reference, fast in zip(*results, strict=True):
        torch.testing.assert_close(F.normalize(fast), F.normalize(reference), rtol=0, atol=1e-6)
