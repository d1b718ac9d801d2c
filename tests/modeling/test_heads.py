"""Heads as torch modules: outputs, padding, training, copies.

Their results are compared with transformers in `parity/test_heads.py`.
"""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert import NomicBertForMaskedLM
from nomicbert.user_warnings import EmptyRowWarning
from tests.modeling.heads_cases import (  # noqa: F401
    IDS,
    MASK,
    NEAR,
    Folders,
    both_families,
    changed,
    distance,
    folders,
    labels_of,
    load,
    scores,
)
from tests.support.heads import ALL, NATIVE, OURS

# of logits about 1
ROUNDED = {torch.float32: 0.0, torch.float16: 0.01, torch.bfloat16: 0.15}
every_head = pytest.mark.parametrize(("family", "task"), ALL)


@torch.no_grad()
@every_head
def test_output_object(family: str, task: str, load: Callable[..., Any]) -> None:
    model = load(family, task)
    names = ["start_logits", "end_logits"] if task == "QuestionAnswering" else ["logits"]
    bare = model(IDS, MASK)
    assert list(bare) == names
    assert len(bare) == len(names)
    assert bare.loss is None
    assert bare.hidden_states is None
    assert "loss" not in bare
    assert bare[0] is getattr(bare, names[0])
    for missing in ("loss", "hidden_states", "to_tuple"):
        with pytest.raises(KeyError, match=missing):
            bare[missing]
    full = model(IDS, MASK, **labels_of(task), output_hidden_states=True)
    names = ["loss", *names, "hidden_states"]
    assert list(full) == list(full.keys()) == names
    values = full.to_tuple()
    assert len(values) == len(full) == len(names)
    for place, name in enumerate(names):
        assert full[place] is full[name] is getattr(full, name) is values[place]
    assert full[1:] == values[1:]
    assert dict(**full)["loss"] is full.loss
    with pytest.raises(IndexError):
        full[len(names)]
    assert full.loss.shape == ()
    assert distance(scores(bare), scores(full)) <= NEAR
    plain = model(IDS, MASK, **labels_of(task), output_hidden_states=True, return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == len(names)
    assert torch.equal(plain[0], full.loss)
    assert torch.equal(plain[1], values[1])
    states = model.encoder(IDS, MASK, output_hidden_states=True).hidden_states
    assert len(full.hidden_states) == len(states) == 3
    assert all(torch.equal(a, b) for a, b in zip(full.hidden_states, states, strict=True))


@torch.no_grad()
@every_head
def test_the_last_layer_of_a_head(family: str, task: str, load: Callable[..., Any]) -> None:
    """By hand, from the encoder's output: transformers has no QA head for NomicBERT."""
    model = load(family, task)
    last = model.encoder(IDS, MASK).last_hidden_state
    state = model.state_dict()
    if task == "MaskedLM":
        x = F.linear(last, state["transform.weight"], state["transform.bias"])
        x = F.silu(x) if family == "NomicBert" else F.gelu(x)
        norm = state["transform_norm.weight"], state["transform_norm.bias"]
        x = F.layer_norm(x, (64,), *norm, 1e-12)
        wanted = x @ state["encoder.embeddings.word.weight"].T + state["decoder_bias"]
    elif task == "SequenceClassification":
        pooler = state["encoder.pooler.weight"], state["encoder.pooler.bias"]
        x = F.linear(last[:, 0], *pooler).tanh()
        wanted = F.linear(x, state["classifier.weight"], state["classifier.bias"])
    else:
        layer = "classifier" if task == "TokenClassification" else "qa_outputs"
        wanted = F.linear(last, state[f"{layer}.weight"], state[f"{layer}.bias"])
    found = scores(model(IDS, MASK))
    if found.dim() == 3:
        found, wanted = found[MASK == 1], wanted[MASK == 1]
    assert distance(found, wanted) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "task", "dtype"),
    [
        (family, task, dtype)
        for family, task in ALL
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        if dtype == torch.float32 or family == "NomicBert"
    ],
)
def test_padding_and_dtype(
    family: str, task: str, dtype: torch.dtype, load: Callable[..., Any]
) -> None:
    """Loaded in a dtype or cast to it; ids at padding do not matter."""
    model = load(family, task, dtype=dtype)
    out = model(IDS, MASK, **labels_of(task))
    found = scores(out)
    assert (model.dtype, found.dtype, out.loss.dtype) == (dtype, dtype, torch.float32)
    assert model.device == torch.device("cpu")
    if found.dim() == 3:
        filler = torch.finfo(dtype).min if task == "QuestionAnswering" else 0.0
        assert (found[MASK == 0] == filler).all()
        assert (found[MASK == 1] != filler).any(-1).all()
    noise = torch.where(MASK == 1, IDS, 77)
    for mask in (MASK, MASK.bool(), MASK.float()):
        assert torch.equal(scores(model(noise, mask)), found)
    cast = load(family, task)
    wide = scores(cast(IDS, MASK))
    assert torch.equal(scores(cast.to(dtype)(IDS, MASK)), found)
    kept = MASK == 1 if wide.dim() == 3 else ...
    assert distance(found[kept], wide[kept]) <= ROUNDED[dtype]
    if dtype != torch.float32:
        assert not torch.equal(found.float(), wide)


