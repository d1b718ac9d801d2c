"""`include_prompt: false`: a prompt's tokens are not pooled, as by sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nomicbert import Embedder
from nomicbert.describe import describe
from nomicbert.modeling.packing import pack
from nomicbert.runtime.prompt_tokens import prompt_tokens
from tests.parity.bounds import BACKENDS, EMBEDDING
from tests.support.module_folders import build_modules, change
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES

TEXTS = ["the fox and the dog run over the river " * 6, *SENTENCES[:3], "", "deep " * 90, "fox"]
MODES = [
    "mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken", "weightedmean",
    ["weightedmean", "lasttoken", "max", "cls"],
]  # fmt: skip
NAMED = {"query": "what is the fox: ", "document": "the river is long. ", "long": "the dog " * 20}
LIMIT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with L2 after pooling, named prompts and a default one."""
    where = tmp_path_factory.mktemp("left out") / "a"
    judge = build_modules(where, [], "e5", pooling_mode="mean", include_prompt=False)
    judge.max_seq_length = LIMIT
    judge.prompts, judge.default_prompt_name = dict(NAMED), "query"
    judge.save_pretrained(str(where), create_model_card=False)
    return where


def agree(found: np.ndarray, truth: np.ndarray) -> None:
    """Errors relative to each vector's norm, as those of unit vectors."""
    norms = np.linalg.norm(truth, axis=1, keepdims=True)
    assert (np.abs(found - truth) <= EMBEDDING * norms).all()


