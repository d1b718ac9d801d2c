"""Rerankers as lists of modules: scores, settings and files, beside sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from torch import nn

from nomicbert import CrossEncoder, Embedder
from nomicbert.errors import ConfigError, NomicBertError
from nomicbert.vectors.scores import ModularReranker
from nomicbert_kernels.linear_int8 import why_not
from tests.parity.bounds import BACKENDS
from tests.support.module_folders import Spec, build_modular_reranker, change
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES

PAIRS = [(a, b) for a in SENTENCES[:2] for b in (*SENTENCES[2:], "", "the river is long " * 9)]
BOUND = 1e-5
PLAIN = nn.Identity()
INT8 = pytest.param("int8", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))


def dense(out: int, **settings: Any) -> Spec:
    return ("Dense", {"out_features": out, **settings})


NORM: Spec = ("LayerNorm", {})
CASES: dict[str, tuple[dict[str, Any], list[Spec]]] = {
    "one": ({"pooling_mode": "cls"}, [dense(1, activation_function=PLAIN)]),
    "deep": (
        {"pooling_mode": "mean"},
        [
            dense(32, activation_function=nn.GELU()),
            ("Dropout", {"dropout": 0.1}),
            NORM,
            dense(1, activation_function=PLAIN),
        ],
    ),
    "several": ({"pooling_mode": ["cls", "max"]}, [NORM, dense(3, activation_function=PLAIN)]),
    "no prompt": (
        {"pooling_mode": "lasttoken", "include_prompt": False},
        [("Normalize", {}), dense(1, activation_function=PLAIN)],
    ),
    "no prompt in means": (
        {"pooling_mode": "weightedmean", "include_prompt": False},
        [dense(1, activation_function=PLAIN)],
    ),
    "named": (
        {"pooling_mode": "mean"},
        [
            dense(8, module_output_name="scores"),
            dense(2, module_input_name="scores", activation_function=PLAIN),
        ],
    ),
}
CALLS: list[dict[str, Any]] = [
    {},
    {"prompt_name": "find"},
    {"prompt": "deep fox: "},
    {"activation_fn": torch.nn.Tanh()},
    {"apply_softmax": True},
]


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_sentence_transformers(name: str, tmp_path: Path) -> None:
    pooling, steps = CASES[name]
    judge = build_modular_reranker(tmp_path / "a", steps, **pooling)
    truths = [judge.predict(PAIRS, **keywords) for keywords in CALLS]
    for backend in BACKENDS:
        model = CrossEncoder(tmp_path / "a", backend=backend)
        assert model.num_labels == judge.num_labels == steps[-1][1]["out_features"]
        assert f"labels {judge.num_labels}," in repr(model)
        for keywords, truth in zip(CALLS, truths, strict=True):
            found = model.predict(PAIRS, **keywords)
            assert found.shape == truth.shape
            np.testing.assert_allclose(found, truth, rtol=0, atol=BOUND)
    assert np.ptp(truths[0], axis=0).min() > 1e-3
    if name == "no prompt in means":
        model.model.pooling.include_prompt = True  # type: ignore[union-attr]
        assert np.abs(model.predict(PAIRS, **CALLS[2]) - truths[2]).max() > 1e-3
        model.model.pooling.include_prompt = False  # type: ignore[union-attr]
    # saved: for this class and for sentence-transformers
    model.activation_fn = torch.nn.Tanh()
    model.save_pretrained(tmp_path / "b")
    again = CrossEncoder(tmp_path / "b")
    wanted = judge.predict(PAIRS, activation_fn=torch.nn.Tanh())
    np.testing.assert_array_equal(again.predict(PAIRS), model.predict(PAIRS))
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "b"), device="cpu")
    np.testing.assert_allclose(theirs.predict(PAIRS), wanted, rtol=0, atol=BOUND)
    assert theirs.num_labels == again.num_labels == judge.num_labels
    assert theirs.prompts == again.prompts == {"find": "what is the river: "}
    assert [type(module).__name__ for module in theirs] == [type(m).__name__ for m in judge]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("modular") / "a"
    build_modular_reranker(where, CASES["deep"][1], pooling_mode="mean")
    return where


def test_rank_and_streams(folder: Path) -> None:
    judge, model = (
        sentence_transformers.CrossEncoder(str(folder), device="cpu"),
        CrossEncoder(folder),
    )
    found, truth = (one.rank(SENTENCES[0], SENTENCES[1:]) for one in (model, judge))
    assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in truth]
    together = model.predict(PAIRS)
    for pair, score in zip(PAIRS, together, strict=True):
        assert same(np.array([model.predict(pair)]), np.array([score]))
    np.testing.assert_array_equal(model.predict(PAIRS, device=["cpu", "cpu"]), together)


@pytest.mark.parametrize("backend", ["torch", INT8])
def test_other_dtypes_and_backends(backend: str, folder: Path) -> None:
    truth = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    dtype = torch.float32 if backend == "int8" else torch.bfloat16
    found = CrossEncoder(folder, backend=backend, dtype=dtype).predict(PAIRS)  # type: ignore[arg-type]
    assert np.abs(found - truth).max() < 0.02


def test_training(folder: Path) -> None:
    """Logits of a padded batch, the loss, and gradients in every module."""
    model = CrossEncoder(folder).model
    assert isinstance(model, ModularReranker)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    with pytest.warns(UserWarning, match="row 2 of attention_mask keeps no token"):
        out = model(ids, mask, output_hidden_states=True)
    assert out.logits[2].abs().max() == 0
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    lone = model(ids[1:2, :2]).logits
    torch.testing.assert_close(out.logits[1:2], lone, rtol=0, atol=1e-6)
    model.train()
    loss = model(ids[:2], mask[:2], labels=torch.tensor([1.0, 0.0])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.pooling.parameters())
    assert model.encoder.get_input_embeddings().weight.grad is not None
    model.eval()
    model.pooling.modes = ("cls",)  # without hidden states, the last layer computes one row a text
    seen = model(ids[:2], mask[:2], output_hidden_states=True)
    assert seen.hidden_states[-1].shape == (2, 4, model.config.hidden_size)
    torch.testing.assert_close(seen.logits, model(ids[:2], mask[:2]).logits, rtol=0, atol=1e-6)


def test_labels(folder: Path) -> None:
    assert CrossEncoder(folder, num_labels=1).num_labels == 1
    with pytest.raises(ConfigError, match="gives 1 scores a pair by its modules, not num_labels"):
        CrossEncoder(folder, num_labels=2)
    model = CrossEncoder(folder, problem_type="regression").model  # type: ignore[call-arg]
    assert model.labels.problem_type == "regression"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(NomicBertError) as caught:
        CrossEncoder(folder)
    for word in words:
        assert word in str(caught.value)


def test_refusals(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    build_modular_reranker(folder, CASES["deep"][1], pooling_mode="mean")
    with pytest.raises(ConfigError, match="holds a reranker: load it with CrossEncoder"):
        Embedder(folder)
    change(folder / "config_sentence_transformers.json", model_type="SentenceTransformer")
    with pytest.raises(ConfigError, match=r"module_output_name = 'scores' is not supported at the"):
        Embedder(folder)
    change(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    config = folder / "config.json"
    for key, value in (("problem_type", 1), ("num_labels", "x"), ("classifier_dropout", 12)):
        change(config, **{key: value, "id2label": ...})
        refused(folder, str(config), f"{key} must be", f"not {value!r}")
        change(config, **{key: ...})
    last = folder / "5_Dense" / "config.json"
    for name in ("sentence_embedding", "labels"):
        change(last, module_output_name=name)
        refused(folder, str(last), f"{name!r} is not supported at the end, only 'scores' is")
    change(last, module_output_name="scores")
    change(folder / "sentence_bert_config.json", transformer_task="sequence-classification")
    change(folder / "sentence_bert_config.json", modality_config=..., module_output_name=...)
    refused(folder, "states transformer_task = 'sequence-classification', which gives no tokens")
    change(folder / "sentence_bert_config.json", transformer_task="feature-extraction")
    assert CrossEncoder(folder).num_labels == 1
    file = folder / "modules.json"
    entries = json.loads(file.read_text("utf-8"))
    unit = {"idx": 6, "name": "6", "path": "6_Normalize", "type": "sentence_transformers.models."}
    for kind, words in (
        ("Normalize", ["module_input_name = 'sentence_embedding' is not supported, only 'scores'"]),
        ("LogitScore", ["modules.json lists", "LogitScore: supported are Transformer, Pooling"]),
    ):
        file.write_text(json.dumps([*entries, unit | {"type": unit["type"] + kind}]), "utf-8")
        refused(folder, *words)
    (folder / "6_Normalize").mkdir()
    names = {"module_input_name": "scores", "module_output_name": "scores"}
    (folder / "6_Normalize" / "config.json").write_text(json.dumps(names), "utf-8")
    file.write_text(json.dumps([*entries, unit | {"type": unit["type"] + "Normalize"}]), "utf-8")
    refused(folder, "a reranker with Pooling must end with a Dense whose module_output_name is")