@torch.no_grad()
@every_head
def test_a_row_of_no_tokens(family: str, task: str, load: Callable[..., Any]) -> None:
    model = load(family, task)
    whole, mask = scores(model(IDS, MASK)), changed(MASK, 1, 0)
    filler = torch.finfo(torch.float32).min if task == "QuestionAnswering" else 0.0
    for states in (False, True):
        with pytest.warns(EmptyRowWarning, match="row 1 of attention_mask keeps no token"):
            found = scores(model(IDS, mask, output_hidden_states=states))
        assert (found[1] == filler).all()
        assert distance(found[[0, 2]], whole[[0, 2]]) <= NEAR
        with pytest.warns(EmptyRowWarning):
            found = scores(model(IDS, MASK * 0, output_hidden_states=states))
        assert found.shape == whole.shape
        assert (found == filler).all()
    labels, refused = labels_of(task, MASK), "where attention_mask is 0"
    if task == "SequenceClassification":
        refused = "row 1 of attention_mask keeps no token, but it has a label"
    with pytest.warns(EmptyRowWarning), pytest.raises(ValueError, match=refused):
        model(IDS, mask, **labels)
    if task in ("MaskedLM", "TokenClassification"):
        labels = {"labels": changed(labels["labels"], 1, -100)}
    elif task == "QuestionAnswering":
        labels = {name: changed(places, 1, 5) for name, places in labels.items()}
    else:
        return
    with pytest.warns(EmptyRowWarning):
        loss = model(IDS, mask, **labels).loss
    alone = {name: given[[0, 2]] for name, given in labels.items()}
    assert distance(loss, model(IDS[[0, 2]], MASK[[0, 2]], **alone).loss) <= NEAR


@torch.no_grad()
@every_head
def test_padding_on_either_side(family: str, task: str, load: Callable[..., Any]) -> None:
    """Learned positions must be passed in; rotary ones need not."""
    model = load(family, task)
    lengths = MASK.sum(1)
    shifted = (torch.arange(5) - (5 - lengths)[:, None]) % 5  # the column it came from
    ids, mask = IDS.gather(1, shifted), MASK.gather(1, shifted)
    assert mask[0].tolist() == [0, 0, 1, 1, 1]
    labels = labels_of(task)
    right = model(IDS, MASK, **labels)
    if task == "QuestionAnswering":
        moved = {name: places + 5 - lengths for name, places in labels.items()}
    elif task == "SequenceClassification":
        moved = labels
    else:
        moved = {"labels": labels["labels"].gather(1, shifted)}
    told = {"position_ids": shifted}
    for extra in ({}, told) if family == "NomicBert" else (told,):
        left = model(ids, mask, **moved, **extra)
        found, wanted = scores(left), scores(right)
        if found.dim() == 3:
            found, wanted = found[mask == 1], wanted[MASK == 1]
        assert distance(found, wanted) <= 1e-5
        assert distance(left.loss, right.loss) <= 1e-5
    if family == "Bert":  # the test needs positions that matter
        assert distance(scores(model(ids, mask))[mask.any(1)], scores(right)) > 1e-3


