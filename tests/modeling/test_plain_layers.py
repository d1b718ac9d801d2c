"""Layers that were hooked, wrapped, parametrised or replaced are called, on every backend.

The truth is a model whose parameters hold the same change. Every kind of layer is covered: fused
and plain linear layers, the router and the experts of a mixture, tables, LayerNorm, Dense layers,
and the layers of the heads.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from nomicbert import CrossEncoder, Embedder, NomicBert
from nomicbert.modeling.packing import pack
from nomicbert_kernels import backend as backends
from nomicbert_kernels.linear_int8 import why_not
from tests.ops.cases import INTERPRETS
from tests.parity.bounds import BACKENDS, GRADIENT, HIDDEN
from tests.support.checkpoints import build_checkpoint
from tests.support.heads import OURS, build_head
from tests.support.rerankers import build_reranker

VARIANTS = ("nomic-v1.5", "nomic-v2-moe", "conan-v1")
IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14]]
KINDS = (nn.Linear, nn.Embedding, nn.LayerNorm)
Change = Callable[[nn.Module, Tensor], None]


class Changed(nn.Module):
    """In place of a layer, whose result it changes."""

    def __init__(self, layer: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.layer, self.delta = layer, delta

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) + added(self.layer, x, self.delta)
        return found


class Sub(nn.Linear):
    """A subclass of nn.Linear that changes its result."""

    delta: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.delta.T


class Plus(nn.Module):
    """A parametrisation."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        return x + self.delta


def added(layer: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """What a change of the weight by `delta` adds to a layer's result."""
    if isinstance(layer, nn.Embedding):
        return delta[x]
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(x, x.shape[-1:], eps=layer.eps) * delta
    return x @ delta.T


def by_hook(layer: nn.Module, delta: Tensor) -> None:
    layer.register_forward_hook(lambda one, inputs, y: y + added(one, inputs[0], delta))


def by_forward(layer: nn.Module, delta: Tensor) -> None:
    """As accelerate does."""
    before = layer.forward
    layer.forward = lambda x: before(x) + added(layer, x, delta)


def by_parametrization(layer: nn.Module, delta: Tensor) -> None:
    parametrize.register_parametrization(layer, "weight", Plus(delta))


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if type(layer) in KINDS}


def deltas_of(model: nn.Module) -> dict[str, Tensor]:
    """A change of every weight, large enough that each one shows."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: layer.weight.detach().std().nan_to_num().clamp(min=0.05)
        * torch.randn(layer.weight.shape, generator=generator)
        for name, layer in layers_of(model).items()
    }


def shifted(model: nn.Module, deltas: dict[str, Tensor]) -> nn.Module:
    """A copy whose parameters hold the change."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, delta in deltas.items():
            other.get_submodule(name).weight.add_(delta)
    return other


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


CHANGES: dict[str, Change] = {
    "hook": by_hook,
    "forward": by_forward,
    "parametrization": by_parametrization,
}


def vectors(model: Any) -> Tensor:
    found: Tensor = model(pack(IDS))
    return found


def agree(found: Tensor, wanted: Tensor, unlike: Tensor) -> None:
    """Equal within the bound, and the change is far beyond it."""
    assert (wanted - unlike).abs().max() > 100 * HIDDEN
    assert (found - wanted).abs().max() <= HIDDEN


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer(variant: str, backend: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant, num_hidden_layers=2)
    plain = Embedder(tmp_path, backend=backend).embedding_model
    deltas = deltas_of(plain)
    assert len(deltas) >= 11
    with torch.no_grad():
        before = vectors(plain)
        for name, delta in deltas.items():
            model = copy.deepcopy(plain)
            by_hook(model.get_submodule(name), delta)
            agree(vectors(model), vectors(shifted(plain, {name: delta})), before)


