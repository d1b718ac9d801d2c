"""Absurd sizes and numbers in settings: refused before anything of that size is built."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import (
    CheckpointError,
    ConfigError,
    CrossEncoder,
    Embedder,
    EncoderConfig,
    NomicBert,
    NomicBertForTokenClassification,
)
from nomicbert.describe import describe
from nomicbert.loading.json_settings import Settings
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.guards import guarded
from tests.support.rerankers import build_reranker

HUGE = 10**399


def refused(folder: Path, error: type[Exception], message: str, **keywords: Any) -> None:
    for load in (Embedder, describe):
        with guarded(), pytest.raises(error, match=message) as caught:
            load(folder, **keywords)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("layers", [10**6, 2**31 - 1])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_more_layers_than_tensors(variant: str, layers: int, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant)
    edit_config(tmp_path, num_hidden_layers=layers, n_layer=layers)
    refused(tmp_path, CheckpointError, rf"states {layers} layers, but there are only \d+ tensors")


def test_layers_of_a_head(tmp_path: Path) -> None:
    build_reranker(tmp_path, num_hidden_layers=10**6)
    for load in (CrossEncoder, NomicBertForTokenClassification.from_pretrained):
        with guarded(), pytest.raises(CheckpointError, match="states 1000000 layers"):
            load(tmp_path)


@pytest.mark.parametrize("multiple", [2 * 10**7, 1025, 0, -64])
def test_padding_of_the_vocabulary(multiple: int, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5")
    edit_config(tmp_path, pad_vocab_size_multiple=multiple)
    message = (
        "pad_vocab_size_multiple must be at least 1 and at most 1024 or the vocabulary's size, "
        f"not {multiple}"
    )
    refused(tmp_path, ConfigError, message)


def test_padding_that_is_accepted(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5")
    before = NomicBert.from_pretrained(tmp_path)
    edit_config(tmp_path, pad_vocab_size_multiple=1024)
    word = NomicBert.from_pretrained(tmp_path).embeddings.word.weight
    rows = before.config.source["vocab_size"]
    assert torch.equal(word[:rows], before.embeddings.word.weight[:rows])
    assert word.shape[0] == 1024
    assert not word[rows:].any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**31, "= 2147483648 is too large, the maximum is 2147483647"),
        (2**63, "= 9223372036854775808 is too large"),
        (HUGE, f"= {str(HUGE)[:40]} is too large"),
        (1e308, r"= 1\d+ is too large"),
        (math.inf, "must be a whole number, not inf"),
        (math.nan, "must be a whole number, not nan"),
        (-(2**63), "= -9223372036854775808 is too large"),
        (0.5, "must be a whole number, not 0.5"),
    ],
)
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "vocab_size"),
        ("config.json", "hidden_size"),
        ("config.json", "num_attention_heads"),
        ("config.json", "type_vocab_size"),
        ("config.json", "max_position_embeddings"),
        ("config.json", "pad_token_id"),
        ("sentence_bert_config.json", "max_seq_length"),
        ("config_sentence_transformers.json", "truncate_dim"),
        ("1_Pooling/config.json", "word_embedding_dimension"),
        ("2_Dense/config.json", "in_features"),
        ("2_Dense/config.json", "out_features"),
    ],
)
def test_whole_numbers(file: str, key: str, value: float, message: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(tmp_path, ConfigError, f"{re.escape(file)}: {key} {message}")


@pytest.mark.parametrize("key", ["layer_norm_epsilon", "initializer_range", "rotary_emb_base"])
def test_numbers_beyond_a_float(key: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", dialect="legacy")
    edit_config(tmp_path, **{key: HUGE})
    refused(tmp_path, ConfigError, f"config.json: {key} = {str(HUGE)[:40]} is too large")


def test_the_length_of_a_tokenizer_may_be_beyond_a_size(tmp_path: Path) -> None:
    """transformers writes 1e30 for no limit."""
    build_checkpoint(tmp_path, "bge-en")
    (tmp_path / "sentence_bert_config.json").unlink()
    path = tmp_path / "tokenizer_config.json"
    for stated in (1e30, 10**30, 2**63):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": stated}))
        assert Embedder(tmp_path).max_seq_length == 512
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": HUGE}))
    refused(tmp_path, ConfigError, r"tokenizer_config.json: model_max_length = 10+ is too large")
    for stated in (float("-inf"), -1e300, -1):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": stated}))
        refused(tmp_path, ConfigError, r"tokenizer_config.json limits texts to 0 tokens")


def test_more_digits_than_python_reads(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(": 512", ": " + "5" * 5000))
    refused(tmp_path, ConfigError, r"config.json is not JSON: Exceeds the limit")


@pytest.mark.parametrize("p", [12, 1.5, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout(key: str, p: float, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    edit_config(tmp_path, **{key: p})
    refused(tmp_path, ConfigError, f"config.json: {key} must be from 0 to 1, not {float(p)}")


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_initializer_range(std: float, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    edit_config(tmp_path, initializer_range=std)
    refused(
        tmp_path,
        ConfigError,
        f"config.json: initializer_range must be finite and at least 0, not {std}",
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 2**31 - 1, "hidden_size": 2**20},
        {"hidden_size": 2**22},
        {"intermediate_size": 2**31 - 1, "hidden_size": 2**12},
        {"max_position_embeddings": 2**31 - 1, "hidden_size": 2**12},
    ],
    ids=str,
)
def test_a_tensor_larger_than_memory(sizes: dict[str, int], tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    edit_config(tmp_path, **sizes)
    refused(tmp_path, ConfigError, "config.json: a tensor of .* elements is larger than any model")


def test_experts_larger_than_memory() -> None:
    with pytest.raises(ConfigError, match="a tensor of 2199023255552 by 64 elements is larger"):
        EncoderConfig(
            "nomic_bert", 100, 64, 2, 4, 2**20, 2, 512, 1e-5,
            rotary_dim=16, max_trained_positions=512, num_experts=2**20, moe_top_k=2,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 10**9}, "num_labels must be 1 to 1000000, not 1000000000"),
        ({"num_labels": -3}, "num_labels must be 1 to 1000000, not -3"),
        ({"num_labels": "2"}, "num_labels must be 1 to 1000000, not '2'"),
        ({"num_labels": 2.5}, "num_labels must be 1 to 1000000, not 2.5"),
        ({"classifier_dropout": 12}, "classifier_dropout must be from 0 to 1, not 12"),
        ({"classifier_dropout": math.nan}, "classifier_dropout must be from 0 to 1, not nan"),
        ({"classifier_dropout": "0.1"}, "classifier_dropout must be from 0 to 1, not '0.1'"),
        ({"problem_type": ["regression"]}, r"problem_type must be one of .* not \['regression'\]"),
        ({"problem_type": 2**63}, "problem_type must be one of .* not 9223372036854775808"),
        ({"id2label": {"1": "a"}}, "id2label must count from 0 without gaps"),
        ({"architectures": 5}, "architectures must be a list of names, not 5"),
        ({"architectures": {"a": 1}}, "architectures must be a list of names"),
        ({"return_dict": "null"}, "return_dict in config.json must be true or false, not 'null'"),
        ({"sbert_ce_default_activation_function": 64}, "activation_fn = 64 is not supported"),
        ({"sentence_transformers": {"activation_fn": "x.Y"}}, "activation_fn = 'x.Y' is not supp"),
        ({"pad_token_id": 10**6}, "pad_token_id = 1000000, but the vocabulary has"),
    ],
    ids=str,
)
def test_settings_of_a_head(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    build_reranker(tmp_path)
    if "num_labels" in settings:
        edit_config(tmp_path, id2label=...)
    edit_config(tmp_path, **settings)
    with guarded(), pytest.raises(ConfigError, match=message) as caught:
        CrossEncoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("stated", ["int8", "torch.float64", "bool", "float8_e4m3fn"])
def test_dtypes_of_no_parameter(stated: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    edit_config(tmp_path, torch_dtype=stated)
    name = stated.removeprefix("torch.")
    refused(
        tmp_path,
        ConfigError,
        f"is stored in torch.{name}, which parameters cannot have: give dtype",
        dtype="auto",
    )
    Embedder(tmp_path, dtype=torch.float32)


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    settings = Settings({"a": "x" * 10**5, "b": [1] * 10**5}, tmp_path)
    for call in (
        lambda: settings.size("a"),
        lambda: settings.number("b"),
        lambda: settings.flag("a", default=True),
        lambda: settings.get("a", "b"),
        lambda: settings.refuse({"b": ()}),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
