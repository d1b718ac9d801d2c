"""loading.sentence_keywords: the constructor's arguments as sentence-transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from nomicbert import Embedder
from nomicbert.errors import CheckpointError
from nomicbert.loading.sentence_keywords import translate
from nomicbert.user_warnings import ConfigWarning, PromptWarning, TruncationWarning
from tests.support.checkpoints import build_checkpoint

TEXTS = ["what is deep learning", "the river is long and the fox is in deep learning " * 3 + "fox"]
LOCATION = {
    "path_or_repo_id": "some/model",
    "revision": None,
    "cache_dir": None,
    "token": None,
    "local_files_only": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("e"), "conan-v1", num_hidden_layers=1)


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
@pytest.mark.parametrize(
    "keywords",
    [
        {"truncate_dim": 8},
        {"prompts": {"query": "find: "}},
        {"prompts": {"topic": "about: "}, "default_prompt_name": "topic"},
        {"default_prompt_name": "document"},
        {"similarity_fn_name": "manhattan"},
        {"similarity_fn_name": sentence_transformers.SimilarityFunction.DOT_PRODUCT},
        {"tokenizer_kwargs": {"model_max_length": 6, "use_fast": True}},
        {"processor_kwargs": {"model_max_length": 6, "truncation_side": "left"}},
        {"model_kwargs": {"attn_implementation": "eager", "torch_dtype": torch.float32}},
        {"config_kwargs": {"use_cache": False}, "trust_remote_code": True, "backend": "torch"},
    ],
    ids=str,
)
def test_a_keyword_means_what_it_means_there(keywords: dict[str, Any], folder: Path) -> None:
    judge = sentence_transformers.SentenceTransformer(str(folder), device="cpu", **keywords)
    for ours in (
        Embedder(model_name_or_path=folder, **keywords),
        Embedder.from_pretrained(folder, **keywords),
    ):
        assert (ours.prompts, ours.default_prompt_name) == (
            judge.prompts,
            judge.default_prompt_name,
        )
        assert ours.max_seq_length == judge.max_seq_length
        assert ours.truncate_dim == judge.truncate_dim
        for call in ("encode", "encode_query", "encode_document"):
            found, wanted = getattr(ours, call)(TEXTS), getattr(judge, call)(TEXTS)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            ours.similarity(found, found), judge.similarity(wanted, wanted), rtol=1e-4, atol=1e-4
        )


def test_what_is_set_acts(folder: Path) -> None:
    """The comparison above would not see a keyword that neither library honours."""
    plain = Embedder(folder).encode(TEXTS)
    for keywords in (
        {"prompts": {"topic": "about: "}, "default_prompt_name": "topic"},
        {"tokenizer_kwargs": {"model_max_length": 6}},
        {"tokenizer_kwargs": {"model_max_length": 6, "truncation_side": "left"}},
    ):
        embedder = Embedder(folder, **keywords)
        if "tokenizer_kwargs" in keywords:
            with pytest.warns(TruncationWarning, match="longer than 6 tokens"):
                found = embedder.encode(TEXTS)
        else:
            found = embedder.encode(TEXTS)
        assert np.abs(found - plain).max() > 1e-3
        plain = found


def test_entries_that_are_keywords_here(folder: Path, tmp_path: Path) -> None:
    half = Embedder(folder, model_kwargs={"torch_dtype": "bfloat16", "device_map": "cpu"})
    assert half.dtype == torch.bfloat16
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    for name in ("model_kwargs", "config_kwargs"):
        scaled = Embedder(tmp_path, **{name: {"rotary_scaling_factor": 2}})
        assert scaled.config == Embedder(tmp_path, rotary_scaling_factor=2).config
        assert scaled.config != Embedder(tmp_path).config


def test_one_dtype_under_two_names(folder: Path) -> None:
    half = Embedder(folder, dtype=torch.bfloat16, model_kwargs={"torch_dtype": "bfloat16"})
    assert half.dtype == torch.bfloat16
    for entry in ("dtype", "torch_dtype"):
        assert Embedder(folder, dtype="bfloat16", model_kwargs={entry: None}).dtype == half.dtype
        assert Embedder(folder, model_kwargs={entry: None}).dtype == torch.float32


def test_dropout_among_the_settings_of_the_model(folder: Path) -> None:
    given = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.25}
    config = Embedder(folder, config_kwargs=given).model.config
    assert {name: getattr(config, name) for name in given} == given


def test_a_tokenizers_limit_above_the_positions(folder: Path) -> None:
    """As of a CrossEncoder."""
    with pytest.warns(
        ConfigWarning, match="model_max_length = 8192 is more than the 512 positions"
    ):
        model = Embedder(folder, processor_kwargs={"model_max_length": 8192})
    assert model.max_seq_length == 512


@pytest.mark.parametrize("name", ["passage", "corpus", "search_document"])
def test_a_given_prompt_for_documents_is_used(name: str, folder: Path, tmp_path: Path) -> None:
    """Also where the checkpoint was saved with an empty one under sentence-transformers' name."""
    given = {"query": "query: ", name: "passage: "}
    Embedder(folder).save_pretrained(tmp_path)
    for source in (folder, tmp_path):
        ours = Embedder(source, prompts=given)
        assert ours.prompts == given
        for found, prompt in (
            (ours.encode_document(TEXTS[0]), "passage: "),
            (ours.encode_query(TEXTS[0]), "query: "),
        ):
            assert np.array_equal(found, ours.encode(TEXTS[0], prompt=prompt))
    own = Embedder(folder, prompts={"document": "", **given})
    assert np.array_equal(own.encode_document(TEXTS[0]), own.encode(TEXTS[0], prompt=""))