@pytest.mark.parametrize("way", CHANGES)
def test_every_way(way: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    plain = Embedder(tmp_path).embedding_model
    deltas = {name: 0.3 * delta for name, delta in deltas_of(plain).items()}
    model = copy.deepcopy(plain)
    for name, delta in deltas.items():
        CHANGES[way](model.get_submodule(name), delta)
    with torch.no_grad():
        agree(vectors(model), vectors(shifted(plain, deltas)), vectors(plain))


@pytest.mark.parametrize("way", ["module", "subclass"])
def test_replaced(way: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    plain = Embedder(tmp_path).embedding_model
    deltas = {
        name: 0.3 * delta
        for name, delta in deltas_of(plain).items()
        if way == "module" or isinstance(plain.get_submodule(name), nn.Linear)
    }
    model = copy.deepcopy(plain)
    for name, delta in deltas.items():
        layer = model.get_submodule(name)
        new: nn.Module = Changed(layer, delta)
        if way == "subclass":
            new = Sub(layer.in_features, layer.out_features, layer.bias is not None)
            new.load_state_dict(layer.state_dict())
            new.delta = delta
        replace(model, name, new)
    with torch.no_grad():
        agree(vectors(model), vectors(shifted(plain, deltas)), vectors(plain))


OTHERS = ["int8", "fp8"] + ["triton"] * INTERPRETS


@pytest.mark.parametrize("backend", OTHERS)
@torch.no_grad()
def test_other_backends(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called layers are not quantised. fp8 has hidden states in another form between the layers."""
    if backend == "int8" and (problem := why_not()):
        pytest.skip(problem)
    if backend == "fp8":
        monkeypatch.setattr(backends, "why_not_fp8", lambda *_: None)
        monkeypatch.setattr(backends, "fp8_ops", lambda device: backends.FP8_REFERENCE)
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    plain = NomicBert.from_pretrained(tmp_path, backend="torch")
    deltas = {name: 0.3 * delta for name, delta in deltas_of(plain).items()}
    wanted = shifted(plain, deltas).encode_packed(pack(IDS))
    model = NomicBert.from_pretrained(tmp_path, backend=backend)
    for name, delta in deltas.items():
        by_hook(model.get_submodule(name), delta)
    agree(model.encode_packed(pack(IDS)), wanted, plain.encode_packed(pack(IDS)))
    # layers of both kinds next to each other: not less exact than if all are quantised
    quantised = NomicBert.from_pretrained(tmp_path, backend=backend)
    for name, delta in deltas.items():
        some = NomicBert.from_pretrained(tmp_path, backend=backend)
        by_hook(some.get_submodule(name), delta)
        true = shifted(plain, {name: delta}).encode_packed(pack(IDS))
        error, usual = (
            (one.encode_packed(pack(IDS)) - true).square().mean().sqrt()
            for one in (some, shifted(quantised, {name: delta}))
        )
        assert error <= 1.3 * usual + HIDDEN, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", OURS)
def test_heads(task: str, backend: str, tmp_path: Path) -> None:
    """Their own layers, with gradients through the hooks."""
    folder = build_head(tmp_path, "NomicBert", task)
    plain = OURS[task].from_pretrained(folder, backend=backend)
    deltas = {
        name: delta for name, delta in deltas_of(plain).items() if not name.startswith("encoder.l")
    }
    own = [n for n in deltas if not n.startswith("encoder.e")]
    assert len(own) == {"MaskedLM": 2, "SequenceClassification": 2}.get(task, 1)
    # tied to the decoder, which reads the parameter
    deltas.pop("encoder.embeddings.word")
    model, wanted = copy.deepcopy(plain), shifted(plain, deltas)
    for name, delta in deltas.items():
        by_hook(model.get_submodule(name), delta)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    outputs = []
    for one in (model, wanted, plain):
        out = one(ids, return_dict=False)
        sum(x.square().sum() for x in out).backward()
        outputs.append(torch.cat([x.detach().flatten() for x in out]))
    agree(*outputs)
    for (name, mine), theirs in zip(model.named_parameters(), wanted.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        assert (mine.grad - theirs.grad).abs().max() <= GRADIENT * scale + 1e-7, name


@torch.no_grad()
def test_hooks_of_torch(tmp_path: Path) -> None:
    """Pruning and both forms of weight normalisation."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    plain = NomicBert.from_pretrained(tmp_path)
    batch = pack(IDS)
    before = plain.encode_packed(batch)
    for name in ("qkv", "up_gate", "down"):
        place = f"layers.0.attention.{name}" if name == "qkv" else f"layers.0.mlp.{name}"
        pruned, wanted = copy.deepcopy(plain), copy.deepcopy(plain)
        prune.l1_unstructured(pruned.get_submodule(place), "weight", 0.5)
        wanted.get_submodule(place).weight.copy_(pruned.get_submodule(place).weight)
        agree(pruned.encode_packed(batch), wanted.encode_packed(batch), before)
        doubled = shifted(plain, {place: plain.get_submodule(place).weight})
        for normed in (weight_norm, parametrizations.weight_norm):
            model = copy.deepcopy(plain)
            layer = model.get_submodule(place)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the older form
                normed(layer)
            for parameter, value in layer.named_parameters():
                if parameter == "weight_g" or parameter.endswith("original0"):
                    value.mul_(2)
            agree(model.encode_packed(batch), doubled.encode_packed(batch), before)


def test_backward_and_global_hooks(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path)
    # the gradient of a table's input does not exist
    names = [name for name, layer in layers_of(model).items() if type(layer) is not nn.Embedding]
    seen: list[str] = []
    for name in names:
        layer = model.get_submodule(name)
        layer.register_full_backward_hook(lambda one, gi, go, name=name: seen.append(name))
    model.encode_packed(pack(IDS)).sum().backward()
    assert sorted(seen) == sorted(names)

    model, called = NomicBert.from_pretrained(tmp_path), []
    handle = nn.modules.module.register_module_forward_hook(lambda one, *_: called.append(one))
    model.encode_packed(pack(IDS))
    handle.remove()
    assert set(layers_of(model).values()) <= set(called)
    called.clear()
    model.encode_packed(pack(IDS))
    assert not called


@torch.no_grad()
def test_parametrised_experts(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v2-moe", num_hidden_layers=2)
    plain = NomicBert.from_pretrained(tmp_path)
    batch, before = pack(IDS), plain.encode_packed(pack(IDS))
    for name in ("experts_up", "experts_down", "bias"):
        model, wanted = copy.deepcopy(plain), copy.deepcopy(plain)
        delta = 0.5 * torch.randn_like(getattr(plain.layers[1].mlp, name))
        parametrize.register_parametrization(model.layers[1].mlp, name, Plus(delta))
        getattr(wanted.layers[1].mlp, name).add_(delta)
        agree(model.encode_packed(batch), wanted.encode_packed(batch), before)


@torch.no_grad()
def test_dynamic_quantisation(tmp_path: Path) -> None:
    """torch's int8 layers: not plain, without a weight that is a parameter."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=2)
    plain = Embedder(tmp_path).embedding_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the function is deprecated, and warns twice
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear})
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    found, wanted = vectors(model), vectors(plain)
    assert not torch.equal(found, wanted)
    assert torch.cosine_similarity(found, wanted).min() >= 0.98


@torch.no_grad()
def test_removed_hooks_leave_the_bits(tmp_path: Path) -> None:
    """A parameter that was changed while its layer was hooked is prepared anew."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path)
    before = model.encode_packed(pack(IDS))
    layer = model.layers[0].mlp.down
    handle = layer.register_forward_hook(lambda *_: None)
    assert (model.encode_packed(pack(IDS)) - before).abs().max() <= HIDDEN
    # one element, without a new version: no sample would show it
    layer.weight.data[1, 1] += 3
    handle.remove()
    after = model.encode_packed(pack(IDS))
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(model).encode_packed(pack(IDS)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_narrow_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """A called layer gets its own dtype."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path, dtype=dtype)
    before, seen = model.encode_packed(pack(IDS)), set()
    for layer in layers_of(model).values():
        layer.register_forward_hook(lambda one, x, y: seen.add(y.dtype))
    found = model.encode_packed(pack(IDS))
    assert seen == {dtype}
    assert found.dtype == before.dtype == model.compute_dtype
    assert torch.cosine_similarity(found.float(), before.float()).min() >= 0.999


def test_hooks_that_would_not_run_are_refused(tmp_path: Path) -> None:
    """On the encoder itself, where packed texts go past its forward."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    embedder = Embedder(tmp_path)
    handle = embedder.model.register_forward_hook(lambda *_: None)
    ids = torch.tensor([[5, 6, 7]])
    assert embedder.model(ids).last_hidden_state.isfinite().all()
    for call in (
        lambda: embedder.encode(["a text"]),
        lambda: embedder.encode(["a text"], output_value="token_embeddings"),
        lambda: embedder.embedding_model(pack(IDS)),
    ):
        with pytest.raises(ValueError, match=r"a hook on NomicBert .* would not run here"):
            call()
    handle.remove()
    assert np.isfinite(embedder.encode(["a text"])).all()
    # windows of a long text are pooled one by one; token embeddings are not pooled
    long = ["a text " * 400]
    for module in (embedder.embedding_model, embedder.pooling):
        handle = module.register_forward_hook(lambda one, x, y: 0 * y)
        assert not embedder.encode(["a text"]).any()
        with pytest.raises(ValueError, match=r"a hook on .* would not run here"):
            embedder.encode(long, truncate="chunk")
        handle.remove()
    assert embedder.encode(long, truncate="chunk").any()
    reranker = CrossEncoder(build_reranker(tmp_path / "reranker"))
    handle = reranker.model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="a hook on NomicBertForSequenceClassification"):
        reranker.predict([("a", "b")])
    handle.remove()
    head = OURS["TokenClassification"](embedder.model.config)
    head.encoder.forward = head.encoder.forward
    with pytest.raises(ValueError, match="or a wrapped forward"):
        head(ids)


def test_a_layer_that_returns_no_tensor_is_refused(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path)
    model.layers[0].mlp.down.register_forward_hook(lambda one, x, y: (y,))
    with pytest.raises(TypeError, match="Linear must return a tensor, not tuple"):
        model.encode_packed(pack(IDS))
