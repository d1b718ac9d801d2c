"""LoRA of peft on this package's models against the same LoRA on transformers'.

Layers that are separate there and fused here take the same adapters, side by side: for parts p with
A_p and B_p of rank r, the fused layer has A, all A_p stacked, and B, block-diagonal of all B_p, of
rank r times the number of parts. While training, the zeros of B have no counterpart, so their
gradient is dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nomicbert import Embedder
from nomicbert_kernels.linear_int8 import why_not
from tests.parity.bounds import BACKENDS, EMBEDDING, GRADIENT, HIDDEN, LOSS
from tests.parity.gradients import BERT, NOMIC
from tests.parity.report import held, seen
from tests.parity.support import Case
from tests.parity.test_heads import TOP, labelled, logits_of
from tests.support.checkpoints import build_checkpoint
from tests.support.heads import OURS, build_head, theirs

# peft reads an attribute that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

RANK, ALPHA, STEPS, RATE = 4, 8, 10, 3e-3
STEP_LOSS = 1e-3  # of each step, relative, as for fine-tuning without adapters
FUSED = {"qkv": 3, "up_gate": 2}
TASKS = [
    ("Bert", "SequenceClassification"),
    ("NomicBert", "SequenceClassification"),
    ("Bert", "MaskedLM"),
    ("NomicBert", "TokenClassification"),
]
LAYERS = ("qkv", "out", "up_gate", "up", "down", "word")
HEADS = {"SequenceClassification": ["pooler"], "MaskedLM": ["transform"]}


def partners(name: str, family: str) -> list[str]:
    """The layers of transformers' model that one of ours stands for."""
    inner = {"Bert": "bert", "NomicBert": "nomic_bert"}[family]
    if name in TOP:
        return [TOP[name].format(inner)]
    if name == "encoder.embeddings.word":
        return [f"{inner}.embeddings.word_embeddings"]
    _, _, number, stem = name.split(".", 3)
    table, layers = (BERT, "encoder.layer") if family == "Bert" else (NOMIC, "layers")
    return [f"{inner}.{layers}.{number}.{part}" for part in table[stem]]


def with_lora(model: nn.Module, targets: list[str], **settings: Any) -> PeftModel:
    fused = {name: count for name, count in FUSED.items() if name in targets}
    return get_peft_model(
        model,
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=targets,
            rank_pattern={name: count * RANK for name, count in fused.items()},
            alpha_pattern={name: count * ALPHA for name, count in fused.items()},
            init_lora_weights=False,
            **settings,
        ),
    )


def adapters(model: PeftModel) -> dict[str, nn.Module]:
    inner = model.base_model.model
    return {n: m for n, m in inner.named_modules() if hasattr(m, "lora_A") and hasattr(m, "r")}


def parts_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    if layer.lora_embedding_A:
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def pair(
    family: str, task: str, backend: str, folder: Path, **settings: Any
) -> tuple[PeftModel, PeftModel]:
    """Both models with the same adapters on all linear layers and the words."""
    model = OURS[task].from_pretrained(folder, backend=backend)
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [t for t in (*LAYERS, *HEADS.get(task, [])) if t in known]
    both = {k: v[0] for k, v in settings.items()}, {k: v[1] for k, v in settings.items()}
    mine = with_lora(model, targets, **both[0])
    found = adapters(mine)
    native = {name: partners(name, family) for name in found}
    them = with_lora(theirs(folder), [n for names in native.values() for n in names], **both[1])
    reference = adapters(them)
    assert sum(map(len, native.values())) == len(reference) >= 9
    for name, layer in found.items():
        down, up = parts_of(layer)
        same = [parts_of(reference[part]) for part in native[name]]
        with torch.no_grad():
            down.copy_(torch.cat([a for a, _ in same]))
            up.copy_(torch.block_diag(*(b for _, b in same)))
        if len(same) > 1:
            diagonal = torch.block_diag(*(torch.ones_like(b) for _, b in same))
            up.register_hook(lambda gradient, diagonal=diagonal: gradient * diagonal)
    return mine, them