def test_a_further_prompt_does_not_replace_the_cards(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    ours = Embedder(tmp_path, prompts={"extra": "x: ", "none": ""})
    with pytest.warns(PromptWarning, match="trained with a task prefix"):
        ours.encode("fox")


def test_a_truncation_side_is_saved(folder: Path, tmp_path: Path) -> None:
    ours = Embedder(folder, tokenizer_kwargs={"truncation_side": "left"})
    ours.save_pretrained(tmp_path)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert again.tokenizer.truncation_side == "left"
    assert Embedder(tmp_path).tokenizer.cuts_start


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"model_kwargs": {"quantization_config": 1}}, TypeError, "model_kwargs has 'quantization_"
         "config', which is not supported: give backend='int8'"),
        ({"model_kwargs": {"file_name": "onnx/model.onnx"}}, TypeError, "`nomicbert export`"),
        ({"model_kwargs": {"revision": "x"}}, TypeError, "give it to the constructor itself"),
        ({"model_kwargs": {"num_labels": 2}}, TypeError, "model_kwargs has 'num_labels', .*models"),
        ({"model_kwargs": 3}, TypeError, "model_kwargs must be a dict with names .*, not 3"),
        ({"tokenizer_kwargs": {"do_lower_case": True}}, TypeError, "tokenizer_kwargs has 'do_lower_"
         "case', which is not supported: change tokenizer_config.json"),
        ({"processor_kwargs": {"model_max_length": 8.0}}, TypeError, r"processor_kwargs\['model_max"
         r"_length'\] must be an integer, not 8.0"),
        ({"processor_kwargs": {"model_max_length": 2}}, ValueError, "max_seq_length must be 3 to"),
        ({"processor_kwargs": {"truncation_side": "up"}}, ValueError, "be 'left' or 'right'"),
        ({"processor_kwargs": {}, "tokenizer_kwargs": {}}, TypeError, "processor_kwargs or token"),
        ({"config_kwargs": {"hidden_size": 3}}, TypeError, "config_kwargs has 'hidden_size', which "
         "is not supported: change config.json"),
        ({"backend": "onnx"}, ValueError, "backend 'onnx' is not one of .* `nomicbert export`"),
        ({"backend": "openvino"}, ValueError, "backend 'openvino' is not one of this package"),
        ({"prompts": ["query: "]}, TypeError, "prompts must be a dict"),
        ({"prompts": {"query": 3}}, TypeError, "a dict of str, not"),
        ({"default_prompt_name": "web"}, ValueError, "'web' is not among its prompts, which are"),
        ({"similarity_fn_name": "maxsim"}, ValueError, "similarity_fn_name .*MultiVectorEncod"),
        ({"truncate_dim": 0}, ValueError, "truncate_dim must be 1 to 112, not 0"),
        ({"modules": []}, TypeError, "no keyword 'modules': write them into modules.json"),
        ({"model_name_or_path": "other/model"}, TypeError, "path_or_repo_id and model_name_or"),
        ({"cache_folder": "a", "cache_dir": "b"}, TypeError, "cache_dir and cache_folder are"),
        ({"dtype": torch.float32, "model_kwargs": {"torch_dtype": torch.bfloat16}}, TypeError,
         r"not both: \['bfloat16', 'float32'\]"),
        ({"torch_dtype": "bfloat16", "model_kwargs": {"dtype": "auto"}}, TypeError,
         "dtype or torch_dtype"),
        ({"model_kwargs": {"attn_implementation": "paged"}}, ValueError, "be one of 'eager', "),
        ({"model_kwargs": {"low_cpu_mem_usage": "yes"}}, TypeError, "be True, False or None, not"),
        ({"model_kwargs": {"weights_only": False}}, ValueError, "weights_only=False is not supp"),
        ({"model_kwargs": {"use_safetensors": False}}, CheckpointError, "use_safetensors is False"),
        ({"config": {"model_type": "bert"}}, ValueError, "config is for a model alone, .* change"),
        ({"activation_fn": 1}, TypeError, "'activation_fn': give it to CrossEncoder when loading"),
        ({"device": "cpu", "model_kwargs": {"device_map": "cpu"}}, TypeError, "device or model_"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    keywords: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        Embedder(folder, **keywords)


def test_no_checkpoint_at_all() -> None:
    with pytest.raises(TypeError, match="path_or_repo_id is missing: give a folder or a repo"):
        Embedder()


def test_where_checkpoints_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", "/models")
    assert translate(LOCATION, {}).location["cache_dir"] == "/models"
    assert translate(LOCATION, {"cache_folder": "/mine"}).location["cache_dir"] == "/mine"
    own = translate({**LOCATION, "cache_dir": "/own"}, {})
    assert own.location["cache_dir"] == "/own"


def test_the_organisation_that_is_implied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(name: str) -> Any:
        return translate({**LOCATION, "path_or_repo_id": name}, {}).location["path_or_repo_id"]

    assert source("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert source("nomic-embed-text-v1.5") == "nomic-embed-text-v1.5"  # hub says whose it is
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert source("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"


def test_a_token_is_not_shown() -> None:
    assert translate(LOCATION, {"use_auth_token": "hf_secret"}).location["token"] == "hf_secret"
    with pytest.raises(TypeError, match="token and use_auth_token are given") as raised:
        translate({**LOCATION, "token": "hf_other"}, {"use_auth_token": "hf_secret"})
    assert "hf_" not in str(raised.value)
