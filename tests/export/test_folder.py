"""The folder of an export: its files, their settings, and the facts of the graphs."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import tokenizers
from huggingface_hub import constants
from onnx import TensorProto

import nomicbert
from nomicbert import Embedder
from nomicbert.export import check
from nomicbert.export import onnx as export
from nomicbert.user_warnings import PoolingWarning
from tests.support.checkpoints import build_checkpoint, read_config
from tests.support.fake_hub import FakeHub, Repository
from tests.support.onnx_batches import for_model, open_session, outputs, spread, wanted
from tests.support.rerankers import build_reranker


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONGEST", 32)
    monkeypatch.setattr(check, "TEXTS", check.TEXTS[:3])


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


SETTINGS = {
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "nomicbert_export.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_files(tmp_path: Path) -> None:
    """The names of Transformers.js for the graphs, those of sentence-transformers beside them."""
    folder = build_checkpoint(tmp_path / "model", "conan-v1")
    made = export(folder, tmp_path / "onnx", dtypes=("q8", "fp32", "q8", "fp16"))
    graphs = ["model_quantized.onnx", "model.onnx", "model_fp16.onnx"]
    assert [file.name for file in made.files] == [f"onnx/{name}" for name in graphs]
    assert [file.dtype for file in made.files] == ["q8", "fp32", "fp16"]
    more = {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert files_of(made.folder) == SETTINGS | more | {file.name for file in made.files}
    for file in made.files:
        assert (made.folder / file.name).stat().st_size == file.size


def test_files_of_a_reranker(tmp_path: Path) -> None:
    made = export(build_reranker(tmp_path / "model"), tmp_path / "onnx")
    assert files_of(made.folder) == SETTINGS | {"onnx/model.onnx"}
    kind = read(made.folder / "config_sentence_transformers.json")["model_type"]
    assert kind == "CrossEncoder"


def test_the_record(tmp_path: Path) -> None:
    """What was exported, what it was compared with, and all files of the folder."""
    folder = build_checkpoint(tmp_path / "model", "minilm")
    made = export(folder, tmp_path / "onnx", dtypes=("fp32", "q8"))
    record = read(made.folder / "nomicbert_export.json")
    assert record["nomicbert"] == nomicbert.__version__
    assert (record["task"], record["max_length"]) == ("feature-extraction", 256)
    assert record["fingerprint"] == made.fingerprint == Embedder(folder).fingerprint(prompt="")
    assert {*record["contents"], "nomicbert_export.json"} == files_of(made.folder)
    for stated, file in zip(record["files"], made.files, strict=True):
        assert (stated["name"], stated["dtype"]) == (file.name, file.dtype)
        assert stated["size"] == file.size
        figures = [(one.output, one.value, one.bound) for one in file.differences]
        assert [(one["output"], one["value"], one["bound"]) for one in stated["differences"]] == (
            figures
        )
        assert all(one.holds for one in file.differences)


def test_a_prompt_and_a_slice_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    """A graph gives whole vectors of the tokens that it gets."""
    folder = build_checkpoint(tmp_path / "model", "e5")
    stated = folder / "config_sentence_transformers.json"
    stated.write_text(json.dumps(read(stated) | {"truncate_dim": 16}))
    embedder = Embedder(folder)
    made = export(folder, tmp_path / "onnx")
    assert made.fingerprint == embedder.fingerprint(prompt="", truncate_dim=64)
    assert made.fingerprint != embedder.fingerprint(prompt="")
    assert read(made.folder / stated.name)["truncate_dim"] == 16
    assert made.files[0].differences


def test_config_of_bert(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model", "gte")  # stored in float16
    config = read(export(folder, tmp_path / "onnx").folder / "config.json")
    stated = read_config(folder)
    same = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "hidden_act")
    assert {key: config[key] for key in same} == {key: stated[key] for key in same}
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["BertModel"]


def test_config_of_nomicbert(tmp_path: Path) -> None:
    """Both families of keys, with the scaling that was asked for."""
    folder = build_checkpoint(tmp_path / "model", "nomic-v1-unsupervised")
    config = read(export(folder, tmp_path / "a", rotary_scaling_factor=3).folder / "config.json")
    assert (config["model_type"], config["n_embd"], config["hidden_size"]) == ("nomic_bert", 64, 64)
    assert config["rotary_scaling_factor"] == 3
    assert config["rope_parameters"] == {"rope_theta": 1000.0, "rope_type": "dynamic", "factor": 3}
    config = read(export(folder, tmp_path / "b", rotary_scaling_factor=0).folder / "config.json")
    assert config["rotary_scaling_factor"] is None
    assert config["rope_parameters"]["rope_type"] == "default"


def test_the_scaling_factor_reaches_the_graph(tmp_path: Path, seed: int) -> None:
    folder = build_checkpoint(tmp_path / "model", "nomic-v1-unsupervised", max_trained_positions=32)
    batch = for_model(Embedder(folder), seed, (80, 20))
    found = []
    for factor in (None, 0, 3):
        made = export(folder, tmp_path / str(factor), rotary_scaling_factor=factor)
        embedder = Embedder(folder, rotary_scaling_factor=factor)
        vectors = outputs(open_session(made.folder / "onnx/model.onnx"), batch)[
            "sentence_embedding"
        ]
        assert spread(vectors, wanted(embedder, batch, own_theta=True)[1]) <= 1e-5
        found.append(vectors)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert spread(found[one][:1], found[other][:1]) > 1e-3
        assert spread(found[one][1:], found[other][1:]) < 1e-5


def test_pooling_of_a_bare_checkpoint(tmp_path: Path, seed: int) -> None:
    """The mode is computed, and written down for those who read the folder."""
    folder = build_checkpoint(tmp_path / "model", "bert-base-uncased")
    with pytest.warns(PoolingWarning):
        export(folder, tmp_path / "assumed")
    made = export(folder, tmp_path / "onnx", pooling="lasttoken")
    embedder = Embedder(folder, pooling="lasttoken")
    batch = for_model(embedder, seed, (9, 14))
    vectors = outputs(open_session(made.folder / "onnx/model.onnx"), batch)["sentence_embedding"]
    assert spread(vectors, wanted(embedder, batch)[1]) <= 1e-5
    assert read(made.folder / "1_Pooling/config.json")["pooling_mode_lasttoken"] is True
    with pytest.raises(ValueError, match="pooling"):
        export(build_checkpoint(tmp_path / "stated", "minilm"), tmp_path / "b", pooling="cls")


def test_the_limit_of_texts(tmp_path: Path) -> None:
    """Transformers.js reads model_max_length only: MiniLM's file says 512 there."""
    folder = build_checkpoint(tmp_path / "model", "minilm")
    assert read(folder / "tokenizer_config.json")["model_max_length"] == 512
    made = export(folder, tmp_path / "onnx")
    stated = read(made.folder / "tokenizer_config.json")
    assert stated["model_max_length"] == Embedder(folder).max_seq_length == 256
    assert stated["tokenizer_class"] == "BertTokenizer"
    assert read(made.folder / "sentence_bert_config.json")["max_seq_length"] == 256
    assert read(made.folder / "tokenizer.json")["truncation"] is None