@pytest.fixture
def folder(case: Case, family: str, task: str) -> Path:
    count = 2 if task == "QuestionAnswering" else 3
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return build_head(
        case.folder / "model", family, task, seed=case.seed, num_labels=count, **drops
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "task"), TASKS)
def test_outputs_and_gradients(
    family: str, task: str, backend: str, folder: Path, case: Case
) -> None:
    mine, them = pair(family, task, backend, folder)
    batch = labelled(case, folder, task)
    plain = OURS[task].from_pretrained(folder)(**batch)
    outputs = [model.eval()(**batch) for model in (mine, them)]
    found, truth = (logits_of(out, batch["attention_mask"]) for out in outputs)
    held("logits", found, truth, HIDDEN)
    seen(logits_of(plain, batch["attention_mask"]), truth, HIDDEN)
    held("loss", outputs[0].loss.detach(), outputs[1].loss.detach(), LOSS)
    for out in outputs:
        out.loss.backward()
    reference = adapters(them)
    for name, layer in adapters(mine).items():
        same = [parts_of(reference[part]) for part in partners(name, family)]
        wanted = torch.cat([a.grad for a, _ in same]), torch.block_diag(*(b.grad for _, b in same))
        for parameter, gradient in zip(parts_of(layer), wanted, strict=True):
            scale = gradient.abs().max()
            held("gradient", parameter.grad / scale, gradient / scale, GRADIENT, name)


def losses(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    found = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "task"), TASKS[:2])
def test_training_saving_and_merging(
    family: str, task: str, backend: str, folder: Path, case: Case, tmp_path: Path
) -> None:
    """Ten steps, with classifier and a norm trained in full; then saved, loaded and merged."""
    norm = {"Bert": "bert.encoder.layer.1.output.LayerNorm"}
    saved = {
        "modules_to_save": (
            ["classifier", "encoder.layers.1.mlp_norm"],
            ["classifier", norm.get(family, "nomic_bert.layers.1.post_mlp_layernorm")],
        )
    }
    mine, them = pair(family, task, backend, folder, **saved)
    batch = labelled(case, folder, task)
    found, truth = losses(mine, batch), losses(them, batch)
    assert truth[-1] < 0.7 * truth[0]
    held("loss of each step, relative", found / truth, torch.ones(STEPS), STEP_LOSS)
    with torch.no_grad():
        trained = mine.eval()(**batch).logits
    mine.save_pretrained(tmp_path / "adapter")
    fresh = OURS[task].from_pretrained(folder, backend=backend)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.no_grad():
        held("logits after loading", loaded(**batch).logits, trained, HIDDEN)
        merged = loaded.merge_and_unload()
        assert merged is fresh
        assert type(merged.encoder.layers[0].attention.qkv) is nn.Linear
        held("logits after merging", merged(**batch).logits, trained, HIDDEN)
        merged.save_pretrained(tmp_path / "merged")
        again = OURS[task].from_pretrained(tmp_path / "merged")
        held("logits after saving", again(**batch).logits, trained, HIDDEN)


def test_shared_down_projection(case: Case) -> None:
    """The other way round: any adapter here is one of the same rank on each part there."""
    folder = build_head(
        case.folder / "model", "NomicBert", "TokenClassification", seed=case.seed, num_labels=3
    )
    mine = get_peft_model(
        OURS["TokenClassification"].from_pretrained(folder),
        LoraConfig(r=RANK, target_modules=list(FUSED), init_lora_weights=False),
    )
    names = {name: partners(name, "NomicBert") for name in adapters(mine)}
    them = get_peft_model(
        theirs(folder),
        LoraConfig(r=RANK, target_modules=[n for one in names.values() for n in one]),
    )
    for name, layer in adapters(mine).items():
        down, up = parts_of(layer)
        for part, rows in zip(names[name], up.chunk(len(names[name])), strict=True):
            a, b = parts_of(adapters(them)[part])
            with torch.no_grad():
                a.copy_(down)
                b.copy_(rows)
    batch = labelled(case, folder, "TokenClassification")
    found, truth = (logits_of(m(**batch), batch["attention_mask"]) for m in (mine, them.eval()))
    held("logits", found, truth, HIDDEN)


