"""Shared by the tests of `nomicbert info`: checkpoints and the fields expected of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import run_cli

Facts = dict[str, Any]


def info(folder: Path | str, *options: str) -> Facts:
    """The JSON document of a checkpoint."""
    code, out, err = run_cli("info", str(folder), "--json", *options)
    assert (code, err) == (0, "")
    facts: Facts = json.loads(out)
    return facts


MEAN_NOMIC = {
    "model_type": "nomic_bert",
    "pooling": "mean",
    "dense": [],
    "prompt_required": True,
    "default_prompt_name": None,
    "query_prompt_name": "search_query",
    "document_prompt_name": "search_document",
    "max_seq_length": 8192,
    "max_seq_length_source": "sentence_bert_config.json",
    "mlp": {"kind": "swiglu", "experts": 0, "experts_per_token": 0},
    "similarity": "cosine",
    "truncate_dim": None,
}
V15 = MEAN_NOMIC | {"normalize": False, "matryoshka": "layer_norm -> slice -> L2"}
MEAN_BERT = {
    "model_type": "bert",
    "pooling": "mean",
    "dense": [],
    "normalize": True,
    "matryoshka": "slice -> L2",
    "prompts": {},
    "prompt_required": False,
    "query_prompt_name": None,
    "max_seq_length": 512,
    "max_seq_length_source": "sentence_bert_config.json",
    "mlp": {"kind": "gelu", "experts": 0, "experts_per_token": 0},
    "config_keys": "native",
}
RETRIEVAL = "Represent this sentence for searching relevant passages: "
# name -> variant, how it is built, expected fields; those of "files" are not nested here
CASES: dict[str, tuple[str, Facts, Facts]] = {
    "v1.5": ("nomic-v1.5", {}, V15 | {"config_keys": "both"}),
    "v1.5-legacy": ("nomic-v1.5", {"dialect": "legacy"}, V15 | {"config_keys": "legacy"}),
    "v1.5-native": (
        "nomic-v1.5",
        {"dialect": "native"},
        V15 | {"config_keys": "native"},
    ),
    "v1": ("nomic-v1", {}, MEAN_NOMIC | {"normalize": True, "matryoshka": "slice -> L2"}),
    "v2-moe": (
        "nomic-v2-moe",
        {"weights": "sharded"},
        {
            "mlp": {"kind": "gelu", "experts": 8, "experts_per_token": 2},
            "prompts": {"query": "search_query: ", "passage": "search_document: "},
            "prompt_required": False,
            "query_prompt_name": "query",
            "document_prompt_name": "passage",
            "max_seq_length": 512,
            "config_keys": "legacy",
            "format": "safetensors",
            "shards": 2,
            "matryoshka": "slice -> L2",
        },
    ),
    "conan": (
        "conan-v1",
        {},
        MEAN_BERT
        | {
            "dense": [{"in_features": 64, "out_features": 112, "activation": "Identity"}],
            "embedding_dimension": 112,
            "normalize": False,
            "unread": ["pooler.dense.bias", "pooler.dense.weight"],
        },
    ),
    "bge": (
        "bge-en",
        {},
        MEAN_BERT
        | {
            "pooling": "cls",
            "prompts": {"query": RETRIEVAL},
            "query_prompt_name": "query",
            "document_prompt_name": None,
        },
    ),
    "gte": ("gte", {}, MEAN_BERT | {"dtypes": ["float16"], "embedding_dimension": 64}),
    "minilm-bin": (
        "minilm",
        {"weights": "bin"},
        MEAN_BERT
        | {
            "max_seq_length": 256,
            "format": "bin",
            "shards": 1,
            "unread": ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"],
        },
    ),
    "bare": (
        "bert-base-uncased",
        {},
        MEAN_BERT
        | {
            "normalize": False,
            "tensor_prefix": "bert.",
            "max_seq_length_source": "tokenizer_config.json",
        },
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    variant, options, _ = CASES[request.param]
    return request.param, build_checkpoint(tmp_path / request.param, variant, **options)
