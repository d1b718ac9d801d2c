"""runtime.settings: what is set acts, is checked at once, and is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers import SimilarityFunction

from nomicbert import ConfigWarning, CrossEncoder, Embedder
from nomicbert.text.prompts import CARDS_PROMPTS
from nomicbert.user_warnings import PromptWarning, TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

TEXTS = ["what is deep learning", "the river is long " * 9]
PAIRS = [("what is", "the river is long " * 9), ("deep", "learning is long")]
BOUND = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("e"), "conan-v1", num_hidden_layers=1)


@pytest.fixture
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture
def reranker(tmp_path: Path) -> CrossEncoder:
    return CrossEncoder(build_reranker(tmp_path / "r"))


def compared(model: Any, keywords: dict[str, Any]) -> list[np.ndarray]:
    """Vectors of three calls and their similarities."""
    calls = (model.encode, model.encode_query, model.encode_document)
    a, b, c = (call(TEXTS, **keywords) for call in calls)
    return [a, b, c, *map(np.asarray, (model.similarity(a, b), model.similarity_pairwise(a, c)))]


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
@pytest.mark.parametrize(
    ("settings", "keywords"),
    [
        ({"truncate_dim": 8}, {}),
        ({"prompts": {"query": "find: ", "document": "in: ", "topic": "about: "}}, {}),
        ({"prompts": {"topic": "about: "}}, {"prompt_name": "topic"}),
        (
            {
                "prompts": {"query": "q: ", "document": "d: ", "topic": "about: "},
                "default_prompt_name": "topic",
            },
            {},
        ),
        ({"max_seq_length": 6}, {}),
        ({"similarity_fn_name": "dot"}, {}),
        ({"similarity_fn_name": SimilarityFunction.EUCLIDEAN}, {}),
        ({"similarity_fn_name": SimilarityFunction.MANHATTAN, "truncate_dim": 3}, {}),
    ],
    ids=str,
)
def test_a_setting_acts_and_is_saved(
    settings: dict[str, Any],
    keywords: dict[str, Any],
    folder: Path,
    embedder: Embedder,
    tmp_path: Path,
) -> None:
    judge = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    before = compared(embedder, {})
    for name, value in settings.items():
        setattr(embedder, name, value)
        setattr(judge, name, value)
    wanted = compared(judge, keywords)
    changed = [np.shape(a) != np.shape(b) or np.abs(a - b).max() > 1e-3 for a, b in
               zip(before, wanted, strict=True)]  # fmt: skip
    assert any(changed)
    embedder.save_pretrained(tmp_path)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for model in (embedder, Embedder(tmp_path), again):
        for ours, theirs in zip(compared(model, keywords), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_default_prompt_without_text(folder: Path, embedder: Embedder) -> None:
    """sentence-transformers has the names query and document for no prompt."""
    judge = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    embedder.default_prompt_name = judge.default_prompt_name = "document"
    np.testing.assert_allclose(embedder.encode(TEXTS), judge.encode(TEXTS), rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("truncate_dim", 0, ValueError, "truncate_dim must be 1 to 112, not 0"),
        ("truncate_dim", "8", TypeError, "truncate_dim must be an integer, not '8'"),
        ("truncate_dim", True, TypeError, "truncate_dim must be an integer, not True"),
        ("max_seq_length", 2, ValueError, "max_seq_length must be 3 to 512, not 2"),
        ("max_seq_length", None, TypeError, "max_seq_length must be an integer, not None"),
        ("max_seq_length", 9.0, TypeError, "max_seq_length must be an integer, not 9.0"),
        ("prompts", None, TypeError, "a dict of str, not None"),
        ("prompts", {"query": 3}, TypeError, "a dict of str, not {'query': 3}"),
        ("prompts", ["query: "], TypeError, "a dict of str, not \\['query: '\\]"),
        ("prompts", {"a": "\udc00"}, ValueError, "is not valid Unicode: it has a lone surrogate"),
        (
            "default_prompt_name",
            "web",
            ValueError,
            "'web' is not among its prompts, which are: 'query', 'document'",
        ),
        ("default_prompt_name", 3, ValueError, "3 is not among its prompts"),
        ("similarity_fn_name", "cos_sim", ValueError, "cosine, dot, .*, not 'cos_sim'"),
        ("similarity_fn_name", "Dot", ValueError, "cosine, dot, .*, not 'Dot'"),
        ("similarity_fn_name", "", ValueError, "cosine, dot, .*, not ''"),
        ("similarity_fn_name", SimilarityFunction.MAXSIM, ValueError, "not 'maxsim'"),
        ("similarity_fn_name", max, ValueError, "not <built-in function max>"),
        ("tokenizer", "bert", TypeError, "a Tokenizer of nomicbert, not builtins.str: save yours"),
    ],
    ids=str,
)
def test_an_invalid_value_is_refused_when_set(
    name: str, value: Any, error: type, message: str, embedder: Embedder
) -> None:
    before = getattr(embedder, name)
    with pytest.raises(error, match=message):
        setattr(embedder, name, value)
    assert getattr(embedder, name) == before


def test_more_columns_than_there_are(embedder: Embedder) -> None:
    """As in sentence-transformers all are kept; here with a warning."""
    wanted = embedder.encode(TEXTS)
    with pytest.warns(ConfigWarning, match="truncate_dim = 113 is more than the 112 columns"):
        embedder.truncate_dim = 113
    assert embedder.truncate_dim == embedder.get_embedding_dimension() == 112
    np.testing.assert_array_equal(embedder.encode(TEXTS), wanted)


def test_none_is_the_default(embedder: Embedder) -> None:
    wanted = embedder.encode(TEXTS)
    embedder.truncate_dim, embedder.similarity_fn_name = 8, "dot"
    embedder.truncate_dim = embedder.similarity_fn_name = None  # type: ignore[assignment]
    assert embedder.similarity_fn_name == "cosine"
    np.testing.assert_array_equal(embedder.encode(TEXTS), wanted)


def test_another_tokenizer(embedder: Embedder, folder: Path) -> None:
    other = Embedder(folder).tokenizer
    other.rust.add_tokens(["zzqq"])
    assert embedder.token_count("zzqq") > 3
    embedder.tokenizer = other
    assert embedder.token_count("zzqq") == 3


def test_prompts_of_a_card(tmp_path: Path) -> None:
    """Others replace them; none at all could not be saved."""
    build_checkpoint(tmp_path / "a", "nomic-v1.5", num_hidden_layers=1)
    embedder = Embedder(tmp_path / "a")
    assert embedder.prompts == CARDS_PROMPTS
    for empty in ({}, {"query": ""}):
        with pytest.raises(ValueError, match=r"cannot be without prompts.* give prompt='' to"):
            embedder.prompts = empty
    wanted = embedder.encode(TEXTS, prompt_name="search_query")
    embedder.default_prompt_name = "search_query"
    np.testing.assert_array_equal(embedder.encode(TEXTS), wanted)  # and no reminder
    embedder.save_pretrained(tmp_path / "b")
    again = Embedder(tmp_path / "b")
    assert again.prompts == CARDS_PROMPTS
    np.testing.assert_array_equal(again.encode(TEXTS), wanted)
    embedder.default_prompt_name = None
    with pytest.warns(PromptWarning):
        embedder.encode(TEXTS)
    embedder = Embedder(tmp_path / "a")
    embedder.prompts = {"query": "search_query: "}
    embedder.encode(TEXTS)  # its card's rule does not apply any more: no warning
    embedder.save_pretrained(tmp_path / "c")
    assert Embedder(tmp_path / "c").prompts == {"document": "", "query": "search_query: "}


@pytest.mark.parametrize("facade", ["embedder", "reranker"])
def test_prompts_of_a_copy(facade: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(facade)
    before = dict(model.prompts)
    other = copy.copy(model)
    other.prompts = {"topic": "about: "}
    other.default_prompt_name = "topic"
    assert (model.prompts, model.default_prompt_name) == (before, None)
    assert (other.prompts, other.default_prompt_name) == ({"topic": "about: "}, "topic")


@pytest.mark.parametrize("facade", ["embedder", "reranker"])
def test_prompts_that_cannot_be_saved(
    facade: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """They are a dict that a caller may change; nothing is written then."""
    model = request.getfixturevalue(facade)
    model.prompts = {}
    model.prompts["query"] = 3
    call = model.encode if facade == "embedder" else model.predict
    with pytest.raises(TypeError, match="the prompt 'query' must be a str, not 3"):
        call(TEXTS if facade == "embedder" else PAIRS, prompt_name="query")
    with pytest.raises(TypeError, match=r"a dict of str, not {'query': 3}"):
        model.save_pretrained(tmp_path / "b")
    model.prompts["query"] = "find: "
    model.default_prompt_name = "query"
    del model.prompts["query"]
    model.prompts["other"] = "x"
    with pytest.raises(ValueError, match="'query' is not among its prompts, which are: 'other'"):
        model.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    model.default_prompt_name = None
    model.save_pretrained(tmp_path / "b")
    assert type(model)(tmp_path / "b").prompts == {"other": "x"}


def test_settings_of_a_reranker(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path / "a")
    model = CrossEncoder(folder)
    judge = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    before = model.predict(PAIRS)
    for name, value in (
        ("max_length", 12),
        ("activation_fn", torch.nn.Tanh()),
        ("prompts", {"find": "find: ", "web": "long long: "}),
        ("default_prompt_name", "web"),
    ):
        setattr(model, name, value)
        setattr(judge, "max_seq_length" if name == "max_length" else name, value)
        with pytest.warns(TruncationWarning, match="longer than 12 tokens"):
            found = model.predict(PAIRS)
        np.testing.assert_allclose(found, judge.predict(PAIRS), rtol=0, atol=BOUND)
        if name != "prompts":
            assert np.abs(found - before).max() > 1e-4, name
            before = found
    assert model.max_seq_length == model.max_length == 12


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("activation_fn", torch.nn.Sigmoid, TypeError, r"a function: Sigmoid\(\), not the class"),
        ("activation_fn", None, TypeError, r"a function, such as torch.nn.Identity\(\), not None"),
        ("activation_fn", 3, TypeError, "a function, .* not 3"),
        ("activation_fn", "torch.nn.PReLU", ValueError, "'torch.nn.PReLU' cannot be found .* give"),
        ("activation_fn", "mine.Tanh", ValueError, "'mine.Tanh' cannot be found by its path"),
        ("max_length", 97, ValueError, "max_seq_length must be 1 to 96, not 97"),
        ("max_seq_length", 0, ValueError, "max_seq_length must be 1 to 96, not 0"),
        ("default_prompt_name", "query", ValueError, "'query' is not among its prompts"),
        ("prompts", 3, TypeError, "a dict of str, not 3"),
        ("tokenizer", None, TypeError, "a Tokenizer of nomicbert, not builtins.NoneType"),
    ],
)
def test_an_invalid_value_of_a_reranker(
    name: str, value: Any, error: type, message: str, reranker: CrossEncoder
) -> None:
    with pytest.raises(error, match=message):
        setattr(reranker, name, value)


def test_an_activation_in_a_call_is_checked(reranker: CrossEncoder) -> None:
    with pytest.raises(
        TypeError, match=r"activation_fn must be a function: Tanh\(\), not the class"
    ):
        reranker.predict(PAIRS, activation_fn=torch.nn.Tanh)
    empty = torch.nn.Sequential()  # false, because it has no modules
    raw = reranker.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_array_equal(reranker.predict(PAIRS, activation_fn=empty), raw)


class Sigmoid(torch.nn.Module):
    """Not torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("activation", [torch.nn.GELU("tanh"), Sigmoid()])
def test_an_activation_with_a_known_name_that_is_another(
    activation: Any, reranker: CrossEncoder, tmp_path: Path
) -> None:
    reranker.activation_fn = torch.nn.Tanh()
    reranker.save_pretrained(tmp_path / "b")
    reranker.activation_fn = activation
    with pytest.warns(
        ConfigWarning, match=r"activation_fn has no name in torch\.nn and is not sav"
    ):
        reranker.save_pretrained(tmp_path / "b")
    again = CrossEncoder(tmp_path / "b").predict(PAIRS)  # the default, and not Tanh
    np.testing.assert_allclose(
        again, reranker.predict(PAIRS, activation_fn=torch.nn.Sigmoid()), rtol=0, atol=BOUND
    )


def test_the_limit_of_the_constructor(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path)
    model = CrossEncoder.from_pretrained(folder, max_length=12)
    judge = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=12)
    with pytest.warns(TruncationWarning, match="1 of 2 pairs were longer than 12 tokens"):
        found = model.predict(PAIRS)
    np.testing.assert_allclose(found, judge.predict(PAIRS), rtol=0, atol=BOUND)
    with pytest.raises(ValueError, match="max_seq_length must be 1 to 96, not 97"):
        CrossEncoder(folder, max_length=97)