@pytest.mark.parametrize("backend", [*BACKENDS, "int8"])
@torch.no_grad()
def test_dense_layers_of_an_embedder(backend: str, case: Case) -> None:
    """With sentence-transformers as the judge; int8 is as near as without adapters."""
    if backend == "int8" and (problem := why_not()):
        pytest.skip(problem)
    folder = build_checkpoint(case.folder / "conan", "conan-v1", num_hidden_layers=2)
    texts = ["a short text", "and a longer text than that"]
    judge, embedder = SentenceTransformer(str(folder), device="cpu"), Embedder(folder)
    embedder.model.use(backend)
    plain = embedder.encode(texts)
    lora = {"r": RANK, "init_lora_weights": False}
    them = get_peft_model(judge, LoraConfig(target_modules=["linear"], **lora))
    mine = get_peft_model(
        embedder.embedding_model, LoraConfig(target_modules=["steps.0.linear"], **lora)
    )
    [reference], [layer] = adapters(them).values(), adapters(mine).values()
    for a, b in zip(parts_of(layer), parts_of(reference), strict=True):
        a.copy_(b)
    truth, found = judge.encode(texts), embedder.encode(texts)
    assert np.abs(truth - plain).max() > 100 * HIDDEN
    if backend == "int8":
        cosines = torch.cosine_similarity(torch.tensor(found), torch.tensor(truth))
        assert cosines.min() >= 0.99
    else:
        found, truth = (nn.functional.normalize(torch.tensor(x)) for x in (found, truth))
        held("vectors", found, truth, EMBEDDING)
    with mine.disable_adapter():
        off = torch.cosine_similarity(*map(torch.tensor, (embedder.encode(texts), plain)))
        assert off.min() >= (0.99 if backend == "int8" else 1 - EMBEDDING)


def test_experts_by_target_parameters(case: Case) -> None:
    """Experts are parameters, which peft parametrises; the truth is the merged model."""
    folder = build_checkpoint(case.folder / "moe", "nomic-v2-moe", num_hidden_layers=2)
    embedder = Embedder(folder)
    batch = embedder.batch(["a short text", "and a longer text"], "passage")
    plain = embedder.embedding_model(batch).detach()
    mine = get_peft_model(
        embedder.embedding_model,
        LoraConfig(
            r=RANK,
            target_modules=["router"],
            target_parameters=["mlp.experts_up", "mlp.experts_down"],
            init_lora_weights=False,
        ),
    )
    found = mine.eval()(batch)
    found.sum().backward()
    trained = {n: p for n, p in mine.named_parameters() if p.requires_grad}
    assert len(trained) == 6
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    with torch.no_grad():
        held("no gradients", mine(batch), found.detach(), HIDDEN)
        merged = mine.merge_and_unload()(batch)
    held("merged", found.detach(), merged, HIDDEN)
    seen(plain, merged, HIDDEN)


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [
        ("NomicBert", "SequenceClassification", "SEQ_CLS"),
        ("NomicBert", "TokenClassification", "TOKEN_CLS"),
        ("Bert", "QuestionAnswering", "QUESTION_ANS"),
    ],
)
def test_task_types(family: str, task: str, kind: str, folder: Path, case: Case) -> None:
    """peft's classes for a task pass on arguments of their own."""
    batch = labelled(case, folder, task)
    if task == "QuestionAnswering":
        del batch["token_type_ids"]  # which peft takes there and drops
    model = OURS[task].from_pretrained(folder)
    settings = {"r": RANK, "target_modules": ["out"], "init_lora_weights": False}
    mine = get_peft_model(model, LoraConfig(task_type=kind, **settings)).eval()
    with torch.no_grad():
        found, direct = mine(**batch), model(**batch)
        assert type(found) is type(direct)
        wanted = logits_of(direct, batch["attention_mask"])
        held("logits", logits_of(found, batch["attention_mask"]), wanted, HIDDEN)
        held("loss", found.loss, direct.loss, LOSS)
