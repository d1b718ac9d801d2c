"""BoundLayers: never stale after any change, and the same bits as the layers one by one."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nomicbert import EncoderConfig, NomicBert
from nomicbert.modeling.bound_layers import Binding, BoundLayers
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.packing import pack
from nomicbert_kernels import Backend, backend, linear_int8, linear_torch

CONFIGS = {
    "bert": EncoderConfig("bert", 40, 32, 3, 2, 48, 2, 64, 1e-12, hidden_dropout_prob=0.3),
    "gated": EncoderConfig(
        "nomic_bert", 40, 32, 3, 2, 48, 2, 64, 1e-12, "swiglu", rotary_dim=16,
        mlp_up_bias=False, mlp_down_bias=False, max_trained_positions=64, hidden_dropout_prob=0.3,
    ),
    "mixed": EncoderConfig(
        "nomic_bert", 40, 32, 3, 2, 48, 1, 64, 1e-5, rotary_dim=16, num_experts=4, moe_top_k=2,
        max_trained_positions=64,
    ),
}  # fmt: skip
TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16], [17]]
WHY_NOT_INT8 = linear_int8.why_not()
INT8 = pytest.param(
    "int8", marks=pytest.mark.skipif(WHY_NOT_INT8 is not None, reason=str(WHY_NOT_INT8))
)
PACKS = linear_torch.onednn_packs(torch.float32)
NEEDS_PACKING = pytest.mark.skipif(not PACKS, reason="oneDNN does not pack")
Change = Callable[[NomicBert], Any]


def build(config: str, backend: Backend = "torch", dtype: torch.dtype = torch.float32) -> NomicBert:
    torch.manual_seed(3)
    model = NomicBert(CONFIGS[config], backend=backend).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype)


@pytest.fixture(params=["bert", "gated"])
def model(request: pytest.FixtureRequest) -> NomicBert:
    """A model whose layers have been bound by one forward pass."""
    model = build(request.param)
    run(model)
    return model


def run(model: NomicBert, rows: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.encode_packed(pack(TEXTS, "cpu"), rows=rows)


@contextmanager
def unbound() -> Iterator[None]:
    """Call every layer inside this block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundLayers, "get", lambda *_: None)
        yield


def layers_run(model: NomicBert) -> int:
    """How many layers one forward pass runs by `Ops.layer`."""
    found = []
    ops = model.ops
    layer = ops.layer
    assert layer is not None

    def counted(*args: Any) -> Any:
        found.append(1)
        return layer(*args)

    object.__setattr__(ops, "layer", counted)  # frozen
    try:
        run(model)
    finally:
        object.__setattr__(ops, "layer", layer)
    return len(found)


@NEEDS_PACKING
@pytest.mark.parametrize(("config", "count"), [("bert", 3), ("gated", 3), ("mixed", 2)])
def test_plain_layers_are_bound(config: str, count: int) -> None:
    """All but a mixture of experts, which the op does not compute."""
    assert layers_run(build(config)) == count


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["torch", "torch bf16", INT8])
@pytest.mark.parametrize("first_tokens", [False, True])
def test_bits_of_the_layers_one_by_one(config: str, name: str, first_tokens: bool) -> None:
    dtype = torch.bfloat16 if name == "torch bf16" else torch.float32
    model = build(config, "int8" if name == "int8" else "torch", dtype)
    rows = pack(TEXTS, "cpu").first_tokens() if first_tokens else None
    found = run(model, rows)
    with unbound():
        assert torch.equal(found, run(model, rows))


class Changed(nn.Module):
    """In place of a layer, whose result it changes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) * 1.5
        return found


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Sub(nn.Linear):
    """A subclass that changes its result."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replace(model: NomicBert) -> None:
    attention = model.layers[1].attention
    attention.out = Changed(attention.out)


def replace_by_another(model: NomicBert) -> None:
    attention = model.layers[1].attention
    attention.out = nn.Linear(32, 32)


def other_class(model: NomicBert) -> None:
    model.layers[1].mlp.down.__class__ = Sub


def hook(model: NomicBert, path: str) -> Any:
    return model.get_submodule(path).register_forward_hook(lambda m, args, out: changed(out))


def pre_hook(model: NomicBert) -> Any:
    down = model.layers[2].mlp.down
    return down.register_forward_pre_hook(lambda m, args: (2 * args[0],))


def changed(out: Any) -> Any:
    """More than a factor, which LayerNorm would remove."""
    if isinstance(out, Tensor):
        return out + torch.linspace(0, 1, out.shape[1])
    return changed(out[0]), *out[1:]


def wrapped_forward(model: NomicBert) -> None:
    down = model.layers[0].mlp.down
    forward = down.forward
    down.forward = lambda x: 2 * forward(x)


