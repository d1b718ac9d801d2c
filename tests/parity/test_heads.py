"""Heads against transformers: logits, loss and gradients of all parameters, and planted faults.

Tied word embeddings get gradients from input and output. In question answering transformers
includes padding in the softmax over positions and this package does not, so those losses are
compared without padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.modeling.packing import PackedBatch
from tests.parity.bounds import BACKENDS, HIDDEN, KEY_BIAS, LOSS
from tests.parity.gradients import BERT, NOMIC, Gradients, compare, stacked
from tests.parity.report import held, seen
from tests.parity.support import LENGTHS, Batch, Case
from tests.support.heads import NATIVE, OURS, build_head, theirs

LABELS = 3
# An equal shift of all positions does not change their softmax (as with a key's bias). The true
# gradient is 0, so the rounding error is compared with the gradient of the weights.
SHIFTS = ("qa_outputs.bias", "encoder.layers.1.mlp_norm.bias")
# ours -> transformers', after the encoder; the norm has another name in BERT
TOP = {
    "encoder.pooler": "{}.pooler.dense",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.layer_norm",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}


def build(case: Case, family: str, task: str, **settings: object) -> Path:
    settings = {"num_labels": 2 if task == "QuestionAnswering" else LABELS} | settings
    return build_head(case.folder / "model", family, task, seed=case.seed, **settings)


def labelled(case: Case, folder: Path, task: str) -> Batch:
    """A batch padded on the right, with labels of the first, the last and some other tokens."""
    lengths = (17,) * 4 if task == "QuestionAnswering" else LENGTHS
    batch = case.batch(folder, lengths, least=1)
    generator = torch.Generator().manual_seed(case.seed + 2)
    shape, count = batch["input_ids"].shape, 120 if task == "MaskedLM" else LABELS
    if task == "SequenceClassification":
        return batch | {"labels": torch.randint(count, shape[:1], generator=generator)}
    if task == "QuestionAnswering":
        first = torch.tensor([0, 16, 5, 17])  # the last one is out of range and ignored
        return batch | {"start_positions": first, "end_positions": torch.tensor([3, 16, 17, 99])}
    drawn = torch.randint(count, shape, generator=generator)
    wanted = batch["attention_mask"].bool() & (torch.rand(shape, generator=generator) < 0.6)
    wanted[:, 0] = True
    return batch | {"labels": torch.where(wanted, drawn, -100)}


def logits_of(output: object, mask: Tensor) -> Tensor:
    """(batch, ...) of either model; per-token outputs are zeroed on padding."""
    if hasattr(output, "start_logits"):
        both = torch.stack((output.start_logits, output.end_logits), 2)
        return torch.where(mask[..., None] != 0, both, 0)
    return output.logits * mask[..., None] if output.logits.dim() == 3 else output.logits


def reference_gradient(name: str, found: Gradients) -> Tensor:
    """transformers' gradient of our parameter."""
    family = "nomic_bert" if any(n.startswith("nomic_bert.") for n in found) else "bert"
    if name == "decoder_bias":
        return found["cls.predictions.bias"]
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        place = TOP[stem].format(family)
        if family == "bert":
            place = place.replace("layer_norm", "LayerNorm")
        return found[f"{place}.{kind}"]
    inner = {n.removeprefix(f"{family}."): g for n, g in found.items()}
    table, layers = (BERT, "encoder.layer.") if family == "bert" else (NOMIC, "layers.")
    return stacked(name.removeprefix("encoder."), inner, table, layers)


