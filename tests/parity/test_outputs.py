"""What a call returns beside the last hidden state, against transformers: pooler_output of padded
rows, gradients of hidden states, defaults from config.json, dtypes under autocast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel, NomicBertModel

from nomicbert import EncoderConfig, NomicBert
from nomicbert.errors import ConfigError
from tests.parity.bounds import BACKENDS, GRADIENT, HIDDEN, LOSS
from tests.parity.report import held, within
from tests.parity.support import Case, is_gated
from tests.parity.test_heads import labelled, logits_of
from tests.support.checkpoints import edit_config
from tests.support.heads import NATIVE, OURS, build_head, theirs

VARIANTS = ("nomic-v1.5", "e5")
# of a 16-bit result, relative to its largest value: two roundings
ROUNDED = 2 * torch.finfo(torch.bfloat16).eps


def native(folder: Path, family: str, **settings: Any) -> nn.Module:
    """transformers' encoder of a folder with a head for texts."""
    kind = {"Bert": BertModel, "NomicBert": NomicBertModel}[family]
    return kind.from_pretrained(folder, **settings).eval()


def pooled_by(model: nn.Module, first: Tensor) -> Tensor:
    """tanh(dense(first)) with the parameters of a transformers model for texts."""
    inner = getattr(model, "nomic_bert", None) or model.bert
    return torch.tanh(inner.pooler.dense(first))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
