"""Embedder in place of SentenceTransformer: the same calls, beside the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from nomicbert import Embedder, ModelCardData
from nomicbert.user_warnings import PromptWarning, TruncationWarning
from tests.support.checkpoints import build_checkpoint

TEXTS = ["what is deep learning", "the river is long " * 3, "fox"]
BOUND = 1e-5
HERE = "nomicbert.runtime"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("e"), "conan-v1", num_hidden_layers=1)


@pytest.fixture
def ours(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture
def theirs(folder: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    "arguments",
    [
        (None,),
        ("query",),
        (None, "find: "),
        (None, "find: ", 2, False),
        (None, None, 32, False, "sentence_embedding", "float32", False, True),
        (None, None, 32, None, "sentence_embedding", "ubinary"),
        (None, None, 2, None, "sentence_embedding", None, True, False, "cpu", True, 8),
    ],
    ids=str,
)
def test_arguments_by_position(arguments: tuple[Any, ...], ours: Embedder, theirs: Any) -> None:
    for model in (ours, theirs):
        model.prompts = {"query": "look for: ", "document": "this is: "}
    for call in ("encode", "encode_query", "encode_document"):
        found, wanted = (getattr(m, call)(TEXTS, *arguments) for m in (ours, theirs))
        assert type(found) is type(wanted)
        assert found.dtype == wanted.dtype
        close(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((2,), {"batch_size": 2}),
        ((np.int64(2),), {"batch_size": 2}),
        ((2, False, "token_embeddings"), {"output_value": "token_embeddings"}),
        ((2, False, "sentence_embedding", False), {"convert_to_numpy": False}),
        ((2, None, "sentence_embedding", True, True, "cpu", True), {"normalize_embeddings": True,
                                                                   "convert_to_tensor": True}),
    ],
    ids=str,
)  # fmt: skip
def test_the_order_before_2_4(
    arguments: tuple[Any, ...], keywords: dict[str, Any], ours: Embedder
) -> None:
    found, wanted = ours.encode(TEXTS, *arguments), ours.encode(TEXTS, **keywords)
    assert type(found) is type(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_size_by_position_acts(ours: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, forward = [], ours.embedding_model.forward

    def spy(batch: Any, finish: Any) -> torch.Tensor:
        sizes.append(len(batch.lengths))
        return forward(batch, finish)

    monkeypatch.setattr(ours.embedding_model, "forward", spy)
    ours.encode(TEXTS, 2)
    assert sorted(sizes) == [1, 2]
    ours.encode(TEXTS, None, None, 1)
    assert sorted(sizes) == [1, 1, 1, 1, 2]


def test_mistaken_positions(ours: Embedder) -> None:
    with pytest.raises(TypeError, match=r"^Embedder.encode takes at most 13 .*, not 14: give"):
        ours.encode(TEXTS, *[None] * 14)
    with pytest.raises(TypeError, match=r"^Embedder.encode takes at most 7 arguments by"):
        ours.encode(TEXTS, 32, *[None] * 7)
    with pytest.raises(TypeError, match=r"^Embedder.encode_query was given prompt twice, by"):
        ours.encode_query(TEXTS, None, "find: ", prompt="in: ")
    with pytest.raises(ValueError, match="unknown prompt_name True"):
        ours.encode(TEXTS, True)


@pytest.mark.parametrize("prompt", [None, "find: "])
@pytest.mark.parametrize("truncate_dim", [None, 8])
def test_all_outputs(
    prompt: str | None, truncate_dim: int | None, ours: Embedder, theirs: Any
) -> None:
    """The same keys and values; there the rows are padded to the longest of a batch."""
    keywords = {"output_value": None, "prompt": prompt, "truncate_dim": truncate_dim}
    found, wanted = ours.encode(TEXTS, **keywords), theirs.encode(TEXTS, **keywords)
    lone = ours.encode(TEXTS[1], **keywords)
    assert isinstance(found, list)
    for one, other in zip([*found, lone], [*wanted, wanted[1]], strict=True):
        assert one.keys() == other.keys()
        count = int(other["attention_mask"].sum())
        for name, value in other.items():
            if not isinstance(value, torch.Tensor):
                assert one[name] == value, name
            elif name == "sentence_embedding":
                assert one[name].shape == value.shape
                close(one[name], value)
            else:
                assert len(one[name]) == count
                close(one[name], value[:count])
    assert ours.encode([], output_value=None) == []


def test_mistakes_with_all_outputs(ours: Embedder) -> None:
    with pytest.raises(ValueError, match="precision is for vectors: output_value None"):
        ours.encode(TEXTS, output_value=None, precision="int8")
    with pytest.raises(ValueError, match="truncate='mean' gives one vector, not token_embeddings"):
        ours.encode(TEXTS, output_value=None, truncate="mean")
    with pytest.raises(ValueError, match="encode_iter gives vectors or token_embeddings"):
        ours.encode_iter(TEXTS, output_value=None)
    with pytest.warns(TruncationWarning, match=r"\d of 3 texts were long") as caught:
        ours.encode(TEXTS, output_value=None, max_length=9)
    assert len(caught) == 1


def test_no_precision_is_float32(ours: Embedder, theirs: Any) -> None:
    close(ours.encode(TEXTS, precision=None), theirs.encode(TEXTS, precision=None))
    assert next(ours.encode_iter(TEXTS, precision=None)).dtype == np.float32


@pytest.mark.parametrize(
    ("method", "given", "passed"),
    [
        ("encode_query", {}, {"prompt_name": "query", "prompt": None}),
        ("encode_document", {"sentences": TEXTS}, {"prompt_name": "document", "inputs": TEXTS}),
        ("encode_query", {"prompt": "x"}, {"prompt_name": None, "prompt": "x"}),
        ("encode_document", {"prompt_name": "web"}, {"prompt_name": "web", "prompt": None}),
        ("encode_query", {"chunk_size": 3, "mine": 1}, {"chunk_size": 3, "mine": 1}),
    ],
)
def test_what_a_subclass_sees(
    method: str, given: dict[str, Any], passed: dict[str, Any], folder: Path
) -> None:
    """A subclass may define `encode`: the other two call it, with all that they were given."""

    class Mine(Embedder):
        def encode(self, *inputs: Any, **keywords: Any) -> Any:
            return inputs, keywords

    inputs = () if "sentences" in given else (TEXTS,)
    by_position, keywords = getattr(Mine(folder), method)(*inputs, **given)
    assert by_position == ()
    assert keywords["inputs"] is TEXTS
    assert keywords["task"] == method.removeprefix("encode_")
    assert passed.items() <= keywords.items()


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
def test_processing_kwargs(ours: Embedder, theirs: Any) -> None:
    plain = ours.encode(TEXTS)
    settings = {"text": {"max_length": 5, "truncation": True}, "common": {"return_tensors": "pt"}}
    found = ours.encode(TEXTS, processing_kwargs=settings)
    close(found, theirs.encode(TEXTS, processing_kwargs=settings))
    assert np.abs(found - plain).max() > 1e-3
    with pytest.raises(ValueError, match=r"max_length or processing_kwargs\['text'\]"):
        ours.encode(TEXTS, processing_kwargs=settings, max_length=6)
    for wrong, error, message in (
        (3, TypeError, "processing_kwargs must be a dict, not 3"),
        ({"image": {}}, TypeError, r"processing_kwargs\['image'\] is not supported: it may have"),
        ({"text": {"stride": 3}}, TypeError, r"\['text'\]\['stride'\] is not supported: give max"),
        ({"text": {"truncation": False}}, ValueError, "must be True, not False: texts are cut"),
        ({"text": {"max_length": "5"}}, TypeError, "must be an integer, not '5'"),
    ):
        with pytest.raises(error, match=message):
            ours.encode(TEXTS, processing_kwargs=wrong)  # type: ignore[call-overload]


def test_preprocess(ours: Embedder, theirs: Any) -> None:
    for keywords in ({}, {"prompt": "find: "}):
        found, wanted = ours.preprocess(TEXTS, **keywords), theirs.preprocess(TEXTS, **keywords)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.array_equal(found[name], value), name
    assert torch.equal(ours.tokenize(TEXTS)["input_ids"], theirs.tokenize(TEXTS)["input_ids"])
    settings = {"text": {"max_length": 5}}
    with pytest.warns(TruncationWarning, match=r"\d of 3 texts were longer than 5"):
        cut = ours.preprocess(TEXTS, processing_kwargs=settings)
    assert torch.equal(
        cut["input_ids"], theirs.preprocess(TEXTS, processing_kwargs=settings)["input_ids"]
    )
    ours.default_prompt_name = "query"
    ours.prompts = {"query": "find: "}
    assert "prompt_length" not in ours.preprocess(TEXTS)
    with pytest.raises(TypeError, match=r"must be a list of str, not one str: give \[text\]"):
        ours.preprocess("fox")
    with pytest.raises(TypeError, match="prompt must be a str, not 3"):
        ours.preprocess(TEXTS, prompt=3)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The `truncate_sentence_embeddings` method:FutureWarning")
def test_truncate_embeddings(ours: Embedder, theirs: Any) -> None:
    for name in ("truncate_embeddings", "truncate_sentence_embeddings"):
        with getattr(ours, name)(8), getattr(theirs, name)(8):
            close(ours.encode(TEXTS), theirs.encode(TEXTS))
            assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 8
        assert ours.truncate_dim is None
    ours.truncate_dim = 16
    with pytest.raises(KeyError), ours.truncate_embeddings(4):
        raise KeyError
    assert ours.truncate_dim == 16
    with pytest.raises(ValueError, match="truncate_dim must be 1"), ours.truncate_embeddings(0):
        pass
    assert ours.truncate_dim == 16


def test_prompts_are_excluded_from_pooling(ours: Embedder, theirs: Any) -> None:
    plain = ours.encode(TEXTS, prompt="find: ")
    for model in (ours, theirs):
        model.set_pooling_include_prompt(False)
    close(ours.encode(TEXTS, prompt="find: "), theirs.encode(TEXTS, prompt="find: "))
    assert np.abs(ours.encode(TEXTS, prompt="find: ") - plain).max() > 1e-3


def test_small_things(ours: Embedder, theirs: Any) -> None:
    for name in ("prompts", "default_prompt_name", "max_seq_length", "modalities", "dtype",
                 "device", "training", "similarity_fn_name", "truncate_dim",
                 "SUPPORTED_SIMILARITY_FN_NAMES"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    for call in ("get_max_seq_length", "get_model_kwargs", "get_embedding_dimension"):
        assert getattr(ours, call)() == getattr(theirs, call)(), call
    for modality in ("text", "image", ("text", "image")):
        assert ours.supports(modality) == theirs.supports(modality)
    for inputs in ("fox", ["fox"], ("fox",), np.array(["fox"])):
        assert ours.is_singular_input(inputs) == theirs.is_singular_input(inputs)
    assert ours.config.hidden_size == theirs.config.hidden_size
    assert ours.processor is ours.tokenizer
    a, b = ours.encode(TEXTS), ours.encode(TEXTS[:1])
    for call in ("similarity", "similarity_pairwise"):
        given = {"embeddings1": a[:1], "embeddings2": b}
        close(getattr(ours, call)(**given), getattr(theirs, call)(**given))


def test_modules_have_no_index(ours: Embedder) -> None:
    for use in (lambda: ours[0].auto_model, lambda: ours[-1]):
        with pytest.raises(TypeError, match="Embedder is no list of modules: in place of model"):
            use()
    with pytest.raises(TypeError, match="not iterable"):
        iter(ours)  # type: ignore[call-overload]
    assert ours


def test_save(ours: Embedder, tmp_path: Path) -> None:
    ours.similarity_fn_name = "dot"
    for folder, keywords in (("a", {}), ("b", {"create_model_card": False})):
        ours.save(tmp_path / folder, **keywords)
        assert (tmp_path / folder / "README.md").exists() is (folder == "a")
        again = sentence_transformers.SentenceTransformer(str(tmp_path / folder), device="cpu")
        close(again.encode(TEXTS), ours.encode(TEXTS))
        assert again.similarity_fn_name == "dot"
    ours.save(tmp_path / "c", model_name="me/mine", train_datasets=["you/texts"])
    card = (tmp_path / "c/README.md").read_text("utf-8")
    assert "me/mine" in card
    assert "you/texts" in card
    with pytest.raises(ValueError, match="safe_serialization=False is not supported"):
        ours.save(tmp_path / "d", safe_serialization=False)
    assert not (tmp_path / "d").exists()


def test_data_of_a_card_when_loading(folder: Path, tmp_path: Path) -> None:
    data = ModelCardData(model_id="me/mine", language="en")
    ours = Embedder(folder, model_card_data=data)
    assert ours.model_card_data is data
    with pytest.raises(TypeError, match=r"must be a nomicbert.ModelCardData.*not builtins.dict"):
        Embedder(folder, model_card_data={})  # type: ignore[arg-type]


def test_methods_of_a_module(ours: Embedder, folder: Path) -> None:
    model = ours.embedding_model
    assert [*map(id, ours.parameters())] == [*map(id, model.parameters())]
    assert [name for name, _ in ours.named_parameters()] == [*model.state_dict()]
    assert [*ours.modules()] == [module for _, module in ours.named_modules()]
    assert [*ours.children()] == [ours.model, ours.pooling]
    assert dict(ours.named_children()) == {"encoder": ours.model, "pooling": ours.pooling}
    assert ours.train() is ours
    assert ours.training
    assert ours.model.training
    assert ours.eval() is ours
    assert not ours.training
    assert not ours.model.training
    assert ours.requires_grad_(False) is ours
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    ours.requires_grad_()
    model(ours.batch(TEXTS)).sum().backward()
    assert any(parameter.grad is not None for parameter in ours.parameters())
    ours.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())
    seen: list[torch.nn.Module] = []
    assert ours.apply(seen.append) is ours
    assert set(seen) == set(ours.modules())


def test_parameters_that_are_set(ours: Embedder, folder: Path) -> None:
    wanted, kept = ours.encode(TEXTS), {k: v.clone() for k, v in ours.state_dict().items()}
    with torch.no_grad():
        next(iter(ours.parameters())).mul_(2)
    assert np.abs(ours.encode(TEXTS) - wanted).max() > 1e-3
    ours.load_state_dict(kept)
    np.testing.assert_array_equal(ours.encode(TEXTS), wanted)
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})
    ours.load_state_dict({}, strict=False)


def test_casts_and_moves(ours: Embedder) -> None:
    wanted = ours.encode(TEXTS)
    for call, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        assert getattr(ours, call)() is ours
        assert ours.dtype == dtype
        assert all(parameter.dtype == dtype for parameter in ours.parameters())
        found = ours.encode(TEXTS)
        assert found.dtype == np.float32
        assert 0 < np.abs(found - wanted).max() < 1
    assert ours.float().dtype == ours.to(torch.float32).dtype == torch.float32
    assert ours.cpu() is ours
    if not torch.cuda.is_available():
        for device in (None, 0, torch.device("cuda:1")):
            with pytest.raises(ValueError, match="cannot use the device"):
                ours.cuda(device)
    with pytest.raises(ValueError, match="device must be one device's name, not None"):
        ours.to(None)  # type: ignore[arg-type]


def test_prompts_that_are_there_when_loaded(tmp_path: Path) -> None:
    """Where a card has prompts of its own, these keep their part of encode_query."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    ours = Embedder(tmp_path)
    assert "query" not in ours.prompts
    vectors = ours.encode_query(TEXTS)
    np.testing.assert_array_equal(vectors, ours.encode(TEXTS, prompt_name="search_query"))
    own = Embedder(tmp_path, prompts={"query": "look for: "})
    assert [*own.prompts][-1] == "query"
    np.testing.assert_array_equal(own.encode_query(TEXTS), ours.encode(TEXTS, prompt="look for: "))
    with pytest.warns(PromptWarning, match="prompt and prompt_name are given"):
        own.encode(TEXTS, "query", "look for: ")