def backward(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Gradients]:
    """Logits, loss and gradients of either model, in eval mode."""
    assert not model.training
    output = model(**batch)
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return logits_of(output, batch["attention_mask"]).detach(), output.loss.detach(), found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_logits_loss_and_gradients(
    family: str, task: str, attention: str, backend: str, case: Case
) -> None:
    folder = build(case, family, task)
    batch = labelled(case, folder, task)
    logits, loss, reference = backward(theirs(folder, attention), batch)
    model = OURS[task].from_pretrained(folder, backend=backend)
    own_logits, own_loss, mine = backward(model, batch)
    held("logits", own_logits, logits, HIDDEN)
    assert own_loss.dtype == torch.float32
    held("loss", own_loss, loss, LOSS)
    for name, gradient in mine.items():
        wanted = reference_gradient(name, reference)
        if task == "QuestionAnswering" and name in SHIFTS:
            scale = mine[name.replace("bias", "weight")].abs().max()
            assert max(gradient.abs().max(), wanted.abs().max()) <= KEY_BIAS * scale, name
            continue
        compare(name, gradient, wanted, rotary=family == "NomicBert")
    assert sum(g.numel() for g in mine.values()) == sum(g.numel() for g in reference.values())


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_without_gradients_and_with_holes(family: str, task: str, backend: str, case: Case) -> None:
    """Prepared weights of inference, no token types, and a mask with holes."""
    folder = build(case, family, task)
    reference, model = theirs(folder), OURS[task].from_pretrained(folder, backend=backend)
    sides = ("right",) if task == "SequenceClassification" else ("right", "left")
    for side in sides:  # with padding on the left transformers classifies the padding
        batch = case.batch(folder, side=side)
        batch["attention_mask"][2, 4:9] = 0
        del batch["token_type_ids"]
        wanted = logits_of(reference(**batch), batch["attention_mask"])
        held("logits", logits_of(model(**batch), batch["attention_mask"]), wanted, HIDDEN)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
@pytest.mark.parametrize(
    ("problem", "count", "columns"),
    [
        (None, 1, ()),
        (None, 1, (1,)),
        (None, LABELS, (LABELS,)),
        ("regression", LABELS, (LABELS,)),
        ("multi_label_classification", 1, (1,)),
        ("single_label_classification", LABELS, None),
    ],
)
def test_every_kind_of_problem(
    problem: str | None,
    count: int,
    columns: tuple[int, ...] | None,
    family: str,
    backend: str,
    case: Case,
) -> None:
    task = "SequenceClassification"
    folder = build(case, family, task, num_labels=count, problem_type=problem)
    batch = case.batch(folder)
    if columns is None:
        labels = torch.tensor([0, 2, -100, 1, 1, 0])
    else:
        labels = torch.rand(len(LENGTHS), *columns)
    wanted = theirs(folder)(**batch, labels=labels)
    found = OURS[task].from_pretrained(folder, backend=backend)(**batch, labels=labels)
    assert found.logits.shape == (len(LENGTHS), count)
    held("logits", found.logits, wanted.logits, HIDDEN)
    held("loss", found.loss, wanted.loss, LOSS)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_in_padded_texts(backend: str, case: Case) -> None:
    """The truth is transformers' logits with padding removed from the softmax."""
    folder = build(case, "Bert", "QuestionAnswering")
    batch = case.batch(folder)
    places = {"start_positions": torch.tensor([0, 16, 31, 1, 0, 32])}
    places["end_positions"] = torch.tensor([[2], [16], [31], [2], [0], [40]])
    out = theirs(folder)(**batch)
    hidden = batch["attention_mask"] == 0
    wanted = [
        F.cross_entropy(logits.masked_fill(hidden, -torch.inf)[:5], place.flatten()[:5])
        for logits, place in zip((out.start_logits, out.end_logits), places.values(), strict=True)
    ]
    model = OURS["QuestionAnswering"].from_pretrained(folder, backend=backend)
    loss = model(**batch, **places).loss
    held("loss", loss, torch.stack(wanted).mean(), LOSS)


def transform_bias_dropped(model: nn.Module) -> None:
    model.transform.bias.zero_()


def transform_norm_bias_dropped(model: nn.Module) -> None:
    model.transform_norm.bias.zero_()


def transform_norm_eps(model: nn.Module) -> None:
    assert model.transform_norm.eps == 1e-12
    model.transform_norm.eps = 1e-5


def other_activation(model: nn.Module) -> None:
    """Swap GELU and SiLU in the head only; the layers have already read the setting."""
    config = model.encoder.config
    other = "gelu" if config.hidden_act == "swiglu" else "silu"
    model.encoder.config = dataclasses.replace(config, hidden_act=other)


