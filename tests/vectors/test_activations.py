"""vectors.activations: torch.nn's functions, in Dense modules and for rerankers' logits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from torch import nn

from nomicbert import CrossEncoder, Embedder
from nomicbert.vectors.activations import ACTIVATIONS, name_in, name_of, path_of
from tests.support.module_folders import build_modules
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES

ROWS = ("Softmax", "LogSoftmax", "Softmin")
PAIRS = [(a, b) for a in SENTENCES[:3] for b in SENTENCES[2:]]


def of_torch(name: str) -> nn.Module:
    kind = getattr(nn, name)
    module: nn.Module = kind(dim=-1) if name in ROWS else kind()
    return module


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_torchs(name: str) -> None:
    """Against float64, no further off than torch's own in float32."""
    x = torch.linspace(-30, 30, 4200).view(-1, 3)
    wanted = of_torch(name)(x.double())
    own = (of_torch(name)(x) - wanted).abs().max()
    assert (ACTIVATIONS[name](x) - wanted).abs().max() <= own + 2e-7
    ours, theirs = (
        torch.tensor([[-300.0, -21, -1, 0.3, 1, 21, 300]], requires_grad=True) for _ in range(2)
    )
    (ACTIVATIONS[name](ours) * torch.arange(7)).sum().backward()
    (of_torch(name)(theirs) * torch.arange(7)).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-6, rtol=1e-6)


def test_the_tail_of_sigmoid() -> None:
    """Low scores keep their order; relative to float64, as near as torch's own."""
    x = torch.linspace(-85, 20, 1051)
    found, wanted = ACTIVATIONS["Sigmoid"](x), torch.sigmoid(x.double())
    assert ((found - wanted).abs() / wanted).max() <= 4e-7
    assert (found[:900].diff() > 0).all()
    for dtype in (torch.float16, torch.bfloat16):
        y = torch.linspace(-15, 15, 301).to(dtype)
        found, wanted = ACTIVATIONS["Sigmoid"](y), torch.sigmoid(y.double())
        assert found.dtype == dtype
        # a few roundings, and the least number of float16
        eps = torch.finfo(dtype).eps
        assert ((found - wanted).abs() <= 2 * eps * wanted + 2**-24).all()


def test_the_gradient_of_sigmoid_at_zero() -> None:
    """Where its two forms meet."""
    x = torch.zeros(3, requires_grad=True)
    ACTIVATIONS["Sigmoid"](x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3,), 0.25))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_names_and_paths(name: str) -> None:
    """Paths are those that sentence-transformers writes, and read back."""
    module = of_torch(name)
    assert name_of(module) == name_of(getattr(nn, name)()) == name
    path = path_of(name)
    assert path == sentence_transformers.util.fullname(module)
    assert name_in(path) == name_in(f"torch.nn.{name}") == name
    assert getattr(sys.modules[path.rpartition(".")[0]], name) is type(module)


@pytest.mark.parametrize(
    "other",
    [
        nn.LeakyReLU(0.3),
        nn.ELU(2.0),
        nn.Softplus(beta=2),
        nn.GELU(approximate="tanh"),
        nn.Softmax(dim=0),
        nn.Hardtanh(-2.0, 1.0),
        nn.PReLU(),
        nn.Linear(2, 2),
        pytest.param(torch.exp, id="exp"),
    ],
    ids=str,
)
def test_other_functions_have_no_name(other: object) -> None:
    """Their path would be read back as another function."""
    assert name_of(other) is None


def test_names_of_functions() -> None:
    assert name_of(torch.tanh) == "Tanh"
    assert name_of(nn.ReLU(inplace=True)) == "ReLU"
    for path in ("torch.nn.PReLU", "torch.nn.Linear", "mine.Tanh", "Tanh"):
        assert name_in(path) is None


# torch's own, of Softmax() and its kin without a dimension, as sentence-transformers loads them
@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in ("Tanh", "Identity")])
def test_a_dense_module_equals_sentence_transformers(name: str, tmp_path: Path) -> None:
    made = {"out_features": 24, "activation_function": of_torch(name)}
    judge = build_modules(tmp_path / name, [("Dense", made)], width=64)
    wanted = judge.encode(SENTENCES)
    model = Embedder(tmp_path / name)
    np.testing.assert_allclose(model.encode(SENTENCES), wanted, atol=2e-5, rtol=0)
    assert np.ptp(wanted) > 1e-2
    model.save_pretrained(tmp_path / "again")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(again.encode(SENTENCES), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_equal_sentence_transformers(labels: int, tmp_path: Path) -> None:
    """With each activation; it is saved, and both load it."""
    folder = build_reranker(tmp_path / "a", labels)
    model = CrossEncoder(folder)
    judge = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    for name in ACTIVATIONS:
        model.activation_fn = judge.activation_fn = of_torch(name)
        wanted = judge.predict(PAIRS)
        np.testing.assert_allclose(model.predict(PAIRS), wanted, atol=1e-5, rtol=0)
        model.save_settings(folder)
        again = CrossEncoder(folder)
        assert type(again.activation_fn) is type(judge.activation_fn)
        np.testing.assert_array_equal(again.predict(PAIRS), model.predict(PAIRS))


def test_a_module_with_other_settings_is_called(tmp_path: Path) -> None:
    """So is one with a hook, and a subclass."""
    model = CrossEncoder(build_reranker(tmp_path))
    raw = model.predict(PAIRS, activation_fn=nn.Identity())
    found = model.predict(PAIRS, activation_fn=nn.LeakyReLU(0.3))
    np.testing.assert_allclose(found, np.where(raw > 0, raw, raw * 0.3), rtol=1e-6)
    hooked = nn.Identity()
    hooked.register_forward_hook(lambda module, given, found: found + 1)
    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn=hooked), raw + 1)

    class Doubled(nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn=Doubled()), 2 * raw)
