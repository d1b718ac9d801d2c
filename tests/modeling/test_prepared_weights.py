"""PreparedWeights: packed copies are made once, and remade after any change."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nomicbert import EncoderConfig, NomicBert
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert_kernels import linear_torch, select_ops
from tests.support.cpus import CPU_DTYPES

CONFIGS = {
    "bert": EncoderConfig("bert", 40, 24, 2, 3, 32, 2, 64, 1e-12),
    "gated": EncoderConfig(
        "nomic_bert", 40, 24, 2, 3, 32, 2, 64, 1e-12, "swiglu", rotary_dim=8,
        mlp_up_bias=False, mlp_down_bias=False, max_trained_positions=64,
    ),
    "experts": EncoderConfig(
        "nomic_bert", 40, 24, 2, 3, 32, 1, 64, 1e-5, rotary_dim=8, num_experts=4, moe_top_k=2,
        max_trained_positions=64,
    ),
}  # fmt: skip
IDS = torch.arange(30).view(3, 10)
NEEDS_PACKING = pytest.mark.skipif(
    not linear_torch.onednn_packs(torch.float32), reason="oneDNN does not pack"
)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, seed: int) -> NomicBert:
    """A model in eval mode whose weights have been prepared by one forward pass."""
    torch.manual_seed(seed)
    model = NomicBert(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    run(model)
    return model


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Record every packed weight made from here on."""
    made: list[weakref.ref[Tensor]] = []
    pack = linear_torch.pack

    def watched(source: Tensor) -> Tensor:
        piece = pack(source)
        made.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(linear_torch, "pack", watched)
    return made


def run(model: NomicBert) -> Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def fresh(model: NomicBert) -> Tensor:
    """Output of a new model with the same parameters."""
    other = NomicBert(model.config).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return run(other)


def pieces(config: EncoderConfig) -> int:
    """Number of packed weights in a two-layer model, by kind of MLP."""
    attention, experts = 2, 1 + 2 * config.num_experts
    if config.hidden_act == "swiglu":
        return 2 * (attention + 3)
    return 2 * attention + (2 + experts if config.num_experts else 4)


@NEEDS_PACKING
def test_made_once(model: NomicBert, packed: list[weakref.ref[Tensor]]) -> None:
    first = run(model)
    copy.deepcopy(model).train()  # drops only its own weights
    assert torch.equal(run(model), first)
    assert not packed
    run(NomicBert(model.config).eval())
    assert len(packed) == pieces(model.config)


@NEEDS_PACKING
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.to(torch.float64),
        lambda model: model.half(),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.to("meta"),
    ],
    ids=["train", "to", "half", "load_state_dict", "device"],
)
def test_dropped(
    seed: int, packed: list[weakref.ref[Tensor]], change: Callable[[NomicBert], Any]
) -> None:
    model = NomicBert(CONFIGS["gated"]).eval()
    run(model)
    assert packed
    assert all(piece() is not None for piece in packed)
    change(model)
    gc.collect()
    assert all(piece() is None for piece in packed)


@NEEDS_PACKING
def test_kept_by_another_call_of_eval(model: NomicBert, packed: list[weakref.ref[Tensor]]) -> None:
    run(model.eval())
    assert not packed


@NEEDS_PACKING
def test_training_prepares_nothing(model: NomicBert, packed: list[weakref.ref[Tensor]]) -> None:
    model.train()
    model(IDS)[0].square().mean().backward()
    assert not packed


def test_a_forward_pass_with_other_parameters_caches_nothing(model: NomicBert) -> None:
    kept = len(model._prepared._entries)
    for _ in range(3):
        others = {name: p.detach() * 1.5 for name, p in model.named_parameters()}
        with torch.no_grad():
            torch.func.functional_call(model, others, (IDS,))
    assert len(model._prepared._entries) == kept


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.05, fused=True),  # does not increase the version
    ],
    ids=["sgd", "foreach", "fused"],
)
def test_made_again_after_an_optimizer_step(model: NomicBert, make: Callable[..., Any]) -> None:
    """In eval mode throughout, so that only the parameters reveal the change."""
    before = run(model)
    optimizer = make(model.parameters())
    for _ in range(2):
        model(IDS)[0].square().mean().backward()
        optimizer.step()
        after = run(model)
        assert torch.equal(after, fresh(model))
        assert (after - before).abs().max() > 1e-4
        before = after


def test_made_again_after_one_parameter_has_changed(model: NomicBert) -> None:
    for name, parameter in model.layers[1].named_parameters():  # the one with experts
        before = run(model)
        with torch.no_grad():
            parameter.mul_(1.5).add_(0.1)
        after = run(model)
        assert torch.equal(after, fresh(model)), name
        assert not torch.equal(after, before), name