def decoder_bias_dropped(model: nn.Module) -> None:
    model.decoder_bias.zero_()


def words_shifted(model: nn.Module) -> None:
    model.decoder = nn.Parameter(model.encoder.embeddings.word.weight.roll(1, 0))


def pooler_skipped(model: nn.Module) -> None:
    def packed_logits(batch: PackedBatch, states: None) -> Tensor:
        hidden = model.encoder.encode_packed(batch, rows=batch.first_tokens())
        return model.encoder.linear(hidden, model.classifier)

    model.packed_logits = packed_logits


def tanh_skipped(model: nn.Module) -> None:
    def packed_logits(batch: PackedBatch, states: None) -> Tensor:
        hidden = model.encoder.encode_packed(batch, rows=batch.first_tokens())
        return model.encoder.linear(
            model.encoder.linear(hidden, model.encoder.pooler), model.classifier
        )

    model.packed_logits = packed_logits


def last_token_pooled(model: nn.Module) -> None:
    def packed_logits(batch: PackedBatch, states: None) -> Tensor:
        hidden = model.encoder.encode_packed(batch, rows=batch.last_tokens())
        pooled = model.encoder.linear(hidden, model.encoder.pooler).tanh()
        return model.encoder.linear(pooled, model.classifier)

    model.packed_logits = packed_logits


def pooler_bias_dropped(model: nn.Module) -> None:
    model.encoder.pooler.bias.zero_()


def classifier_bias_dropped(model: nn.Module) -> None:
    model.classifier.bias.zero_()


def classes_shifted(model: nn.Module) -> None:
    model.classifier.weight.copy_(model.classifier.weight.roll(1, 0))


def answer_bias_dropped(model: nn.Module) -> None:
    model.qa_outputs.bias.zero_()


def start_and_end_swapped(model: nn.Module) -> None:
    model.qa_outputs.weight.copy_(model.qa_outputs.weight.flip(0))


CLASSES = (classifier_bias_dropped, classes_shifted)
FAULTS: dict[str, tuple[Callable[[nn.Module], None], ...]] = {
    "MaskedLM": (
        transform_bias_dropped,
        transform_norm_bias_dropped,
        transform_norm_eps,
        other_activation,
        decoder_bias_dropped,
        words_shifted,
    ),
    "SequenceClassification": (
        pooler_skipped,
        tanh_skipped,
        last_token_pooled,
        pooler_bias_dropped,
        *CLASSES,
    ),
    "TokenClassification": CLASSES,
    "QuestionAnswering": (answer_bias_dropped, start_and_end_swapped),
}


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_each_fault_exceeds_the_bound_tenfold(
    family: str, task: str, backend: str, case: Case
) -> None:
    folder = build(case, family, task)
    batch = case.batch(folder)
    truth = logits_of(theirs(folder)(**batch), batch["attention_mask"])
    for fault in FAULTS[task]:
        model = OURS[task].from_pretrained(folder, backend=backend)
        # before the fault, so that weights prepared for a model are not kept past a change
        sound = logits_of(model(**batch), batch["attention_mask"])
        held("logits", sound, truth, HIDDEN)
        fault(model)
        faulty = logits_of(model(**batch), batch["attention_mask"])
        seen(faulty, truth, HIDDEN, fault.__name__)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_untied_word_gradient_is_detected(family: str, backend: str, case: Case) -> None:
    folder = build(case, family, "MaskedLM")
    batch = labelled(case, folder, "MaskedLM")
    _, _, reference = backward(theirs(folder), batch)
    model = OURS["MaskedLM"].from_pretrained(folder, backend=backend)
    words_shifted(model)
    with torch.no_grad():  # equal values, but no longer the same parameter
        model.decoder.copy_(model.encoder.embeddings.word.weight)
    _, _, mine = backward(model, batch)
    name = "encoder.embeddings.word.weight"
    with pytest.raises(AssertionError, match=name):
        compare(name, mine[name], reference_gradient(name, reference), rotary=False)
    both = mine[name] + mine["decoder"]
    compare(name, both, reference_gradient(name, reference), rotary=False)
