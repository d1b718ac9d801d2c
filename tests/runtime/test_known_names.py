"""runtime.known_names: no attribute of sentence-transformers is set in vain; each has a hint."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from nomicbert import CrossEncoder, Embedder
from nomicbert.runtime.request import Request
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

TEXTS = ["what is deep learning", "the river is long"]
Facades = dict[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Facades:
    """Each facade, and sentence-transformers' model of the same folder."""
    e = build_checkpoint(tmp_path_factory.mktemp("e"), "minilm", num_hidden_layers=1)
    r = build_reranker(tmp_path_factory.mktemp("r"))
    judges = sentence_transformers
    return {
        "Embedder": (Embedder(e), judges.SentenceTransformer(str(e), device="cpu")),
        "CrossEncoder": (CrossEncoder(r), judges.CrossEncoder(str(r), device="cpu")),
    }


@pytest.mark.filterwarnings("ignore:The `default_activation_function`:DeprecationWarning")
@pytest.mark.parametrize("name", ["Embedder", "CrossEncoder"])
def test_no_name_of_sentence_transformers_is_set_in_vain(name: str, both: Facades) -> None:
    """Those of the class, of its base torch.nn.Sequential, and of the object."""
    ours, theirs = both[name]
    names = {known for known in {*dir(theirs), *vars(theirs)} if not known.startswith("_")}
    missing = {known for known in names if not hasattr(ours, known)}
    assert {"add_adapter", "backend", "register_forward_hook", "double"} <= missing
    for known in missing:
        with pytest.raises(AttributeError, match=f"has no attribute '{known}': .+"):
            getattr(ours, known)
        mine = copy.copy(ours)
        with pytest.raises(AttributeError, match=f"{name} has no attribute '{known}': .+"):
            setattr(mine, known, None)


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("Embedder", "batch_size", r"keyword of a call, as in encode\(..., batch_size=...\)"),
        ("Embedder", "prompt", r"keyword of a call, as in encode\(..., prompt=...\)"),
        ("Embedder", "max_length", "use embedder.max_seq_length, or max_length in a call"),
        ("Embedder", "max_seq_len", r"did you mean 'max_seq_length'\?"),
        ("Embedder", "default_prompt", r"did you mean 'default_prompt_name'\?"),
        ("Embedder", "similarity_fn", r"did you mean 'similarity_fn_name'\?"),
        ("Embedder", "activation_fn", "only CrossEncoder has it"),
        ("Embedder", "num_labels", "only CrossEncoder has it"),
        ("Embedder", "auto_model", "use embedder.model"),
        ("CrossEncoder", "truncate_embeddings", "only Embedder has it"),
        (
            "CrossEncoder",
            "set_pooling_include_prompt",
            "include_prompt; a classifier has no pooling",
        ),
        ("Embedder", "gradient_checkpointing_enable", "use embedder.model.gradient_checkpointing_"),
        ("CrossEncoder", "truncate_dim", "only Embedder has it"),
        ("CrossEncoder", "similarity_fn_name", "only Embedder has it"),
        ("CrossEncoder", "prompt_name", r"keyword of a call, as in predict\("),
        ("CrossEncoder", "double", "it belongs to the module, reranker.model"),
        ("Embedder", "default_activation_function", "only CrossEncoder has it"),
        ("CrossEncoder", "activation", r"did you mean 'activation_fn'\?"),
    ],
)
def test_other_names_that_would_be_set_in_vain(
    name: str, attribute: str, message: str, both: Facades
) -> None:
    with pytest.raises(
        AttributeError, match=f"^{name} has no attribute '{attribute}': .*{message}"
    ):
        setattr(both[name][0], attribute, 3)
    assert not hasattr(both[name][0], attribute)


def test_what_is_advised_exists(both: Facades) -> None:
    for ours, _ in both.values():
        assert callable(ours.model.gradient_checkpointing_enable)


def test_keywords_of_a_call_are_no_attributes(both: Facades) -> None:
    embedder, _ = both["Embedder"]
    for keyword in set(Request.__dataclass_fields__) - {"device", "truncate_dim"}:
        with pytest.raises(AttributeError, match=f"Embedder has no attribute '{keyword}': "):
            setattr(embedder, keyword, None)


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("Embedder", "device", r"device in a call .* embedder.embedding_model.to\(device\)"),
        ("Embedder", "model", "replace embedder.embedding_model.encoder"),
        ("Embedder", "pooling", "replace embedder.embedding_model.pooling"),
        ("CrossEncoder", "device", r"device in a call .* reranker.model.to\(device\)"),
        ("CrossEncoder", "num_labels", "num_labels when loading"),
    ],
)
def test_what_follows_from_the_checkpoint(
    name: str, attribute: str, message: str, both: Facades
) -> None:
    with pytest.raises(AttributeError, match=f"^{name}.{attribute} cannot be set: {message}"):
        setattr(both[name][0], attribute, "cpu")


def test_a_callers_own_names(both: Facades) -> None:
    for name in both:
        mine = copy.copy(both[name][0])
        mine.my_note = mine._mine = 3
        assert (mine.my_note, mine._mine) == (3, 3)
        with pytest.raises(
            AttributeError, match=f"^'{name}' object has no attribute 'my_nothing'$"
        ):
            _ = mine.my_nothing
        assert not hasattr(mine, "__array__")


def test_a_subclass_may_declare_any_name(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)

    class Mine(Embedder):
        backend: dict[str, int] | None = None

        @property
        def broken(self) -> int:
            return self.model.nothing  # type: ignore[return-value]

    mine = Mine(tmp_path)
    mine.backend = {"a": 1}
    assert mine.backend == {"a": 1}
    with pytest.raises(AttributeError, match=r"Mine has no attribute 'auto_model': use embedder.m"):
        mine.auto_model = None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'NomicBert' object has no attribute 'nothing'"):
        _ = mine.broken


def test_copies_and_pickles(both: Facades) -> None:
    embedder, _ = both["Embedder"]
    wanted = embedder.encode(TEXTS)
    for again in (
        copy.copy(embedder),
        copy.deepcopy(embedder),
        pickle.loads(pickle.dumps(embedder)),
    ):
        assert np.array_equal(again.encode(TEXTS), wanted)
    reranker, _ = both["CrossEncoder"]
    reranker = copy.deepcopy(reranker)
    reranker.activation_fn = torch.nn.Tanh()
    again = pickle.loads(pickle.dumps(reranker))
    pair = ("what is", "the river")
    assert again.predict(pair) == reranker.predict(pair)


def test_a_subclass_may_have_any_method(tmp_path: Path) -> None:
    class Predicts(Embedder):
        def predict(self) -> int:
            return len(self.encode(TEXTS))

    embedder = Predicts(build_checkpoint(tmp_path, "e5", num_hidden_layers=1))
    embedder.truncate_dim = 8
    assert embedder.predict() == len(TEXTS)
