"""loading.sentence_settings: each key that sentence-transformers reads is honoured or refused."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.base.modules import Transformer

from nomicbert import ConfigWarning, CrossEncoder, Embedder
from nomicbert.describe import describe
from nomicbert.errors import ConfigError
from nomicbert.loading import sentence_settings
from nomicbert.loading.sentence_settings import MODEL_KEYS, MODEL_NEUTRAL
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES

MODEL = "config_sentence_transformers.json"
SERVED = "sentence_bert_config.json"
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
BOUND = 1e-5


def build(folder: Path, variant: str = "minilm") -> Path:
    return build_checkpoint(folder, variant, num_hidden_layers=1)


def state(folder: Path, name: str, **settings: Any) -> None:
    path = folder / name
    stated = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**stated, **settings}), "utf-8")


def keys_read(function: Any) -> set[str]:
    """The keys that a function of sentence-transformers takes from `model_config`."""
    source = inspect.getsource(function)
    tree = ast.parse(source.replace("\n    ", "\n").lstrip())
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="model_config"), attr="get"),
                args=[ast.Constant(value=key), *_],
            ):
                found.add(key)
            case ast.Subscript(value=ast.Name(id="model_config"), slice=ast.Constant(value=key)):
                found.add(key)
    return found


def test_every_key_of_sentence_transformers_is_known() -> None:
    """A later version that reads another key fails here."""
    facades = (sentence_transformers.SentenceTransformer, sentence_transformers.CrossEncoder)
    read = {"model_type"}  # by _get_model_type
    for facade in facades:
        for kind in facade.__mro__:
            for name in ("_parse_model_config", "_load_config_modules"):
                if name in vars(kind):
                    read |= keys_read(vars(kind)[name])
    assert {"truncate_dim", "prompts", "activation_fn", "requirements"} <= read
    assert read <= MODEL_KEYS | MODEL_NEUTRAL.keys()


def test_every_argument_of_their_transformer_is_known(tmp_path: Path) -> None:
    """Each is a key of sentence_bert_config.json; a value that matters is refused by name."""
    build(tmp_path)
    arguments = set(inspect.signature(inspect.unwrap(Transformer.__init__)).parameters)
    assert {"max_seq_length", "query_length", "processing_kwargs"} <= arguments
    for key in arguments - {"self", "model_name_or_path", "backend"}:
        state(tmp_path, SERVED, **{key: {"x": "y"}})
        if key == "unpad_inputs":  # decides on padding only
            assert Embedder(tmp_path).encode(["fox"]).shape == (1, 64)
        else:
            with pytest.raises(ConfigError, match=f"{SERVED}: .*{key}"):
                Embedder(tmp_path)
        state(tmp_path, SERVED, **{key: None})
    Embedder(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (MODEL, {"keep_in_fp32_modules": ["0.model.classifier"]}, "keep_in_fp32_modules = "),
        (MODEL, {"max_active_dims": 3}, "max_active_dims = 3 is not supported"),
        (MODEL, {"truncate_dim": 0}, "truncate_dim must be 1 to 64, not 0"),
        (MODEL, {"truncate_dim": 65}, "truncate_dim must be 1 to 64, not 65"),
        (MODEL, {"truncate_dim": "8"}, "truncate_dim must be a number, not '8'"),
        (MODEL, {"similarity_fn_name": "maxsim"}, "similarity_fn_name must be one of .* 'maxsim'"),
        (MODEL, {"similarity_fn_name": ""}, "similarity_fn_name must be one of .* not ''"),
        (MODEL, {"similarity_fn_name": "Dot"}, "similarity_fn_name must be one of .* not 'Dot'"),
        (SERVED, {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask' is not supp"),
        (SERVED, {"module_output_name": "sentence_embedding"}, "module_output_name = 'sentence_e"),
        (SERVED, {"modality_config": {**TEXT, "message": TEXT["text"]}}, "modality_config = "),
        (SERVED, {"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args has model_max_leng"),
        (SERVED, {"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs has hidden_act"),
        (SERVED, {"processor_kwargs": 3}, "processor_kwargs must be an object, not 3"),
        (SERVED, {"query_length": 32}, "query_length = 32 is not supported"),
        (SERVED, {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs = "),
        (SERVED, {"pad": True}, "not supported: pad. Remove them"),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build(tmp_path)
    state(tmp_path, name, **settings)
    for read in (Embedder, describe):
        with pytest.raises(ConfigError, match=message) as caught:
            read(tmp_path)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (MODEL, {"requirements": {"torch": ">=1"}, "__version__": {"pytorch": "2.0"}}),
        (MODEL, {"keep_in_fp32_modules": [], "unknown": None, "model_type": "SentenceTransformer"}),
        (SERVED, {"transformer_task": "feature-extraction", "modality_config": TEXT}),
        (SERVED, {"module_output_name": "token_embeddings", "unpad_inputs": False}),
        (SERVED, {"model_args": {"attn_implementation": "eager", "dtype": "float32"}}),
        (SERVED, {"processor_kwargs": {}, "config_args": {"use_cache": False}}),
        (SERVED, {"model_args": {"add_pooling_layer": False}}),
        (MODEL, {"prompts": {"query": None}}),
    ],
)
def test_a_setting_without_effect(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path)
    wanted = Embedder(tmp_path).encode(SENTENCES)
    state(tmp_path, name, **settings)
    np.testing.assert_array_equal(Embedder(tmp_path).encode(SENTENCES), wanted)


def test_a_dtype_for_transformers_gives_a_warning(tmp_path: Path) -> None:
    state(build(tmp_path), SERVED, model_args={"torch_dtype": "bfloat16"})
    with pytest.warns(ConfigWarning, match="torch_dtype = 'bfloat16', .* by default float32"):
        assert str(Embedder(tmp_path).model.dtype) == "torch.float32"


def test_what_sentence_transformers_writes_is_read(tmp_path: Path) -> None:
    judge = sentence_transformers.SentenceTransformer(str(build(tmp_path / "a")), device="cpu")
    judge.save_pretrained(str(tmp_path / "b"), create_model_card=False)
    written = json.loads((tmp_path / "b" / SERVED).read_text("utf-8"))
    assert {"transformer_task", "modality_config", "module_output_name"} <= written.keys()
    found = Embedder(tmp_path / "b").encode(SENTENCES)
    np.testing.assert_allclose(found, judge.encode(SENTENCES), rtol=0, atol=BOUND)


def test_an_older_name_of_the_file(tmp_path: Path) -> None:
    """sentence-transformers looks for seven names, and an empty file does not count."""
    build(tmp_path)
    (tmp_path / SERVED).write_text("{}")
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 7}')
    (tmp_path / "sentence_xlnet_config.json").write_text('{"max_seq_length": 9}')
    judge = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert Embedder(tmp_path).max_seq_length == judge.max_seq_length == 7
    theirs = inspect.getsource(Transformer.load_config)
    for name in sentence_settings.TRANSFORMER_FILES:
        assert f'"{name}"' in theirs


def test_the_default_width(tmp_path: Path) -> None:
    """truncate_dim of the file is that of a call that gives no width, and is saved."""
    build(tmp_path / "a", "conan-v1")
    full = Embedder(tmp_path / "a").encode(SENTENCES)
    state(tmp_path / "a", MODEL, truncate_dim=8)
    embedder = Embedder(tmp_path / "a")
    judge = sentence_transformers.SentenceTransformer(str(tmp_path / "a"), device="cpu")
    calls: list[dict[str, Any]] = [
        {},
        {"normalize_embeddings": True},
        {"truncate_dim": 5},
        {"truncate_dim": 112},
        {"truncate_dim": None},
    ]
    for keywords in calls:
        found, wanted = embedder.encode(SENTENCES, **keywords), judge.encode(SENTENCES, **keywords)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND)
    assert embedder.get_embedding_dimension() == judge.get_embedding_dimension() == 8
    np.testing.assert_array_equal(embedder.encode(SENTENCES), full[:, :8])
    np.testing.assert_array_equal(np.stack([*embedder.encode_iter(SENTENCES)]), full[:, :8])
    for method in (embedder.encode_query, embedder.encode_document):
        assert method(SENTENCES).shape[1] == 8
    assert embedder.encode(SENTENCES, matryoshka_dim=12).shape[1] == 12
    assert embedder.encode(SENTENCES, precision="int8").shape[1] == 8
    states = embedder.encode(SENTENCES[0], output_value="token_embeddings")
    theirs = judge.encode(SENTENCES[0], output_value="token_embeddings")
    assert states.shape == theirs.shape
    assert states.shape[1] > 8
    embedder.truncate_dim = 6
    embedder.save_pretrained(tmp_path / "b")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "b"), device="cpu")
    assert again.truncate_dim == Embedder(tmp_path / "b").truncate_dim == 6
    np.testing.assert_allclose(again.encode(SENTENCES), full[:, :6], rtol=0, atol=BOUND)
    assert "encode keeps 8 of 112 columns by default" in str(describe(tmp_path / "a").notes)


def test_a_rerankers_file(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path)
    state(folder, MODEL, keep_in_fp32_modules=["0.model.classifier"])
    with pytest.raises(ConfigError, match="keep_in_fp32_modules"):
        CrossEncoder(folder)
    state(folder, MODEL, keep_in_fp32_modules=None, threshold=0.5)
    with pytest.warns(ConfigWarning, match="settings that are not known: threshold"):
        CrossEncoder(folder)