@pytest.mark.filterwarnings("ignore:.*were longer than")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode(mode: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    change(tmp_path / "a" / "1_Pooling" / "config.json", pooling_mode=mode)
    judge = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    # none, short, one whose last word joins the text's first, and longer than the limit
    prompts = ["", "query: ", "the riv", NAMED["long"]]
    whole = Embedder(tmp_path / "a")
    whole.pooling.include_prompt = True
    for backend in BACKENDS:
        embedder = Embedder(tmp_path / "a", backend=backend)
        for prompt in prompts:
            agree(embedder.encode(TEXTS, prompt=prompt), judge.encode(TEXTS, prompt=prompt))
            if prompt and mode != "lasttoken":
                others = whole.encode(TEXTS, prompt=prompt)
                assert np.abs(others - embedder.encode(TEXTS, prompt=prompt)).max() > 0.1
    embedder.save_pretrained(tmp_path / "b")
    again = Embedder(tmp_path / "b")
    np.testing.assert_array_equal(
        again.encode(TEXTS, prompt="query: "), embedder.encode(TEXTS, prompt="query: ")
    )
    theirs = SentenceTransformer(str(tmp_path / "b"), device="cpu")
    agree(theirs.encode(TEXTS, prompt="query: "), judge.encode(TEXTS, prompt="query: "))
    note = "the tokens of a prompt are left out of pooling (include_prompt)"
    assert note in describe(tmp_path / "b").notes


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_every_way_to_give_a_prompt(folder: Path) -> None:
    judge, embedder = SentenceTransformer(str(folder), device="cpu"), Embedder(folder)
    truth = judge.encode(TEXTS)
    agree(embedder.encode(TEXTS), truth)
    agree(np.stack(list(embedder.encode_iter(TEXTS))), truth)
    agree(embedder.encode(TEXTS, device=["cpu", "cpu"]), truth)
    assert np.abs(truth - judge.encode(TEXTS, prompt="")).max() > 0.1
    for name in NAMED:
        agree(embedder.encode(TEXTS, prompt_name=name), judge.encode(TEXTS, prompt_name=name))
    agree(embedder.encode_query(TEXTS), judge.encode_query(TEXTS))
    agree(embedder.encode_document(TEXTS), judge.encode_document(TEXTS))
    unit = {"normalize_embeddings": True, "truncate_dim": 64}
    agree(embedder.encode(TEXTS, **unit), judge.encode(TEXTS, **unit))
    # for fine-tuning
    batch = embedder.batch(TEXTS, "document")
    found = embedder.embedding_model(batch)
    agree(found.detach().numpy(), judge.encode(TEXTS, prompt_name="document"))
    found.square().sum().backward()
    assert embedder.model.get_input_embeddings().weight.grad is not None
    # the hidden states of all tokens
    ours = embedder.encode(TEXTS, output_value="token_embeddings")
    theirs = judge.encode(TEXTS, output_value="token_embeddings")
    for states, wanted in zip(ours, theirs, strict=True):
        agree(states.numpy(), wanted.numpy())


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_texts_whose_beginning_is_cut(folder: Path, tmp_path: Path) -> None:
    """As many tokens are left out as if the prompt still stood there."""
    shutil.copytree(folder, tmp_path / "a")
    change(tmp_path / "a" / "tokenizer_config.json", truncation_side="left")
    judge = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    embedder = Embedder(tmp_path / "a")
    for name in NAMED:
        agree(embedder.encode(TEXTS, prompt_name=name), judge.encode(TEXTS, prompt_name=name))


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_texts_of_which_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    """Without special tokens around a text; by "max" sentence-transformers gives minus infinity."""
    shutil.copytree(folder, tmp_path / "a")
    file = tmp_path / "a" / "tokenizer.json"
    raw = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(raw | {"post_processor": None}), "utf-8")
    change(tmp_path / "a" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    prompts = ("what is ", NAMED["long"], "the fox [MASK]", "the [MASK] fox", "[MASK]")
    for mode in MODES[:6]:
        change(tmp_path / "a" / "1_Pooling" / "config.json", pooling_mode=mode)
        judge = SentenceTransformer(str(tmp_path / "a"), device="cpu")
        embedder = Embedder(tmp_path / "a")
        lost = 0
        for prompt in prompts:
            count = prompt_tokens(embedder.tokenizer, prompt, LIMIT)
            assert count == judge[0]._get_prompt_length(prompt)
            truth = judge.encode(TEXTS, prompt=prompt)
            gone = np.array([len(i) <= count for i in ids_of(embedder, prompt)])
            lost += gone.sum()
            if mode == "max":
                assert np.isneginf(truth[gone]).all()
                truth[gone] = 0
            agree(embedder.encode(TEXTS, prompt=prompt), truth)
        assert lost > 3


@pytest.mark.filterwarnings("ignore:.*were longer than")
@pytest.mark.parametrize("named", [["pad_token"], ["pad_token", "sep_token"]])
def test_special_tokens_that_the_files_do_not_name(
    named: list[str], folder: Path, tmp_path: Path
) -> None:
    """transformers knows them only by tokenizer_config.json, not by their flag."""
    shutil.copytree(folder, tmp_path / "a")
    file = tmp_path / "a" / "tokenizer_config.json"
    stated = json.loads(file.read_text("utf-8"))
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", **{key: stated[key] for key in named}}
    file.write_text(json.dumps(kept), "utf-8")
    judge = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    embedder = Embedder(tmp_path / "a")
    embedder.save_pretrained(tmp_path / "b")
    assert embedder.tokenizer.special == set(judge.tokenizer.all_special_ids)
    for ours in (embedder, Embedder(tmp_path / "b")):
        agree(ours.encode(TEXTS, prompt="the fox "), judge.encode(TEXTS, prompt="the fox "))
    agree(
        embedder.encode(TEXTS, prompt="the fox ", device=["cpu"]),
        judge.encode(TEXTS, prompt="the fox "),
    )


def ids_of(embedder: Embedder, prompt: str) -> list[list[int]]:
    return embedder.tokenizer.encode([prompt + text for text in TEXTS], LIMIT)[0]


def test_chunks(folder: Path) -> None:
    """The mean over the tokens of all windows without those of the prompt, which stands in each."""
    embedder = Embedder(folder)
    prompt = NAMED["query"]
    count = prompt_tokens(embedder.tokenizer, prompt, LIMIT)
    found = embedder.encode(TEXTS, prompt=prompt, truncate="chunk")
    windows = embedder.tokenizer.encode_windows(TEXTS, prompt, LIMIT)
    assert len(windows[0]) > 2
    for vector, part in zip(found, windows, strict=True):
        with torch.inference_mode():
            hidden = embedder.model.encode_packed(pack(part))
        states = torch.split(hidden, [*map(len, part)])
        wanted = torch.cat([rows[count:] for rows in states]).double().mean(0)
        agree(vector[None], wanted[None].numpy())
    short = [text for text, part in zip(TEXTS, windows, strict=True) if len(part) == 1]
    np.testing.assert_array_equal(
        embedder.encode(short, prompt=prompt, truncate="chunk"),
        embedder.encode(short, prompt=prompt),
    )


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_bits_do_not_depend_on_the_batch(folder: Path) -> None:
    embedder = Embedder(folder)
    for modes in (("mean",), ("cls",), ("weightedmean", "lasttoken", "cls", "max")):
        embedder.pooling.modes = modes  # type: ignore[assignment]
        together = embedder.encode(TEXTS)
        for text, vector in zip(TEXTS, together, strict=True):
            assert same(embedder.encode(text), vector)


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_no_graph_is_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph has no place for the number of tokens that are left out."""
    embedder = Embedder(folder)
    asked = []
    around = embedder.graphs.around
    monkeypatch.setattr(embedder.graphs, "around", lambda model: asked.append(1) or around(model))
    embedder.encode(SENTENCES)
    assert not asked
    embedder.encode(SENTENCES, prompt="")
    assert asked
