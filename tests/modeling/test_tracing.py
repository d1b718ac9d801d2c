"""Tracers and transforms of torch: each computes the right values or is refused by name.

A trace would hold the lengths of its example, and be silently wrong for another batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from nomicbert import Embedder, NomicBert
from nomicbert.errors import BackendError
from nomicbert.modeling.packing import pack
from tests.support.checkpoints import build_checkpoint
from tests.support.heads import OURS, build_head

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 3]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
OTHER = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
BACKENDS = ("reference", "torch")
NEAR = 1e-5
both = pytest.mark.parametrize("backend", BACKENDS)
PROGRAM = "nomicbert.export.program(model) for texts of one length"
JIT = "torch.jit.trace would record the lengths of its example"


class Called(nn.Module):
    """A model whose result is a tensor, as tracers want."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.model(ids, mask)[0]
        return found


def load(folder: Path, backend: str) -> Called:
    build_checkpoint(folder, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(folder, backend=backend)  # type: ignore[arg-type]
    return Called(model.requires_grad_(False)).eval()


def refused(call: Callable[[], Any], *by: str) -> None:
    """The error, or one that it is the cause of, names what is refused and what to do."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 torch wraps it in errors of its own
        call()
    chain: list[BaseException] = [caught.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert any(all(part in str(error) for part in by) for error in chain), chain


@both
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(legacy TorchScript|will be removed):DeprecationWarning")
def test_jit_is_refused(backend: str, tmp_path: Path) -> None:
    """However a model is called, with a mask and without."""
    model = load(tmp_path / "a", backend)
    embedder = Embedder(tmp_path / "a", backend=backend)
    batch = pack([[5, 6, 7], [8]])
    calls: list[tuple[Any, tuple[Tensor, ...]]] = [(model, (IDS, MASK)), (model, (IDS,))]
    for task, kind in OURS.items():
        head = kind.from_pretrained(build_head(tmp_path / task, "NomicBert", task), backend=backend)
        calls.append((Called(head.eval()), (IDS, MASK)))
    calls += [
        (lambda x: embedder.embedding_model.encode_ids([[5, 6, 7]]) + x, (torch.ones(1),)),
        (lambda x: embedder.embedding_model(batch) + x, (torch.ones(1),)),
        (lambda x: model.model.core(model.model.context(batch)) + x, (torch.ones(1),)),
    ]
    for call, inputs in calls:
        with pytest.raises(BackendError, match=JIT):
            torch.jit.trace(call, inputs)
    with pytest.raises(BackendError, match=JIT):
        torch.onnx.export(model, (IDS, MASK), io.BytesIO(), dynamo=False)
    refused(lambda: torch.jit.script(model.model), "keyword-only arguments")
    # nothing remains of it
    assert model(IDS, MASK).isfinite().all()


@both
def test_export(backend: str, tmp_path: Path) -> None:
    """Of a call without a mask, at fixed sizes; the model is as before afterwards."""
    model, fresh, other = load(tmp_path, backend), load(tmp_path, backend), IDS.flip(0) + 1
    if backend == "torch":
        program = torch.export.export(model, (IDS,)).module()
        assert (program(other) - fresh(other)).abs().max() <= NEAR
        assert (program(other) - fresh(IDS)).abs().max() > 0.1
    else:
        refused(
            lambda: torch.export.export(model, (IDS,)),
            "torch.export cannot record backend 'reference'",
            PROGRAM,
        )
    assert torch.equal(model(other), fresh(other))
    for strict in (False, True):
        refused(
            lambda strict=strict: torch.export.export(model, (IDS, MASK), strict=strict),
            "torch.export cannot record attention_mask",
            PROGRAM,
        )
    dynamic = {"ids": {0: torch.export.Dim("rows"), 1: torch.export.Dim("columns")}}
    refused(
        lambda: torch.export.export(model, (IDS,), dynamic_shapes=dynamic),
        "torch.export cannot record a padded batch of dynamic size",
        PROGRAM,
    )


@both
def test_fx(backend: str, tmp_path: Path) -> None:
    model = load(tmp_path, backend)
    with pytest.raises(BackendError, match=r"torch\.fx cannot trace lengths"):
        torch.fx.symbolic_trace(model.model)
    for mode in ("real", "fake", "symbolic"):
        for inputs in ((IDS, MASK), (IDS,)):
            with pytest.raises(BackendError, match="make_fx cannot trace lengths"):
                make_fx(model, tracing_mode=mode)(*inputs)


@both
# torch runs its attention on a CPU once for each
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_functional_transforms(backend: str, tmp_path: Path) -> None:
    model = load(tmp_path, backend)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(IDS, MASK)
    with pytest.raises(BackendError, match="vmap cannot run over the inputs"):
        vmap(lambda ids, mask: model(ids[None], mask[None]))(IDS, MASK)
    with pytest.raises(BackendError, match="vmap cannot run over the inputs"):
        vmap(lambda ids: model(ids[None]))(IDS)
    # other parameters: by value, and many at a time
    names = "layers.0.mlp.down.weight", "layers.0.attention.qkv.weight", "embeddings.norm.bias"
    for name in names:
        place = f"model.{name}"
        two = torch.stack([parameters[place], 1.5 * parameters[place]])

        def call(one: Tensor, place: str = place) -> Tensor:
            return functional_call(model, {place: one}, (IDS, MASK))

        wanted = []
        for one in two:
            model.load_state_dict(parameters | {place: one})
            wanted.append(model(IDS, MASK))
        model.load_state_dict(parameters)
        assert (wanted[1] - before).abs().max() > 0.1
        for one, truth in zip(two, wanted, strict=True):
            assert (call(one) - truth).abs().max() <= NEAR
        assert (vmap(call)(two) - torch.stack(wanted)).abs().max() <= NEAR
        # gradients, against autograd
        leaf = two[1].clone().requires_grad_()
        call(leaf)[0, 0].square().sum().backward()
        found = grad(lambda one, call=call: call(one)[0, 0].square().sum())(two[1])
        assert leaf.grad is not None
        assert (found - leaf.grad).abs().max() <= NEAR * leaf.grad.abs().max()
        rows = jacrev(lambda one, call=call: call(one)[0, 0, :2])(two[1])
        for column in range(2):
            leaf.grad = None
            call(leaf)[0, 0, column].backward()
            assert (rows[column] - leaf.grad).abs().max() <= NEAR * leaf.grad.abs().max()
    assert torch.equal(model(IDS, MASK), before)


@pytest.mark.filterwarnings("ignore:.*torch.compile:UserWarning")
def test_a_compiled_model_with_another_mask(tmp_path: Path) -> None:
    """torch.compile reads the lengths anew."""
    model = load(tmp_path, "torch")
    compiled = torch.compile(model, backend="eager")
    for mask in (MASK, OTHER):
        assert (compiled(IDS, mask) - model(IDS, mask)).abs().max() <= NEAR
    torch.compiler.reset()