TEXTS = ["The QUICK brown Fox, [SEP] jumps", "ÜNÏCODE Straße İstanbul ΣΑΣ", "", "[MASK] [mask] a"]


@pytest.mark.parametrize("variant", ["minilm", "nomic-v2-moe"])
@pytest.mark.parametrize("lower", [False, True])
def test_lower_case_is_a_normalizer(variant: str, lower: bool, tmp_path: Path) -> None:
    """do_lower_case of sentence-transformers, for readers of tokenizer.json alone: same ids."""
    folder = build_checkpoint(tmp_path / "model", variant)
    if variant == "minilm":
        content = read(folder / "tokenizer.json")
        content["normalizer"]["lowercase"] = False
        (folder / "tokenizer.json").write_text(json.dumps(content))
        stated = read(folder / "tokenizer_config.json") | {"do_lower_case": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    limits = {"max_seq_length": 64, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    cased, _ = Embedder(folder).tokenizer.encode(TEXTS, 64)
    limits["do_lower_case"] = lower
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    made = export(folder, tmp_path / "onnx")
    path = made.folder / "tokenizer.json"
    assert path.read_text("utf-8").count('"Lowercase"') == lower
    stored = tokenizers.Tokenizer.from_file(str(path))
    ids, _ = Embedder(folder).tokenizer.encode(TEXTS, 64)
    assert [stored.encode(text).ids for text in TEXTS] == ids
    assert (ids == cased) is not lower


def test_facts_of_a_graph(tmp_path: Path) -> None:
    """Opset 17 and IR 8, one file, int64 in and float32 out, whatever the precision."""
    folder = build_checkpoint(tmp_path / "model", "conan-v1")
    made = export(folder, tmp_path / "onnx", dtypes=("fp32", "fp16", "q8"))
    for file in made.files:
        path = made.folder / file.name
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 8
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
        assert model.producer_name == "nomicbert"
        assert not model.functions
        assert {tensor.data_location for tensor in model.graph.initializer} == {TensorProto.DEFAULT}
        facts = {fact.key: fact.value for fact in model.metadata_props}
        assert facts == {
            "nomicbert.dtype": file.dtype,
            "nomicbert.task": "feature-extraction",
            "nomicbert.fingerprint": Embedder(folder).fingerprint(prompt=""),
        }
        session = open_session(path)
        given = [(one.name, one.type, one.shape) for one in session.get_inputs()]
        names = ("input_ids", "attention_mask", "token_type_ids")
        assert given == [(name, "tensor(int64)", ["batch", "sequence"]) for name in names]
        results = [(one.name, one.type, one.shape) for one in session.get_outputs()]
        assert results == [
            ("last_hidden_state", "tensor(float)", ["batch", "sequence", 64]),
            ("sentence_embedding", "tensor(float)", ["batch", 112]),
        ]
    kinds = {t.data_type for t in onnx.load(made.folder / "onnx/model_fp16.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in kinds


def test_the_file_is_what_protobuf_would_write(tmp_path: Path) -> None:
    """Weights are written by hand: the message must have no other fields, sizes or values."""
    folder = build_checkpoint(tmp_path / "model", "nomic-v2-moe")
    for file in export(folder, tmp_path / "onnx", dtypes=("fp32", "fp16", "q8")).files:
        content = (tmp_path / "onnx" / file.name).read_bytes()
        model = onnx.ModelProto.FromString(content)
        assert len(model.SerializeToString()) == len(content)
        names = [tensor.name for tensor in model.graph.initializer]
        assert len(names) == len(set(names)) > 20
        large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1024]
        assert len(large) > 20
        for tensor in large:
            assert onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims)


@pytest.mark.parametrize(("dtype", "norms"), [("fp32", 12), ("q8", 0)])
def test_onnxruntime_fuses_the_layers(dtype: Any, norms: int, tmp_path: Path) -> None:
    """Residual and LayerNorm, 2 per layer, where shapes are stated, as q8 does not; GELU."""
    folder = build_checkpoint(tmp_path / "model", "minilm", num_hidden_layers=6)
    made = export(folder, tmp_path / "onnx", dtypes=(dtype,))
    session_file = tmp_path / "optimized.onnx"
    open_session(made.folder / made.files[0].name, session_file)
    kinds = Counter(node.op_type for node in onnx.load(session_file).graph.node)
    assert kinds["SkipLayerNormalization"] == norms
    assert kinds["BiasGelu"] == 6


def test_permissions(tmp_path: Path) -> None:
    """As of any new folder and file, although it begins as a private one."""
    before = os.umask(0o022)
    try:
        made = export(build_checkpoint(tmp_path / "model", "minilm"), tmp_path / "a/b/onnx")
    finally:
        os.umask(before)
    for path in (tmp_path / "a", made.folder, *made.folder.rglob("*")):
        wanted_mode = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted_mode, path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A repository with two revisions, which differ in their number of layers."""
    server = FakeHub()
    repository = server.repositories["acme/tiny"] = Repository(token="hf_secret")
    for revision, layers in (("main", 1), ("v2", 2)):
        place = build_checkpoint(tmp_path / revision, "minilm", num_hidden_layers=layers)
        repository.commit(revision, {name: (place / name).read_bytes() for name in files_of(place)})
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    server.start()
    yield server
    server.stop()


def test_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    """revision, token, cache_dir and local_files_only reach the hub."""
    options: dict[str, Any] = {"token": "hf_secret", "cache_dir": tmp_path / "cache"}
    for revision, layers in ((None, 1), ("v2", 2)):
        made = export("acme/tiny", tmp_path / f"onnx-{layers}", revision=revision, **options)
        assert read(made.folder / "config.json")["num_hidden_layers"] == layers
    requests = len(hub.requests)
    again = export("acme/tiny", tmp_path / "again", local_files_only=True, **options)
    assert read(again.folder / "config.json")["num_hidden_layers"] == 1
    assert len(hub.requests) == requests
    with pytest.raises(nomicbert.HubError, match="No readable repository"):
        export("acme/tiny", tmp_path / "no", token="hf_other", cache_dir=tmp_path / "empty")
    assert not (tmp_path / "no").exists()


def test_steps_are_announced(tmp_path: Path) -> None:
    """2, and 2 per dtype: what a progress bar counts."""
    seen: list[str] = []
    folder = build_checkpoint(tmp_path / "model", "minilm")
    export(folder, tmp_path / "onnx", dtypes=("fp32", "q8"), step=seen.append)
    assert seen == [
        "loading", "computing", "writing fp32", "checking fp32", "writing q8", "checking q8",
    ]  # fmt: skip