def new_hooks(model: NomicBert) -> None:
    """Not by register_forward_hook: another dict."""
    down = model.layers[0].mlp.down
    down._forward_hooks = type(down._forward_hooks)({1: lambda m, args, out: 2 * out})


def in_place(model: NomicBert) -> None:
    with torch.no_grad():
        model.layers[1].attention.qkv.weight.mul_(1.5)


def through_data(model: NomicBert) -> None:
    model.layers[1].attention.qkv.weight.data.mul_(1.5)


def other_data(model: NomicBert) -> None:
    weight = model.layers[1].mlp_norm.weight
    weight.data = weight.data * 1.5


def other_parameter(model: NomicBert) -> None:
    norm = model.layers[1].attention_norm
    norm.weight = nn.Parameter(norm.weight.detach() * 1.5)


def no_bias(model: NomicBert) -> None:
    model.layers[1].attention_norm.bias = None


def eps(model: NomicBert) -> None:
    model.layers[1].attention_norm.eps = 0.5


def scale(model: NomicBert) -> None:
    model.layers[1].attention.scale = 1.0


def heads(model: NomicBert) -> None:
    for layer in model.layers:
        layer.attention.num_heads = 1
    model.rotary = None  # of another head size


def reversed_layers(model: NomicBert) -> None:
    model.layers = nn.ModuleList(list(model.layers)[::-1])


def swapped_layers(model: NomicBert) -> None:
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def fewer_layers(model: NomicBert) -> None:
    del model.layers[1]


def parametrised(model: NomicBert) -> None:
    parametrize.register_parametrization(model.layers[0].attention.out, "weight", Doubled())


def loaded(model: NomicBert) -> None:
    model.load_state_dict({name: 1.1 * t for name, t in model.state_dict().items()})


def changed_while_wrapped(model: NomicBert) -> None:
    """Elements that no sample covers, changed while the layer was called with gradients."""
    attention = model.layers[1].attention
    plain = attention.out
    attention.out = Changed(plain)
    model.encode_packed(pack(TEXTS, "cpu"))
    plain.weight.data[0, 1:9] += 3.0
    attention.out = plain


def cast_part(model: NomicBert) -> None:
    model.layers[0].mlp.down.to(torch.bfloat16).to(torch.float32)


CHANGES: dict[str, Change] = {
    "replaced": replace,
    "replaced by its kind": replace_by_another,
    "other class": other_class,
    "hook of a linear layer": partial(hook, path="layers.0.mlp.down"),
    "hook of a norm": partial(hook, path="layers.0.mlp_norm"),
    "hook of the last module": partial(hook, path="layers.2.mlp_norm"),
    "hook of a layer": partial(hook, path="layers.1"),
    "hook of attention": partial(hook, path="layers.1.attention"),
    "hook of an MLP": partial(hook, path="layers.1.mlp"),
    "pre-hook": pre_hook,
    "wrapped forward": wrapped_forward,
    "other dict of hooks": new_hooks,
    "changed in place": in_place,
    "changed through data": through_data,
    "other data": other_data,
    "other parameter": other_parameter,
    "norm without bias": no_bias,
    "eps": eps,
    "scale": scale,
    "heads": heads,
    "other list of layers": reversed_layers,
    "swapped layers": swapped_layers,
    "fewer layers": fewer_layers,
    "parametrised": parametrised,
    "loaded": loaded,
    "cast and cast back": cast_part,
    "changed while wrapped": changed_while_wrapped,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("ops", ["torch", INT8])
def test_never_stale(model: NomicBert, name: str, ops: Backend) -> None:
    model.use(ops)
    before = run(model)
    CHANGES[name](model)
    found = run(model)
    with unbound():
        wanted = run(model)
    assert torch.equal(found, wanted) if PACKS else torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-4), "the change changes nothing"


@pytest.mark.parametrize("ops", ["torch", INT8])
def test_hooks_get_tensors(model: NomicBert, ops: Backend) -> None:
    seen: list[type] = []
    model.use(ops)
    with torch.no_grad():
        model.layers[1].register_forward_pre_hook(lambda m, args: seen.append(type(args[0])))
    run(model)
    assert seen == [Tensor]


def test_a_layer_that_returns_another_dtype(model: NomicBert) -> None:
    """What follows it computes as if nothing were bound, or refuses it likewise."""
    model.layers[0].register_forward_hook(lambda m, args, out: out.double())
    with pytest.raises(ValueError, match=r"x is torch\.float64, but the weight is torch\.float32"):
        run(model)


