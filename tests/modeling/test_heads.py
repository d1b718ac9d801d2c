"""Heads as torch modules: outputs, padding, training, copies, other vocabularies.

What they compute is held against transformers in `parity/test_heads.py`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert import NomicBert, NomicBertForMaskedLM
from nomicbert.user_warnings import EmptyRowWarning
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import read_config
from tests.support.heads import ALL, NATIVE, OURS, build_head, change_tensors, theirs

IDS = torch.tensor([[2, 7, 9, 30, 4], [5, 8, 11, 12, 6], [9, 3, 3, 119, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
DECODER = "cls.predictions.decoder.weight"
NEAR = 1e-6
# of logits about 1
ROUNDED = {torch.float32: 0.0, torch.float16: 0.01, torch.bfloat16: 0.15}
Folders = Mapping[tuple[str, str], Path]
every_head = pytest.mark.parametrize(("family", "task"), ALL)
both_families = pytest.mark.parametrize("family", ["Bert", "NomicBert"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Every head of both families, with dropout."""
    found = {}
    for family, task in ALL:
        count = 2 if task == "QuestionAnswering" else 3
        found[family, task] = build_head(
            tmp_path_factory.mktemp(family + task),
            family,
            task,
            num_labels=count,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    return found


@pytest.fixture(scope="module")
def load(folders: Folders) -> Callable[..., Any]:
    """A model of one's own; copies are cheaper than reading it again."""
    models = {pair: OURS[pair[1]].from_pretrained(folder) for pair, folder in folders.items()}

    def loaded(family: str, task: str, **keywords: Any) -> Any:
        if keywords:
            return OURS[task].from_pretrained(folders[family, task], **keywords)
        return copy.deepcopy(models[family, task])

    return loaded


def labels_of(task: str, mask: Tensor = MASK) -> dict[str, Tensor]:
    if task == "SequenceClassification":
        return {"labels": torch.arange(len(mask)) % 3}
    if task == "QuestionAnswering":
        first = mask.argmax(1)
        return {"start_positions": first, "end_positions": first + 1}
    labels = torch.arange(mask.numel()).view_as(mask) % 3
    return {"labels": torch.where(mask == 1, labels, -100)}


def scores(out: Any) -> Tensor:
    return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), 2)


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def changed(tensor: Tensor, place: Any, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


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
    """By hand, from the encoder's own output: transformers has no questions for NomicBERT."""
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
    """Loaded in a dtype or cast to it; what stands at padding does not matter."""
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
    """Learned positions are those of the tokens; rotary ones need not be told."""
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
    if family == "Bert":  # the case is none if positions do not matter
        assert distance(scores(model(ids, mask))[mask.any(1)], scores(right)) > 1e-3


@torch.no_grad()
@every_head
def test_a_text_alone(family: str, task: str, load: Callable[..., Any]) -> None:
    """Neither neighbours nor padding reach a text; without a mask every token is kept."""
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
def test_words_as_vectors(family: str, task: str, load: Callable[..., Any]) -> None:
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
    """One parameter, moved by what it does at both ends; two where they are two."""
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
    read, never = IDS[MASK == 1].unique(), [40, 60]  # words of the batch, and others
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
    """classifier_dropout where it is stated, else that of the hidden states; in training only."""
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
def test_copies_stand_on_their_own(family: str, task: str, load: Callable[..., Any]) -> None:
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


def untied(folder: Path) -> Path:
    """The same with a table of its own at the upper end."""
    table = 0.05 * torch.randn(120, 64, generator=torch.Generator().manual_seed(5))
    change_tensors(folder, lambda tensors: tensors | {DECODER: table})
    return folder


@torch.no_grad()
@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("tied", [True, False])
@both_families
def test_another_vocabulary(family: str, tied: bool, rows: int, tmp_path: Path) -> None:
    """Old words keep their rows at both ends; new ones are drawn, with a bias of 0."""
    folder = build_head(tmp_path / "a", family, "MaskedLM")
    model = NomicBertForMaskedLM.from_pretrained(folder if tied else untied(folder))
    ids = IDS.clamp(max=99)
    before, kept = scores(model(ids, MASK)), min(rows, 120)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = model.resize_token_embeddings(rows)
    assert table is model.get_input_embeddings()
    assert table.weight.shape == (rows, 64)
    assert model.config.vocab_size == rows
    grown = ["encoder.embeddings.word.weight", "decoder_bias"] + ["decoder"] * (not tied)
    for name, tensor in model.state_dict().items():
        if name in grown:
            assert len(tensor) == rows
            assert torch.equal(tensor[:kept], state[name][:kept])
        else:
            assert torch.equal(tensor, state[name])
    if rows > 120:
        assert not model.decoder_bias[120:].any()
        for name in (*grown[:1], *grown[2:]):
            assert 0.01 <= model.state_dict()[name][120:].std() <= 0.03
    found = scores(model(ids, MASK))
    assert found.shape == (3, 5, rows)
    assert distance(found[..., :kept], before[..., :kept]) <= NEAR
    labels = labels_of("MaskedLM")["labels"]
    last = changed(labels, (0, 0), rows - 1)
    assert model(changed(ids, (0, 0), rows - 1), MASK, labels=last).loss.isfinite()
    with pytest.raises(ValueError, match=f"labels must be 0 to {rows - 1}, or -100"):
        model(ids, MASK, labels=changed(labels, (0, 0), rows))
    with pytest.raises(ValueError, match=f"contains {rows}, but the table has {rows} rows"):
        model(changed(ids, (0, 0), rows), MASK)
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["vocab_size"] == rows
    again = NomicBertForMaskedLM.from_pretrained(tmp_path / "b")
    assert torch.equal(scores(again(ids, MASK)), found)
    native = theirs(tmp_path / "b")
    tables = native.get_input_embeddings().weight, native.get_output_embeddings().weight
    assert (tables[0] is tables[1]) == tied
    theirs_too = native(ids, attention_mask=MASK).logits * MASK[..., None]
    assert distance(found, theirs_too) <= HIDDEN


@torch.no_grad()
@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("tied", [True, False])
def test_another_table_of_words(tied: bool, rows: int, tmp_path: Path) -> None:
    """The scores follow its size, and where words are tied its numbers."""
    folder = build_head(tmp_path, "NomicBert", "MaskedLM")
    model = NomicBertForMaskedLM.from_pretrained(folder if tied else untied(folder))
    ids, kept = IDS.clamp(max=99), min(rows, 120)
    before = scores(model(ids, MASK))
    table = torch.nn.Embedding(rows, 64)
    table.weight[:kept] = model.get_input_embeddings().weight[:kept]
    table.weight[kept - 1] += 1
    model.set_input_embeddings(table)
    found = scores(model(ids, MASK))
    assert found.shape == (3, 5, rows)
    assert distance(found[..., : kept - 1], before[..., : kept - 1]) <= HIDDEN
    assert (distance(found[..., kept - 1], before[..., kept - 1]) > 1) == tied


@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("task", ["SequenceClassification", "QuestionAnswering"])
def test_another_vocabulary_under_other_heads(
    task: str, rows: int, load: Callable[..., Any]
) -> None:
    model, ids = load("Bert", task), IDS.clamp(max=99)
    at_first = scores(model(ids, MASK)).detach()
    model.resize_token_embeddings(rows)
    assert distance(scores(model(ids, MASK)).detach(), at_first) <= NEAR
    model(changed(ids, (0, 0), rows - 1), MASK, **labels_of(task)).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.shape == (rows, 64)
    assert gradient[rows - 1].any()


def test_vocabularies_that_cannot_be(load: Callable[..., Any]) -> None:
    model = load("Bert", "MaskedLM")
    for rows in (0, -3):
        with pytest.raises(ValueError, match=f"new_num_tokens must be at least 1, not {rows}"):
            model.resize_token_embeddings(rows)
    for rows in (2.5, True, None, "7"):
        with pytest.raises(TypeError, match="new_num_tokens must be an integer"):
            model.resize_token_embeddings(rows)
    assert len(model.get_input_embeddings().weight) == len(model.decoder_bias) == 120


def test_another_vocabulary_keeps_what_is_frozen_and_its_dtype(load: Callable[..., Any]) -> None:
    model = load("NomicBert", "MaskedLM", dtype=torch.bfloat16)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.resize_token_embeddings(140)
    words, bias = model.get_input_embeddings().weight, model.decoder_bias
    assert (words.requires_grad, bias.requires_grad) == (False, True)
    assert words.dtype == bias.dtype == torch.bfloat16
    bias.requires_grad_(False)
    model.resize_token_embeddings(60)
    assert not model.decoder_bias.requires_grad
    model.get_input_embeddings().weight.requires_grad_(True)
    assert model.resize_token_embeddings(50).weight.requires_grad


def test_an_encoders_vocabulary(folders: Folders, tmp_path: Path) -> None:
    model = NomicBert.from_pretrained(folders["NomicBert", "MaskedLM"])
    ids = IDS.clamp(max=99)
    at_first = model(ids, MASK).last_hidden_state.detach()
    for rows in (200, 100):
        assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
        assert torch.equal(model(ids, MASK).last_hidden_state, at_first)
        model.save_pretrained(tmp_path)
        assert read_config(tmp_path)["vocab_size"] == rows
        assert NomicBert.from_pretrained(tmp_path).config.vocab_size == rows


@every_head
def test_built_from_a_config(family: str, task: str, load: Callable[..., Any]) -> None:
    """Drawn as training begins, ready to train."""
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
    """The list that other tests walk: questions for NomicBERT are the one that it lacks."""
    assert [pair for pair in ALL if pair not in NATIVE] == [("NomicBert", "QuestionAnswering")]