@torch.no_grad()
def test_pooler_output_of_padded_rows(family: str, backend: str, case: Case) -> None:
    """The first kept token is pooled: on the right side as in transformers' own model, and on the
    left as if the row were alone (the positions of BERT are stated)."""
    folder = build_head(case.folder / "m", family, "SequenceClassification", seed=case.seed)
    judge = theirs(folder)
    model = NomicBert.from_pretrained(folder, backend=backend, add_pooling_layer=True, strict=False)
    for side in ("right", "left"):
        batch = case.batch(folder, side=side, least=1)
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(**batch, position_ids=positions).pooler_output
        inner = getattr(judge, "nomic_bert", None) or judge.bert
        for row, kept in enumerate(mask.bool()):
            alone = {n: batch[n][row : row + 1, kept] for n in ("input_ids", "token_type_ids")}
            wanted = pooled_by(judge, inner(**alone).last_hidden_state[:, 0])
            held("pooler_output", found[row], wanted[0], HIDDEN, side)
    with pytest.warns(UserWarning, match="keeps no token"):
        empty = model(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0, 0], [1, 1]]))
    assert not empty.pooler_output[0].any()
    assert empty.pooler_output[1].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_hidden_states(variant: str, masked: bool, backend: str, case: Case) -> None:
    """`retain_grad` on what was returned, as transformers' own tests do."""
    folder, theirs_too = case.build(variant), case.build_native(variant)
    batch = case.batch(folder)
    kept = batch["attention_mask"][1, :, None]
    if not masked:
        del batch["attention_mask"]
    judge = native(theirs_too, "NomicBert" if is_gated(variant) else "Bert")
    model = NomicBert.from_pretrained(folder, backend=backend, add_pooling_layer=False)
    without = model(**batch).last_hidden_state
    found = []
    for one in (model, judge):
        output = one(**batch, output_hidden_states=True)
        assert output.hidden_states[-1] is output[0]
        for state in output.hidden_states:
            state.retain_grad()
        output[0].flatten()[0].backward(retain_graph=True)
        (output[0][1] * kept).square().sum().backward()
        found.append(output)
    assert torch.equal(found[0][0], without)
    for mine, wanted in zip(*(o.hidden_states for o in found), strict=True):
        assert wanted.grad.any()
        scale = wanted.grad.abs().max()
        held("gradient of a hidden state", mine.grad / scale, wanted.grad / scale, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_narrow_hidden_states(dtype: torch.dtype, case: Case) -> None:
    """Where they are rounded for the caller, nothing else is."""
    folder = build_head(case.folder / "m", "NomicBert", "SequenceClassification", seed=case.seed)
    model = OURS["SequenceClassification"].from_pretrained(folder, dtype=dtype)
    batch = case.batch(folder)
    output = model(**batch, output_hidden_states=True)
    assert torch.equal(output.logits, model(**batch).logits)
    for state in output.hidden_states:
        assert state.dtype == dtype
        state.retain_grad()
    output.logits.sum().backward()
    exact = OURS["SequenceClassification"].from_pretrained(folder)
    truth = exact(**batch, output_hidden_states=True)
    for state in truth.hidden_states:
        state.retain_grad()
    truth.logits.sum().backward()
    for mine, wanted in zip(output.hidden_states, truth.hidden_states, strict=True):
        both = (x.grad.flatten().double() for x in (mine, wanted))
        within("1 - cosine", 1 - torch.cosine_similarity(*both, dim=0).item(), 1e-2)


@pytest.mark.parametrize("value", [True, False, None])
@pytest.mark.parametrize("key", ["output_hidden_states", "return_dict"])
@torch.no_grad()
def test_defaults_of_config(key: str, value: bool | None, case: Case) -> None:
    """What config.json says holds where the call says nothing; the call wins."""
    folder = build_head(case.folder / "m", "NomicBert", "TokenClassification", seed=case.seed)
    edit_config(folder, **{key: value})
    batch = case.batch(folder)
    pairs = [(NomicBert.from_pretrained(folder, strict=False), native(folder, "NomicBert"))]
    if (key, value) != ("return_dict", None):  # which transformers' heads take for false
        pairs.append((OURS["TokenClassification"].from_pretrained(folder), theirs(folder)))
    for mine, judge in pairs:
        for given in (None, True, False):
            said = {} if given is None else {key: given}
            found, wanted = mine(**batch, **said), judge(**batch, **said)
            assert isinstance(found, tuple) == isinstance(wanted, tuple)
            assert len(found) == len(wanted)
            if not isinstance(found, tuple):
                assert list(found) == list(wanted)
            assert isinstance(found[-1], tuple) == isinstance(wanted[-1], tuple)
            explicit = mine(**batch, **{key: None})
            assert type(explicit) is type(mine(**batch))
            assert len(explicit) == len(mine(**batch))


def test_the_older_key_and_mistakes() -> None:
    def encoder(**source: Any) -> NomicBert:
        config = EncoderConfig("bert", 100, 32, 1, 4, 64, 2, 512, 1e-12, source=source)
        return NomicBert(config).eval()

    ids = torch.tensor([[5, 6, 7]])
    assert isinstance(encoder(use_return_dict=False)(ids), tuple)
    assert isinstance(encoder(use_return_dict=False, return_dict=False)(ids), tuple)
    with pytest.raises(ConfigError, match="contradicts itself"):
        encoder(use_return_dict=False, return_dict=True)
    for key in ("return_dict", "use_return_dict", "output_hidden_states"):
        with pytest.raises(ConfigError, match=f"{key} in config.json must be true or false"):
            encoder(**{key: "yes"})
    model = encoder()
    for key in ("return_dict", "output_hidden_states", "output_attentions"):
        with pytest.raises(TypeError, match=f"{key} must be True, False or None, not 1"):
            model(ids, **{key: 1})
    with pytest.raises(ValueError, match="output_attentions is not supported"):
        model(ids, output_attentions=True)
    assert model(ids, output_attentions=False).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_attentions_in_config_are_refused(variant: str, case: Case) -> None:
    for value in (False, None):
        assert NomicBert.from_pretrained(case.build(variant, output_attentions=value))
    folder = case.build(variant, output_attentions=True)
    with pytest.raises(ConfigError, match="output_attentions = True is not supported"):
        NomicBert.from_pretrained(folder)


def dtypes(output: Any) -> dict[str, Any]:
    return {
        name: value.dtype if isinstance(value, Tensor) else [x.dtype for x in value]
        for name, value in output.items()
    }


def autocast(call: Callable[[], Any]) -> Any:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        return call()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "task"), NATIVE)
def test_heads_under_autocast(family: str, task: str, backend: str, case: Case) -> None:
    labels = 2 if task == "QuestionAnswering" else 3
    folder = build_head(case.folder / "m", family, task, seed=case.seed, num_labels=labels)
    batch = labelled(case, folder, task)
    model, judge = OURS[task].from_pretrained(folder, backend=backend), theirs(folder)
    found, wanted = (
        autocast(lambda one=one: one(**batch, output_hidden_states=True)) for one in (model, judge)
    )
    assert dtypes(found) == dtypes(wanted)
    mine, truth = (logits_of(x, batch["attention_mask"]).float() for x in (found, wanted))
    exact = logits_of(model(**batch), batch["attention_mask"]).detach()
    # both round each layer's results, in another order; few values are a noisy sample
    error, usual = ((x - exact).square().mean().sqrt() for x in (mine, truth))
    within("error, of transformers' own", (error / usual).item(), 3)
    assert (found.loss - wanted.loss).abs() <= 0.02 * wanted.loss
    with torch.no_grad():
        held("without autocast", model(**batch).loss, judge(**batch).loss, LOSS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_encoders_under_autocast(family: str, backend: str, case: Case) -> None:
    folder = build_head(case.folder / "m", family, "SequenceClassification", seed=case.seed)
    batch = case.batch(folder)
    model = NomicBert.from_pretrained(folder, backend=backend, add_pooling_layer=True, strict=False)
    judge = native(folder, family)
    found, wanted = (
        autocast(lambda one=one: one(**batch, output_hidden_states=True)) for one in (model, judge)
    )
    expected = dtypes(wanted)
    if family == "NomicBert":  # transformers' encoder has no pooler: its head for texts does
        head = theirs(folder)
        pooled = autocast(lambda: pooled_by(head, wanted.last_hidden_state[:, 0]))
        expected["pooler_output"] = pooled.dtype
    else:
        pooled = wanted.pooler_output
    assert dtypes(found) == expected
    error = (found.pooler_output.float() - pooled.float()).abs().max().item()
    within("pooler_output", error, 8 * ROUNDED)
