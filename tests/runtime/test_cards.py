"""Cards of saved embedders and rerankers: what is in them holds, and their snippets run."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from huggingface_hub import ModelCard

from nomicbert import CrossEncoder, Embedder, ModelCardData
from nomicbert.loading.model_card import PLACEHOLDER
from tests.support.checkpoints import VARIANTS, build_checkpoint
from tests.support.rerankers import build_reranker

# transformers' own class refuses these, or gives something else: biases, experts, ...
OURS_ONLY = {"nomic-v2-moe"}


def card_of(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


def snippets(text: str) -> dict[str, str]:
    """Library -> code."""
    found = re.findall(r"^With ([\w-]+):\n\n```python\n(.*?)```$", text, re.M | re.S)
    return dict(found)


def run(code: str, folder: Path) -> dict[str, Any]:
    """The names that a snippet leaves, for a model in this folder."""
    assert code.count(PLACEHOLDER) == 1
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code.replace(PLACEHOLDER, str(folder)), names)
    return names


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_card_of_an_embedder(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", variant)
    bare = not (tmp_path / "a" / "modules.json").exists()
    embedder = Embedder(tmp_path / "a", pooling="mean" if bare else None)
    embedder.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    config = embedder.model.config
    beyond = embedder.max_seq_length > config.max_trained_positions
    known = not (variant in OURS_ONLY or (config.rotary_scaling_factor and beyond))
    library = "sentence-transformers" if known else "nomicbert"
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "sentence-similarity"
    assert {"nomicbert", "feature-extraction"} <= set(card.data.tags)
    assert ("sentence-transformers" in card.data.tags) == known
    assert f"| Dimension | {embedder.pooling.embedding_dimension} |" in card.text
    assert f"| Pooling | {embedder.pooling.mode} |" in card.text
    assert f"| Maximum length | {embedder.max_seq_length} tokens |" in card.text
    assert f"| Similarity | {embedder.similarity_fn_name} |" in card.text
    assert f"| Layers | {embedder.model.config.num_hidden_layers} |" in card.text
    count = sum(p.numel() for p in embedder.embedding_model.parameters())
    assert f"| Parameters | {count:,}, float32 |" in card.text
    assert ("other results or refuses" in card.text) == (not known)
    codes = snippets(card.text)
    assert set(codes) == {"nomicbert", "sentence-transformers"} if known else {"nomicbert"}
    ours = run(codes["nomicbert"], tmp_path / "b")
    wanted = embedder.similarity(embedder.encode_query(["What is TSNE?"]), ours["documents"])
    assert torch.equal(wanted, ours["model"].similarity(ours["queries"], ours["documents"]))
    if known:
        theirs = run(codes["sentence-transformers"], tmp_path / "b")
        for name in ("queries", "documents"):
            assert np.abs(theirs[name] - ours[name]).max() <= 1e-4 * np.abs(ours[name]).max()


def test_settings_and_prompts_are_shown(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    embedder = Embedder(tmp_path / "a")
    embedder.prompts = {"query": 'Ask: "', "search_document": "d\n```: ", "document": "é | "}
    embedder.truncate_dim, embedder.max_seq_length = 16, 40
    embedder.similarity_fn_name = "dot"
    embedder.save_pretrained(tmp_path / "b")
    text = card_of(tmp_path / "b").text
    assert '{\n  "query": "Ask: \\"",\n  "search_document": "d\\n```: ",\n' in text
    assert "| Dimension kept by default | 16 |" in text
    assert "| Maximum length | 40 tokens |" in text
    assert "| Similarity | dot |" in text
    assert "to a vector of 16 dimensions" in text
    ours, theirs = (run(code, tmp_path / "b") for code in snippets(text).values())
    for name in ("queries", "documents"):
        assert np.abs(theirs[name] - ours[name]).max() <= 1e-5


def test_a_prompt_that_they_do_not_look_for_is_written_out(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    embedder = Embedder(tmp_path / "a")
    embedder.prompts = {"search_query": 'say "q"\n', "search_document": "d: "}
    embedder.save_pretrained(tmp_path / "b")
    codes = snippets(card_of(tmp_path / "b").text)
    assert 'prompt="say \\"q\\"\\n")' in codes["sentence-transformers"]
    ours, theirs = (run(code, tmp_path / "b") for code in codes.values())
    for name in ("queries", "documents"):
        assert np.abs(theirs[name] - ours[name]).max() <= 1e-5


def test_prompts_are_not_changed(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    embedder = Embedder(tmp_path / "a")
    prompts = {"search_query": "CLASSIFY by MODEL encode_document(x): ", "search_document": "d: "}
    embedder.prompts = prompts
    embedder.save_pretrained(tmp_path / "b")
    ours, theirs = (
        run(code, tmp_path / "b") for code in snippets(card_of(tmp_path / "b").text).values()
    )
    for name in ("queries", "documents"):
        assert np.abs(theirs[name] - ours[name]).max() <= 1e-5


def test_texts_beyond_the_trained_length_are_ours(tmp_path: Path) -> None:
    """Where save_portable refuses, the card claims nothing."""
    build_checkpoint(tmp_path / "a", "nomic-v1")
    embedder = Embedder(tmp_path / "a")
    trained = embedder.model.config.max_trained_positions
    for length, libraries in (
        (trained, {"nomicbert", "sentence-transformers"}),
        (trained + 1, {"nomicbert"}),
    ):
        embedder.max_seq_length = length
        embedder.save_pretrained(tmp_path / str(length))
        assert set(snippets(card_of(tmp_path / str(length)).text)) == libraries


@pytest.mark.parametrize("labels", [1, 3])
def test_the_card_of_a_reranker(labels: int, tmp_path: Path) -> None:
    reranker = CrossEncoder(build_reranker(tmp_path / "a", labels))
    reranker.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    tag = "text-ranking" if labels == 1 else "text-classification"
    assert card.data.pipeline_tag == tag
    assert card.data.library_name == "sentence-transformers"
    assert {"cross-encoder", "sentence-transformers"} <= set(card.data.tags)
    assert ("reranker" in card.data.tags) == (labels == 1)
    names = "1" if labels == 1 else "3: LABEL_0, LABEL_1, LABEL_2"
    assert f"| Labels | {names} |" in card.text
    kind = "Sigmoid" if labels == 1 else "Identity"
    assert re.search(rf"\| Activation of the scores \| torch\.[\w.]+\.{kind} \|", card.text)
    for code in snippets(card.text).values():
        assert type(run(code, tmp_path / "b")["model"]).__name__ == "CrossEncoder"


def test_an_activation_without_a_name_is_not_named(tmp_path: Path) -> None:
    reranker = CrossEncoder(build_reranker(tmp_path / "a"))
    reranker.activation_fn = lambda logits: logits * 2
    with pytest.warns(UserWarning, match="not saved"):
        reranker.save_pretrained(tmp_path / "b")
    assert "| set by the caller, not saved |" in card_of(tmp_path / "b").text


@pytest.fixture(params=["Embedder", "CrossEncoder"])
def facade(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """A model, and the folder that it was loaded from."""
    folder = tmp_path / "source"
    if request.param == "Embedder":
        yield Embedder(build_checkpoint(folder, "minilm")), folder
    else:
        yield CrossEncoder(build_reranker(folder)), folder


def test_a_card_that_is_there_stays(facade: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = facade
    mine = b"---\nlicense: mit\n---\n\nMine.\r\n"
    for place in (folder, tmp_path / "b"):
        place.mkdir(exist_ok=True)
        (place / "README.md").write_bytes(mine)
        model.save_pretrained(place)
        assert (place / "README.md").read_bytes() == mine


def test_what_the_author_states_is_in_the_card(facade: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = facade
    model.model_card_data = ModelCardData(language="en", license="mit", model_name="Mine")
    model.model_card_data.add_tags("recipes")
    model.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert (card.data.language, card.data.license) == (["en"], "mit")
    assert "recipes" in card.data.tags
    assert "# Mine\n" in card.text
    model.model_card_data = None
    assert model.model_card_data == ModelCardData()


def test_data_of_another_kind_is_refused(facade: tuple[Any, Path]) -> None:
    model, _ = facade
    theirs = sentence_transformers.SentenceTransformerModelCardData()
    for data, kind in ((theirs, "SentenceTransformerModelCardData"), ({}, "dict")):
        with pytest.raises(TypeError, match=rf"a nomicbert\.ModelCardData, .* not .*\.{kind}"):
            model.model_card_data = data


def test_wrong_data_leaves_no_file(facade: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = facade
    model.model_card_data.license = 3
    with pytest.raises(TypeError, match="license must be a string"):
        model.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_licence_of_the_source_is_kept(facade: tuple[Any, Path], tmp_path: Path) -> None:
    """Of what the folder's card says, only licence and base model hold for what is saved."""
    model, folder = facade
    front = "license: cc-by-nc-4.0\nbase_model: org/base\ntags:\n- theirs\ndatasets: org/pairs"
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# Theirs\n\nScores 99.\n", "utf-8")
    model = type(model)(folder)
    model.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "org/base")
    assert "theirs" not in card.data.tags
    assert card.data.datasets is None
    assert "Scores" not in card.text
    # and again from there
    type(model)(tmp_path / "b").save_pretrained(tmp_path / "c")
    again = card_of(tmp_path / "c")
    assert (again.data.license, again.data.base_model) == ("cc-by-nc-4.0", "org/base")


