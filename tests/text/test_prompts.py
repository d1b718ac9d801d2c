"""Prompts: the checkpoint's own, the card's four, the choice of one, and the warning."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.text.prompts import CARDS_PROMPTS, Prompts
from nomicbert.user_warnings import PromptWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.variants import RETRIEVAL

TEXT = "what is deep learning?"
TASKS = {
    "search_query": "search_query: ",
    "search_document": "search_document: ",
    "classification": "classification: ",
    "clustering": "clustering: ",
}


def _load(folder: Path, variant: str, **settings: object) -> Embedder:
    build_checkpoint(folder, variant, num_hidden_layers=1)
    if settings:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps(settings), "utf-8")
    return Embedder.from_pretrained(folder)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b)


@pytest.mark.parametrize(
    ("variant", "prompts"),
    [
        ("nomic-v1.5", TASKS),
        ("nomic-v2-moe", {"query": "search_query: ", "passage": "search_document: "}),
        ("arctic-m-long", {"document": "", "query": RETRIEVAL}),
        ("e5", {"query": "query: ", "passage": "passage: "}),
        ("conan-v1", {"query": "", "document": ""}),
    ],
)
def test_prompts_of_a_checkpoint(variant: str, prompts: dict[str, str], tmp_path: Path) -> None:
    assert _load(tmp_path, variant).prompts == prompts


@pytest.mark.parametrize("shipped", [{}, {"query": "", "document": ""}, None])
def test_empty_prompts_of_a_nomic_checkpoint_count_as_none(
    shipped: dict[str, str] | None, tmp_path: Path
) -> None:
    assert _load(tmp_path, "nomic-v1.5", prompts=shipped).prompts == TASKS


def test_a_nomic_checkpoints_own_prompts_stand_alone(tmp_path: Path) -> None:
    embedder = _load(tmp_path, "nomic-v1.5", prompts={"query": "find: "})
    assert embedder.prompts == {"query": "find: ", "document": ""}
    embedder.encode(TEXT)  # the card's rule does not apply to it: no warning


def test_a_prompt_is_text_before_the_input(tmp_path: Path) -> None:
    embedder = _load(tmp_path, "nomic-v1.5")
    wanted = embedder.encode("clustering: " + TEXT, prompt="")
    assert _same(embedder.encode(TEXT, prompt_name="clustering"), wanted)
    assert _same(embedder.encode(TEXT, prompt="clustering: "), wanted)
    assert not _same(embedder.encode(TEXT, prompt=""), wanted)
    assert not _same(embedder.encode(TEXT, prompt_name="search_query"), wanted)


@pytest.mark.parametrize(
    ("variant", "query", "document"),
    [
        ("nomic-v1.5", "search_query: ", "search_document: "),
        ("nomic-v2-moe", "search_query: ", "search_document: "),
        ("e5", "query: ", "passage: "),
        ("arctic-m-long", RETRIEVAL, ""),
        ("conan-v1", "", ""),
    ],
)
def test_queries_and_documents(variant: str, query: str, document: str, tmp_path: Path) -> None:
    embedder = _load(tmp_path, variant)
    assert _same(embedder.encode_query(TEXT), embedder.encode(TEXT, prompt=query))
    assert _same(embedder.encode_document([TEXT]), embedder.encode([TEXT], prompt=document))
    # a prompt passed to the call wins, and the other arguments are passed on
    other = embedder.encode_query(TEXT, prompt="word: ", truncate_dim=5)
    assert _same(other, embedder.encode(TEXT, prompt="word: ")[:5])


def test_a_stream_has_its_prompt(tmp_path: Path) -> None:
    embedder = _load(tmp_path, "nomic-v1.5")
    texts = [TEXT, "", "x"]
    wanted = embedder.encode([f"clustering: {text}" for text in texts], prompt="")
    for keywords in ({"prompt_name": "clustering"}, {"prompt": "clustering: "}):
        assert _same(np.stack([*embedder.encode_iter(texts, **keywords)]), wanted)
    with pytest.raises(ValueError, match="unknown prompt_name 'web'"):
        embedder.encode_iter(texts, prompt_name="web")
    with pytest.warns(PromptWarning):
        vectors = [*embedder.encode_iter(texts)]
    assert _same(np.stack(vectors), embedder.encode(texts, prompt=""))


def test_the_first_known_name_wins(tmp_path: Path) -> None:
    prompts = {"corpus": "c: ", "passage": "p: ", "document": "d: ", "search_query": "s: "}
    embedder = _load(tmp_path, "e5", prompts=prompts)
    assert _same(embedder.encode_document(TEXT), embedder.encode(TEXT, prompt="d: "))
    assert _same(embedder.encode_query(TEXT), embedder.encode(TEXT, prompt="s: "))
    named = embedder.encode_document(TEXT, prompt_name="corpus")
    assert _same(named, embedder.encode(TEXT, prompt="c: "))


def test_default_prompt(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    embedder = _load(tmp_path, "e5", prompts=prompts, default_prompt_name="passage")
    assert _same(embedder.encode(TEXT), embedder.encode(TEXT, prompt="passage: "))
    named = embedder.encode(TEXT, prompt_name="query")
    assert _same(named, embedder.encode(TEXT, prompt="query: "))
    assert not _same(embedder.encode(TEXT), embedder.encode(TEXT, prompt=""))


def test_a_prompt_wins_over_a_name(tmp_path: Path) -> None:
    """With a warning, as in sentence-transformers."""
    embedder = _load(tmp_path, "e5")
    judge = SentenceTransformer(str(tmp_path), device="cpu")
    given = {"prompt_name": "passage", "prompt": "word: "}
    for method in ("encode", "encode_query", "encode_document"):
        with pytest.warns(PromptWarning, match="'passage' is ignored") as caught:
            found = getattr(embedder, method)(TEXT, **given)
        assert caught[0].filename == __file__
        wanted = getattr(judge, method)(TEXT, **given)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        assert not _same(found, embedder.encode(TEXT, prompt_name="passage"))


def test_mistakes_in_a_call(tmp_path: Path) -> None:
    embedder = _load(tmp_path / "e5", "e5")
    with pytest.raises(ValueError, match=r"unknown prompt_name 'web'.*'query', 'passage'"):
        embedder.encode(TEXT, prompt_name="web")
    with pytest.raises(TypeError, match="prompt must be a str, not 3"):
        embedder.encode(TEXT, prompt=3)
    with pytest.raises(ValueError, match=r"prompt 'a\\ud800' is not valid Unicode"):
        embedder.encode(TEXT, prompt="a\ud800")
    with pytest.raises(ValueError, match=r"unknown prompt_name 'web'; .* has: 'query', 'docu"):
        _load(tmp_path / "conan", "conan-v1").encode(TEXT, prompt_name="web")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ["query: "]}, "prompts must be an object"),
        ({"prompts": {"query": 3}}, "prompts must be an object"),
        ({"prompts": {"query": "q"}, "default_prompt_name": "web"}, "'web' is not among"),
        ({"prompts": {"query": "q"}, "default_prompt_name": 3}, "3 is not among"),
        ({"prompts": {"query": "\ud800"}}, "is not valid Unicode: it has a lone surrogate"),
    ],
)
def test_mistakes_in_a_checkpoint(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, "e5", **settings)


def test_a_missing_prompt_warns_once(tmp_path: Path) -> None:
    embedder = _load(tmp_path, "nomic-v1.5")
    with pytest.warns(PromptWarning, match="'search_query', 'search_document'") as caught:
        embedder.encode(["search_query: one has it", TEXT])
    assert len(caught) == 1
    assert caught[0].filename == __file__  # it points at the call
    embedder.encode(TEXT)  # warnings are errors in these tests


def test_no_warning_with_a_prompt(tmp_path: Path) -> None:
    embedder = _load(tmp_path, "nomic-v1.5")
    embedder.encode([])
    embedder.encode(["search_query: " + TEXT, "clustering: x"])
    embedder.encode(TEXT, prompt_name="classification")
    embedder.encode(TEXT, prompt="")  # explicitly no prompt
    embedder.encode_query(TEXT)
    embedder.encode_document(TEXT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedder.encode(TEXT)
    assert [entry.category for entry in caught] == [PromptWarning]


def test_no_warning_for_other_checkpoints(tmp_path: Path) -> None:
    for variant in ("conan-v1", "e5", "nomic-v2-moe"):
        assert _load(tmp_path / variant, variant).encode(TEXT).shape in ((64,), (112,))


def test_query_and_document_are_empty_where_none_are_shipped(tmp_path: Path) -> None:
    """As in sentence-transformers, which defines these two by default."""
    embedder = _load(tmp_path, "e5")
    if not any(embedder.prompts.values()):
        wanted = embedder.encode(TEXT)
        for name in ("query", "document"):
            assert _same(embedder.encode(TEXT, prompt_name=name), wanted)
    bare = Prompts({"query": "", "document": ""})
    assert bare.choose("query", None) == ""
    assert Prompts().choose("document", None) == ""
    with pytest.raises(ValueError, match="unknown prompt_name 'passage'"):
        Prompts().choose("passage", None)
    with pytest.raises(ValueError, match="unknown prompt_name 'query'"):
        Prompts({"search_query": "search_query: "}).choose("query", None)


def both_libraries(
    folder: Path, prompts: dict[str, str], default: str
) -> tuple[Embedder, SentenceTransformer]:
    build_checkpoint(folder, "e5", num_hidden_layers=1)
    stated = {"prompts": prompts, "default_prompt_name": default}
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(stated), "utf-8")
    return Embedder(folder), SentenceTransformer(str(folder), device="cpu")


def test_a_default_is_not_a_prompt_for_queries(tmp_path: Path) -> None:
    ours, theirs = both_libraries(tmp_path, {"x": "fox "}, "x")
    for name in ("encode", "encode_query", "encode_document"):
        found, wanted = (getattr(judge, name)(["a dog"]) for judge in (ours, theirs))
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert np.abs(ours.encode(["a dog"]) - ours.encode_query(["a dog"])).max() > 1e-3


def test_a_document_is_known_next_to_a_query(tmp_path: Path) -> None:
    """As in sentence-transformers: the name that is not shipped stands for no prompt."""
    ours, theirs = both_libraries(tmp_path, {"query": "fox "}, "document")
    for name in ("query", "document", None):
        found, wanted = (judge.encode(["a dog"], prompt_name=name) for judge in (ours, theirs))
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_prompt_that_was_changed_in_place() -> None:
    prompts = Prompts({"query": "q: "}, "query")
    prompts.by_name["query"] = "q\ud800: "
    for name in ("query", None):
        with pytest.raises(ValueError, match="is not valid Unicode: it has a lone surrogate"):
            prompts.choose(name, None)


def test_others_are_a_new_object() -> None:
    old = Prompts(dict(CARDS_PROMPTS), required=True, cards=True)
    more = old.updated({"extra": "x: "}, "extra")
    assert (old.by_name, old.default) == (CARDS_PROMPTS, None)
    assert (more.by_name, more.default) == ({**CARDS_PROMPTS, "extra": "x: "}, "extra")
    assert more.required
    for fewer in ({"extra": "x: "}, {**CARDS_PROMPTS, "clustering": "c: "}):
        assert not old.replaced(fewer, None).required


def test_names_that_stand_for_no_prompt_are_added_once() -> None:
    bare = Prompts()
    assert bare.updated({}, None).by_name == {"query": "", "document": ""}
    assert bare.updated({"query": "q: "}, None).by_name == {"query": "q: ", "document": ""}
    assert bare.updated({"passage": "p: "}, None).by_name == {"query": "", "passage": "p: "}
    given = {"document": "", "passage": "p: "}
    assert bare.updated(given, None).by_name == {"query": "", **given}
    shipped = Prompts({"document": "d: "}).updated({"passage": "p: "}, None)
    assert shipped.by_name == {"query": "", "document": "d: ", "passage": "p: "}