@torch.no_grad()
@every_head
def test_a_text_alone(family: str, task: str, load: Callable[..., Any]) -> None:
    """Neither other texts nor padding affect a text; without a mask every token is kept."""
    model = load(family, task)
    together = scores(model(IDS, MASK))
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = scores(model(IDS[row : row + 1, :length]))[0]
        found = together[row] if together.dim() == 2 else together[row, :length]
        assert distance(alone, found) <= NEAR
    assert torch.equal(scores(model(IDS)), scores(model(IDS, torch.ones_like(IDS))))
    assert scores(model(IDS[:0], MASK[:0])).shape == (0, *together.shape[1:])


@torch.no_grad()
@every_head
def test_inputs_embeds(family: str, task: str, load: Callable[..., Any]) -> None:
    model = load(family, task)
    table = model.get_input_embeddings()
    assert table is model.encoder.embeddings.word
    found = scores(model(inputs_embeds=table(IDS), attention_mask=MASK))
    assert distance(found, scores(model(IDS, MASK))) <= NEAR
    for given in ({}, {"input_ids": IDS, "inputs_embeds": table(IDS)}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds, and not both"):
            model(**given)
    types = scores(model(IDS, MASK, token_type_ids=torch.ones_like(IDS)))
    assert distance(types, found) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@both_families
def test_a_step_on_tied_words(
    family: str, tied: bool, load: Callable[..., Any], tmp_path: Path
) -> None:
    """A tied table gets gradients from both uses; untied tables are two parameters."""
    model = load(family, "MaskedLM")
    words = model.encoder.embeddings.word.weight
    if not tied:
        model.decoder = nn.Parameter(words.detach().clone())
    assert ("decoder" in dict(model.named_parameters())) == (not tied)
    labels = labels_of("MaskedLM")
    before, start = words.detach().clone(), scores(model(IDS, MASK)).detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    first = model(IDS, MASK, **labels).loss
    first.backward()
    optimizer.step()
    read, never = IDS[MASK == 1].unique(), [40, 60]  # words in the batch, and others
    move = (words.detach() - before).abs().amax(1)
    assert (move[read] > 0).all()
    assert (move[never] > 0).all() == tied
    now = scores(model(IDS, MASK)).detach()
    table = words if tied else model.decoder
    state = model.state_dict()
    with torch.no_grad():
        last = model.encoder(IDS, MASK).last_hidden_state
        x = F.linear(last, state["transform.weight"], state["transform.bias"])
        x = F.silu(x) if family == "NomicBert" else F.gelu(x)
        x = F.layer_norm(x, (64,), state["transform_norm.weight"], state["transform_norm.bias"])
        wanted = (x @ table.T + state["decoder_bias"]) * MASK[..., None]
    assert distance(now, wanted) <= 0.01 < distance(now, start)
    assert model(IDS, MASK, **labels).loss < first
    model.save_pretrained(tmp_path)
    again = scores(NomicBertForMaskedLM.from_pretrained(tmp_path)(IDS, MASK))
    assert torch.equal(again, now)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@every_head
def test_gradient_checkpointing(
    family: str, task: str, backend: str, load: Callable[..., Any]
) -> None:
    """The same loss and gradients, with the same dropout under one seed; layers run twice."""
    found, runs = {}, {}
    model = load(family, task, backend=backend).train()
    ran: list[int] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(lambda *_: ran.append(1))

    def trained(seed: int) -> dict[str, Tensor]:
        ran.clear()
        model.zero_grad()
        torch.manual_seed(seed)
        loss = model(IDS, MASK, **labels_of(task)).loss
        loss.backward()
        return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()}

    for name, switch in (
        ("kept", lambda: None),
        ("again", model.gradient_checkpointing_enable),
        ("off", model.gradient_checkpointing_disable),
    ):
        switch()
        found[name], runs[name] = trained(3), len(ran)
    assert runs == {"kept": 2, "again": 4, "off": 2}
    for name in ("again", "off"):
        for parameter, gradient in found["kept"].items():
            assert torch.equal(found[name][parameter], gradient), parameter
    assert not torch.equal(trained(4)["loss"], found["kept"]["loss"])  # dropout is on
    model.gradient_checkpointing_enable()
    model.eval()
    trained(3)
    assert len(ran) == 2  # outside of training there is nothing to save


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_dropout_before_the_classifier(
    task: str, folders: Folders, load: Callable[..., Any]
) -> None:
    """classifier_dropout if stated, else that of the hidden states; in training only."""
    model = load("NomicBert", task)
    encoder = model.encoder.eval()
    for stated, share in ((None, 0.1), (0.5, 0.5), (0.0, 0.0)):
        model.labels = type(model.labels)(model.labels.names, None, stated)
        x = torch.ones(100, 100)
        model.training = True
        torch.manual_seed(0)
        dropped = model._dropout(x)
        assert abs((dropped == 0).float().mean().item() - share) <= 0.02
        assert distance(dropped.max(), torch.tensor(1 / (1 - share))) <= NEAR
        sound, again = (scores(model(IDS, MASK)).detach() for _ in range(2))
        assert torch.equal(sound, again) == (share == 0)
        model.training = False
        assert torch.equal(scores(model(IDS, MASK)), scores(model(IDS, MASK)))
    assert encoder is model.encoder


