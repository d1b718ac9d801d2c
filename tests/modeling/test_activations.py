"""BERT with an activation other than GELU on the other backends, saved, and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nomicbert import Embedder, NomicBert
from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.activation_names import BERT_ACTS
from nomicbert.modeling.packing import pack
from nomicbert_kernels import backend as backends
from nomicbert_kernels import linear_int8
from tests.modeling.test_invariant import changed
from tests.ops.cases import INTERPRETS
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import build_checkpoint, edit_config, read_config
from tests.support.vocabularies import SENTENCES

interpreted = pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here")
NAMES = ("gelu_new", "relu", "silu", "quick_gelu")
IDS = [[2, 9, 30, 7, 3], [], [2, 8, 3], [2, *range(5, 40), 3]]


def build(folder: Path, name: str, **changes: Any) -> Path:
    return build_checkpoint(folder, "minilm", num_hidden_layers=1, hidden_act=name, **changes)


@interpreted
@pytest.mark.parametrize("backend", ["triton", "invariant"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_kernels(name: str, backend: Any, tmp_path: Path) -> None:
    build(tmp_path, name)
    found, wanted = (
        NomicBert.from_pretrained(tmp_path, backend=chosen).encode_packed(pack(IDS))
        for chosen in (backend, "reference")
    )
    assert (found - wanted).abs().max() <= HIDDEN
    assert wanted.abs().max() > 0.1


@interpreted
def test_bits_of_invariant_do_not_depend_on_the_batch(tmp_path: Path, seed: int) -> None:
    assert changed(build(tmp_path, "gelu_new"), "invariant", seed) == 0


# Lowest cosine over five seeds: int8 0.99987, fp8 0.9975; with another activation 0.9905 at most.
LEAST = {"int8": 0.9995, "fp8": 0.9955}


@pytest.mark.parametrize("backend", LEAST)
@pytest.mark.parametrize("name", ["gelu_new", "relu"])
def test_quantised(
    name: str, backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "int8" and (why := linear_int8.why_not()):
        pytest.skip(why)
    monkeypatch.setattr(backends, "why_not_fp8", lambda device, dtype: None)
    monkeypatch.setattr(backends, "fp8_ops", lambda device: backends.FP8_REFERENCE)
    build(tmp_path, name)
    found, wanted = (
        Embedder(tmp_path, backend=chosen).encode(SENTENCES) for chosen in (backend, "torch")
    )
    cosines = (found * wanted).sum(1)  # unit vectors
    assert LEAST[backend] <= cosines.min()
    assert cosines.max() < 1 - 1e-7, "nothing was rounded"


@torch.no_grad()
@pytest.mark.parametrize("name", ["gelu", *NAMES])
def test_a_layer_that_is_called(name: str, tmp_path: Path) -> None:
    """A hook on the layer before the activation: the layer is called, and no op reads it."""
    model = NomicBert.from_pretrained(build(tmp_path, name))
    wanted, called = model.encode_packed(pack(IDS)), []
    model.layers[0].mlp.up.register_forward_hook(lambda *args: called.append(args))
    assert (model.encode_packed(pack(IDS)) - wanted).abs().max() <= HIDDEN
    assert called


@torch.no_grad()
@pytest.mark.parametrize("name", BERT_ACTS)
def test_saved_under_the_name_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    model = NomicBert.from_pretrained(build(tmp_path / "a", name))
    assert model.config.hidden_act == BERT_ACTS[name]
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["hidden_act"] == name
    theirs = transformers.BertModel.from_pretrained(tmp_path / "b").eval()
    ids = torch.tensor([[2, 9, 30, 7, 3]])
    assert (theirs(ids)[0] - model(ids)[0]).abs().max() <= HIDDEN


def test_saved_after_a_change(tmp_path: Path) -> None:
    config = NomicBert.from_pretrained(build(tmp_path / "a", "gelu_new")).config
    model = NomicBert(dataclasses.replace(config, hidden_act="silu"))
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["hidden_act"] == "silu"
    assert NomicBert.from_pretrained(tmp_path / "b").config.hidden_act == "silu"


def test_saved_with_its_pooling(tmp_path: Path) -> None:
    embedder = Embedder(build(tmp_path / "a", "relu"))
    embedder.save_pretrained(tmp_path / "b")
    vectors = embedder.encode(SENTENCES)
    np.testing.assert_array_equal(Embedder(tmp_path / "b").encode(SENTENCES), vectors)


@pytest.mark.parametrize("value", ["mish", "tanh", "gelu_10", "GELU", "", ["relu"], 1, True])
def test_refused(value: object, tmp_path: Path) -> None:
    build(tmp_path, "gelu")
    edit_config(tmp_path, hidden_act=value)
    with pytest.raises(ConfigError) as caught:
        NomicBert.from_pretrained(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'config.json'}: hidden_act = {value!r} is not supported")
    assert "supported are 'gelu', 'gelu_python', 'gelu_new'" in text


@pytest.mark.parametrize(
    ("kind", "act", "wanted"),
    [
        ("bert", "swiglu", "hidden_act of bert must be one of gelu, gelu_pytorch_tanh, relu"),
        ("bert", "gelu_new", "quick_gelu, not 'gelu_new'"),
        ("nomic_bert", "relu", "hidden_act of nomic_bert must be one of swiglu, gelu, not 'relu'"),
        ("bart", "gelu", "model_type must be one of nomic_bert, bert, not 'bart'"),
    ],
)
def test_refused_by_the_configuration(kind: Any, act: Any, wanted: str) -> None:
    """The original code of NomicBERT would silently take GELU for it."""
    with pytest.raises(ConfigError, match=wanted):
        EncoderConfig(kind, 100, 64, 1, 4, 96, 2, 64, 1e-12, act, rotary_dim=0)