def test_load_state_dict(model: NomicBert) -> None:
    torch.manual_seed(1)
    other = NomicBert(model.config).eval()
    for assign in (False, True):
        state = {name: t + 0.1 * torch.randn_like(t) for name, t in other.state_dict().items()}
        model.load_state_dict(state, assign=assign)
        other.load_state_dict(state)
        assert torch.equal(run(model), run(other))


@pytest.mark.parametrize("dtype", [*CPU_DTYPES[1:], (torch.float16, None)], indirect=True)
def test_another_dtype_and_back(model: NomicBert, dtype: torch.dtype) -> None:
    before = run(model)
    model.to(dtype)
    narrow = run(model)
    assert narrow.dtype == dtype
    assert torch.equal(narrow, fresh(model))
    torch.testing.assert_close(narrow.float(), before, rtol=0.1, atol=0.1)
    model.float()
    assert torch.equal(run(model), fresh(model))


def test_a_parameter_replaced_by_another_object(model: NomicBert) -> None:
    layer = model.layers[0].attention
    for _ in range(3):
        layer.out.weight = nn.Parameter(torch.randn_like(layer.out.weight))
        layer.qkv = nn.Linear(24, 72, bias=model.config.qkv_bias)
        before, after = run(model), fresh(model)
        assert torch.equal(before, after)


def test_a_parameter_given_another_storage(model: NomicBert) -> None:
    weight = model.layers[0].attention.out.weight
    before = run(model)
    weight.data = torch.randn_like(weight)
    assert torch.equal(run(model), fresh(model))
    assert not torch.equal(run(model), before)


def test_an_entry_never_keeps_another_parameter() -> None:
    prepared, ops = PreparedWeights(), select_ops("cpu", torch.float32)
    x = torch.eye(3)
    for i in range(40):
        source = torch.full((4, 3), float(i))
        weight = prepared.get(ops, (0, "linear"), source, None, "linear", torch.float32)
        del source
        assert torch.equal(ops.linear(x, weight), torch.full((3, 4), float(i)))
        del weight


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_entry_keeps_its_parameters(dtype: torch.dtype, backend: Any) -> None:
    """Otherwise a new tensor could reuse the address and be mistaken for it."""
    prepared, ops = PreparedWeights(), select_ops("cpu", torch.float32, backend)
    source, bias = torch.ones(4, 3, dtype=dtype), torch.ones(4, dtype=dtype)
    alive = [weakref.ref(source), weakref.ref(bias)]
    prepared.get(ops, (0, "linear"), source, bias, "linear", torch.float32)
    del source, bias
    assert all(parameter() is not None for parameter in alive)
    prepared.clear()
    assert all(parameter() is None for parameter in alive)


def test_backends_do_not_share() -> None:
    prepared, source = PreparedWeights(), torch.randn(4, 3)
    for name in ("torch", "reference", "torch"):
        ops = select_ops("cpu", torch.float32, name)  # type: ignore[arg-type]
        mine, wanted = (
            prepared.get(ops, (0, "linear"), source, None, "linear", torch.float32),
            ops.prepare(source, None, "linear"),
        )
        assert (mine.packed is None) == (wanted.packed is None)


def test_copies_and_pickles(model: NomicBert) -> None:
    result = run(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(run(other), result)
        with torch.no_grad():  # the copy is a model of its own
            other.layers[0].attention.out.weight.zero_()
        assert not torch.equal(run(other), result)
    assert torch.equal(run(model), result)


def test_nothing_prepared_is_saved(model: NomicBert) -> None:
    state = model.state_dict()
    assert state.keys() == NomicBert(model.config).state_dict().keys()
    assert state.keys() == dict(model.named_parameters()).keys()
    assert not list(model.buffers())


@pytest.mark.parametrize("trained", ["qkv.bias", "out.bias", "mlp_norm", "out.weight", "word"])
def test_gradients_of_a_model_that_is_frozen_in_part(model: NomicBert, trained: str) -> None:
    """A frozen layer with a packed weight must not block gradients of trained layers."""
    model(IDS)[0].square().sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if trained in name}
    model.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    run(model)
    model(IDS)[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        if trained in name:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-3)
        else:
            assert parameter.grad is None


def test_training_after_inference_mode(model: NomicBert) -> None:
    with torch.inference_mode():
        before = model(IDS)[0].clone()
    model(IDS)[0].square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "token_type" not in n)
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)


@NEEDS_PACKING
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("change", [lambda p: p.mul_(1.1), lambda p: p.copy_(torch.randn_like(p))])
def test_a_change_without_a_new_version_is_seen(
    model: NomicBert, change: Callable[[Tensor], Tensor], transposed: bool
) -> None:
    """Weight averaging and merging write through `.data`, which does not increase the version."""
    if transposed:
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    before = run(model)
    for parameter in model.parameters():
        version = parameter._version
        change(parameter.data)
        assert parameter._version == version
    after = run(model)
    assert torch.equal(after, fresh(model))
    assert not torch.equal(after, before)