def test_sentence_transformers_saves_it_again(facade: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = facade
    model.model_card_data = ModelCardData(license="mit", language="en", tags=["mine"])
    model.save_pretrained(tmp_path / "b")
    judge = {"Embedder": "SentenceTransformer"}.get(type(model).__name__, "CrossEncoder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(sentence_transformers, judge)(str(tmp_path / "b"), device="cpu")
        theirs.save_pretrained(str(tmp_path / "c"))
    card = card_of(tmp_path / "c")
    assert (card.data.license, card.data.language) == ("mit", ["en"])
    assert "mine" in card.data.tags


def test_their_evaluator_fills_the_card(tmp_path: Path) -> None:
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator

    reranker = CrossEncoder(build_reranker(tmp_path / "a"))
    pairs = [["who wrote it", "she did"], ["what is it", "a river"], ["where", "there"]]
    evaluator = CrossEncoderCorrelationEvaluator(pairs, [0.9, 0.1, 0.5], name="dev")
    given = evaluator(reranker)  # type: ignore[arg-type]
    reranker.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    (index,) = card.data.to_dict()["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["name"] == "dev"
    found = {one["type"]: one["value"] for one in result["metrics"]}
    assert set(found) == {"pearson", "spearman"}
    for name, value in found.items():
        assert value == pytest.approx(given[f"dev_{name}"], abs=1e-12)
    assert re.search(r"\| \*\*\w+\*\* \| \*\*-?\d\.\d{4}\*\* \|", card.text)