@pytest.mark.parametrize("rows", [[0, 5, 7], [0, 5, 7, 7], [0, 5, 7, 13]])
def test_rows_of_other_texts(model: NomicBert, rows: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^rows"):
        run(model, torch.tensor(rows))


@NEEDS_PACKING
@pytest.mark.parametrize("path", ["layers.0.mlp.down", "layers.1", "layers.2.attention"])
def test_bound_again_without_the_hook(model: NomicBert, path: str) -> None:
    before = run(model)
    handle = hook(model, path)
    assert layers_run(model) == 2
    handle.remove()
    assert layers_run(model) == 3
    assert torch.equal(run(model), before)


def test_global_hook(model: NomicBert) -> None:
    before = run(model)

    def double(module: nn.Module, args: Any, out: Any) -> Any:
        return 2 * out if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        found = run(model)
    finally:
        handle.remove()
    assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(run(model), before)


def test_forward_of_a_class(model: NomicBert, monkeypatch: pytest.MonkeyPatch) -> None:
    before, forward = run(model), Layer.forward
    monkeypatch.setattr(Layer, "forward", lambda self, *args: 2 * forward(self, *args))
    assert not torch.allclose(run(model), before, atol=1e-3)


def test_training_mode(model: NomicBert) -> None:
    """Dropout without gradients, of the model and of a single layer."""
    before = run(model)
    model.layers[1].train()
    assert not torch.equal(run(model), before)
    model.train()
    assert not torch.equal(run(model), before)
    assert torch.equal(run(model.eval()), before)


def test_gradients(model: NomicBert) -> None:
    model.encode_packed(pack(TEXTS, "cpu")).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.layers.parameters())


def test_autocast(model: NomicBert) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model)
        with unbound():
            assert torch.equal(found, run(model))
    assert not torch.equal(found, run(model))


def test_another_backend(model: NomicBert) -> None:
    before = run(model)
    model.use("reference")
    found = run(model)
    assert torch.allclose(found, before, atol=1e-4)
    assert not torch.equal(found, before)


def test_functional_call(model: NomicBert) -> None:
    """Parameters that are exchanged for one call; and back."""
    before = run(model)
    others = {name: 1.5 * p.detach() for name, p in model.named_parameters()}
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        plain = model(ids)[0]
        found = torch.func.functional_call(model, others, (ids,))[0]
        assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "copy"])
def test_copies(model: NomicBert, copied: str) -> None:
    before = run(model)
    if copied == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        other = getattr(copy, copied)(model)
    if copied == "copy":
        other.layers = nn.ModuleList(list(model.layers)[:2])
    else:
        in_place(other)
    found = run(other)
    with unbound():
        assert torch.equal(found, run(other)) or not PACKS
    assert not torch.allclose(found, before, atol=1e-3)
    # torch's shallow copies share the dict of modules
    assert torch.equal(run(model), found if copied == "copy" else before)


def test_threads(model: NomicBert) -> None:
    """Eight threads run while a ninth makes them bind the layers again and again."""
    wanted = run(model)
    results: list[Tensor] = []
    barrier = threading.Barrier(9)

    def work() -> None:
        barrier.wait()
        results.extend(run(model) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for _ in range(20):
        model.layers[1].register_forward_hook(lambda *_: None).remove()
    for thread in threads:
        thread.join()
    assert len(results) == 160
    assert all(torch.equal(found, wanted) for found in results)


def test_vmap_and_fake_tensors(model: NomicBert) -> None:
    """Transforms and stand-ins for tensors never reach the bound layers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ctx = model.context(pack(TEXTS, "cpu"))
    layers = BoundLayers()
    x = torch.randn(13, 32)
    with torch.no_grad():
        assert (layers.get(model.layers, x, ctx) is not None) == (model.ops.layer is not None)
        seen = []
        torch.vmap(lambda t: seen.append(layers.get(model.layers, t, ctx)) or t)(x[None])
        assert seen == [None]
        fake = FakeTensorMode().from_tensor(x)
        assert layers.get(model.layers, fake, ctx) is None
    assert layers.get(model.layers, x, ctx) is None  # with gradients


def test_inference_parameters() -> None:
    """Parameters without a version counter."""
    with torch.inference_mode():
        model = build("gated")
        before = run(model)
        model.layers[0].mlp.down.weight.data = model.layers[0].mlp.down.weight * 1.5
        found = run(model)
        with unbound():
            assert torch.equal(found, run(model)) or not PACKS
    assert not torch.allclose(found, before, atol=1e-3)


def test_a_parameter_becomes_an_inference_tensor(model: NomicBert) -> None:
    before = run(model)
    weight = model.layers[0].mlp.down.weight
    with torch.inference_mode():
        weight.data = weight * 1.5
    assert not torch.allclose(run(model), before, atol=1e-3)


@NEEDS_PACKING
def test_bound_once(model: NomicBert, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    of = Binding.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Binding, "of", classmethod(lambda cls, *args: made.append(1) or of(cls, *args))
    )
    for _ in range(3):
        run(model)
    assert made == []
    in_place(model)
    for _ in range(3):
        run(model)
    assert made == [1]


def test_backends_with_a_layer() -> None:
    assert backend.TORCH.layer is not None
    assert backend.INT8.layer is not None
    assert backend.REFERENCE.layer is None
