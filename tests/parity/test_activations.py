"""BERT with another activation than GELU, against transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from nomicbert.loading.activation_names import BERT_ACTS
from nomicbert.modeling.activations import FUNCTIONS, activate
from nomicbert.verify.oracle import ACTS, oracle
from tests.parity.bounds import BACKENDS, HIDDEN, LOSS
from tests.parity.gradients import BERT, compare, stacked
from tests.parity.report import held
from tests.parity.support import Case, hidden_states, masked, ours, theirs
from tests.parity.test_gradients import gradients
from tests.parity.test_heads import backward, labelled, reference_gradient
from tests.support import heads
from tests.support.checkpoints import read_config

# one name of each function that has no op of its own
NAMES = ("gelu_new", "relu", "silu", "quick_gelu")


def spread() -> Tensor:
    """Values of every size that occurs, and those where formulas differ most."""
    return torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.zeros(1)])


@pytest.mark.parametrize("name", BERT_ACTS)
def test_values_and_slopes_are_those_of_transformers(name: str) -> None:
    found, wanted = (spread().requires_grad_() for _ in range(2))
    mine, reference = FUNCTIONS[BERT_ACTS[name]](found), ACT2FN[name](wanted)
    weight = torch.linspace(1, 2, len(found), dtype=torch.float64)
    for y in (mine, reference):
        (y * weight).sum().backward()
    # gelu_fast rounds sqrt(2 / pi) to ten digits; two different functions differ by over 1e-4
    held("activation in float64", mine, reference, 1e-9, name)
    held("slope in float64", found.grad, wanted.grad, 1e-9, name)
    held("activation of verify", ACTS[name](wanted), reference, 1e-9, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_one_rounding_in_16_bits(name: str, dtype: torch.dtype) -> None:
    x = spread().to(dtype)
    truth = ACT2FN[name](x.double())
    rounding = torch.finfo(dtype).eps / 2 * truth.abs() + torch.finfo(dtype).tiny
    found = activate(x, BERT_ACTS[name])
    assert found.dtype == dtype
    # beside the last rounding that of 1 + tanh in float32, of up to 12
    least = 12 * torch.finfo(torch.float32).eps
    assert ((found.double() - truth).abs() <= rounding + least).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_gradients(name: str, backend: str, case: Case) -> None:
    folder = case.build_native("bge-en", hidden_act=name)
    batch = case.batch(folder, least=1)
    reference, model = theirs(folder), ours(folder, backend)
    assert type(reference.encoder.layer[0].intermediate.intermediate_act_fn) is type(ACT2FN[name])
    wanted = masked(hidden_states(reference, batch), batch)
    held("hidden states", hidden_states(model, batch), wanted, HIDDEN)
    truth = gradients(reference, batch)
    for key, gradient in gradients(model, batch).items():
        compare(key, gradient, stacked(key, truth, BERT, "encoder.layer."), rotary=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_masked_language_model(name: str, backend: str, case: Case) -> None:
    """The transform before the decoder has the encoder's activation."""
    folder = heads.build_head(
        case.folder / "model", "Bert", "MaskedLM", seed=case.seed, hidden_act=name
    )
    batch = labelled(case, folder, "MaskedLM")
    logits, loss, reference = backward(heads.theirs(folder), batch)
    model = heads.OURS["MaskedLM"].from_pretrained(folder, backend=backend)
    own_logits, own_loss, mine = backward(model, batch)
    held("logits", own_logits, logits, HIDDEN)
    held("loss", own_loss, loss, LOSS)
    for key, gradient in mine.items():
        compare(key, gradient, reference_gradient(key, reference), rotary=False)
    with torch.no_grad():  # prepared weights
        found = model(**batch).logits * batch["attention_mask"][..., None]
    held("logits", found, logits, HIDDEN)


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_of_verify(name: str, case: Case) -> None:
    folder = case.build_native("bge-en", hidden_act=name)
    ids = [[3, 7, 9, 11], [5, 4]]
    states, _ = oracle(folder, read_config(folder), ids)
    reference = theirs(folder)
    with torch.no_grad():
        wanted = torch.cat([reference(torch.tensor([text]))[0][0] for text in ids])
    held("hidden states", states[-1], wanted, HIDDEN)