@every_head
def test_training_switches_dropout(family: str, task: str, load: Callable[..., Any]) -> None:
    model = load(family, task)
    assert not model.training
    still = scores(model(IDS, MASK)).detach()
    model.train()
    assert model.encoder.training
    torch.manual_seed(0)
    one, two = (scores(model(IDS, MASK)).detach() for _ in range(2))
    assert not torch.equal(one, two)
    torch.manual_seed(0)
    assert torch.equal(scores(model(IDS, MASK)), one)
    assert distance(scores(model.eval()(IDS, MASK)), still) <= NEAR


@torch.no_grad()
@every_head
def test_copies_are_independent(family: str, task: str, load: Callable[..., Any]) -> None:
    model = load(family, task)
    at_first = scores(model(IDS, MASK))  # with prepared weights, which cannot be copied
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.labels == model.labels
        assert torch.equal(scores(other(IDS, MASK)), at_first)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert distance(scores(other(IDS, MASK))[MASK.any(1)], at_first) > 1e-3
        assert torch.equal(scores(model(IDS, MASK)), at_first)
        report = other.load_state_dict(model.state_dict())
        assert (report.missing_keys, report.unexpected_keys) == ([], [])
        assert torch.equal(scores(other(IDS, MASK)), at_first)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@every_head
def test_built_from_a_config(family: str, task: str, load: Callable[..., Any]) -> None:
    """Randomly initialised for training."""
    config = load(family, task).config
    torch.manual_seed(0)
    model = OURS[task](config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert 0.01 <= parameter.std() <= 0.03, name
    labels = labels_of(task)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first = None
    for _ in range(8):
        loss = model(IDS, MASK, **labels).loss
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first


def test_natives_are_those_of_transformers() -> None:
    """Checks the list that other tests use: only QA for NomicBERT is not in transformers."""
    assert [pair for pair in ALL if pair not in NATIVE] == [("NomicBert", "QuestionAnswering")]
