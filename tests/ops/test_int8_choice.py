"""Backend "int8": when it runs in int8, when it falls back to torch, and when it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert_kernels import Backend, BackendError, choose_ops, linear_int8, linear_torch, values
from nomicbert_kernels.tensors import Rope
from tests.ops.cases import NEEDS_PACKING, draw, ops_of
from tests.ops.test_backend import onednn_disabled

ROOTS = [str(Path(__file__).parents[2] / name) for name in (".", "kernels")]
WHY_NOT = linear_int8.why_not()
NEEDS_BYTES = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
# Trainable inputs of each op, in the order of `result`.
LEAVES = {
    "linear": ("x", "weight", "bias", "residual"),
    "swiglu": ("x", "weight", "bias"),
    "gelu": ("x", "weight", "bias"),
    "qkv_rotary": ("x", "weight", "bias"),
}
PAIRS = [(name, leaf) for name, leaves in LEAVES.items() for leaf in leaves]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def result(name: str, form: str, trained: str, seed: int, record: bool = True) -> list[Tensor]:
    """An op's result; with gradients on, also the gradient of the one trained leaf."""
    shapes = {"x": (50, 16), "weight": (24, 16), "bias": (24,), "residual": (50, 24)}
    x, w, b, r = leaves = [draw(*shape, seed=seed + i) for i, shape in enumerate(shapes.values())]
    leaf = leaves[[*shapes].index(trained)].requires_grad_()
    angle = draw(50, 2, seed=seed + 4)
    rope = Rope(angle.cos(), angle.sin(), torch.arange(50, dtype=torch.int32), 4)
    ops = ops_of(form)
    weight = ops.prepare(w, b, "gated" if name == "swiglu" else "linear")
    with torch.set_grad_enabled(record):
        if name == "linear":
            y = ops.linear(x, weight, r)
        elif name == "qkv_rotary":
            y = ops.qkv_rotary(x, weight, rope, 2)
        else:
            y = getattr(ops, name)(x, weight)
    if not record:
        return [values(y)]
    return [y, *torch.autograd.grad(y.square().sum(), leaf)]


@NEEDS_BYTES
@pytest.mark.parametrize(("name", "leaf"), PAIRS)
def test_gradients_are_those_of_torch(name: str, leaf: str, seed: int) -> None:
    got, wanted = (result(name, form, leaf, seed) for form in ("int8", "torch"))
    assert same_bits(got, wanted)
    assert wanted[1].abs().max() > 0
    # with gradients off, the same parameters run in int8
    got, plain = (result(name, form, leaf, seed, record=False) for form in ("int8", "torch"))
    assert not same_bits(got, plain)


@NEEDS_BYTES
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", LEAVES)
def test_autocast_is_followed(name: str, record: bool, seed: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = (result(name, form, "x", seed, record) for form in ("int8", "torch"))
    assert same_bits(got, wanted)
    assert not same_bits(got, result(name, "int8", "x", seed, record))


@NEEDS_BYTES
@pytest.mark.parametrize(
    ("kind", "shape"), [("router", (4, 16)), ("experts", (3, 8, 16)), ("linear", (0, 16))]
)
def test_kinds_that_are_not_quantised(kind: str, shape: tuple[int, ...], seed: int) -> None:
    source, bias = draw(*shape, seed=seed), draw(4, seed=seed + 1)
    got, wanted = (ops_of(form).prepare(source, bias, kind) for form in ("int8", "torch"))
    assert got.scale is None
    assert got.source is source
    assert got.bias is bias
    assert (got.packed is None) == (wanted.packed is None) == (0 in shape)
    for mine, theirs in zip(got.packed or (), wanted.packed or (), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine.to_dense(), theirs.to_dense())


@NEEDS_BYTES
def test_a_mixture_of_experts_uses_torch(seed: int) -> None:
    x, shapes = draw(30, 16, seed=seed), {"router": (4, 16), "up": (4, 24, 16), "down": (4, 16, 24)}
    found = []
    for form in ("int8", "torch"):
        ops = ops_of(form)
        weights = [
            ops.prepare(draw(*shape, seed=seed), None, "router" if name == "router" else "experts")
            for name, shape in shapes.items()
        ]
        found.append(ops.moe(x, *weights, 2))
    assert torch.equal(*found)


@NEEDS_BYTES
@pytest.mark.parametrize("kind", ["linear", "gated"])
def test_prepared_weights(kind: str, seed: int) -> None:
    """int8 values and one scale per output channel; the parameter itself is unchanged."""
    source = draw(12, 16, seed=seed)
    before = source.clone()
    weight = ops_of("int8").prepare(source, None, kind)
    assert weight.source is source
    assert torch.equal(source, before)
    assert weight.dtype == torch.float32
    assert weight.scale is not None
    assert torch.equal(weight.scale, source.abs().amax(1) / 127)
    assert weight.packed is not None
    assert len(weight.packed) == (2 if kind == "gated" else 1)
    assert all(piece.element_size() == 1 for piece in weight.packed)


@NEEDS_BYTES
def test_it_is_used_on_request() -> None:
    ops, why = choose_ops("cpu", torch.float32, "int8")
    assert (ops.name, why) == ("int8", "requested")
    for op in LEAVES:
        assert getattr(ops, op).__module__ == f"nomicbert_kernels.{op}_int8"
    for op in ("embed", "layer_norm", "moe", "pool"):
        assert getattr(ops, op) is getattr(ops_of("torch"), op)
    assert choose_ops("cpu", torch.float32)[0].name == "torch"


def refused(why: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    backend: Backend = "int8"
    message = f"backend 'int8' cannot run here: {why}"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        choose_ops(device, dtype, backend)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_another_device(device: str) -> None:
    refused(f"it runs on a CPU only, not on {device}", device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_hidden_states(dtype: torch.dtype) -> None:
    why = f"its hidden states are float32, not {dtype}: use dtype float32 or float16"
    refused(why, dtype=dtype)


@NEEDS_PACKING
def test_a_cpu_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"avx512_f": True, "avx512_vnni": False, "avx_vnni": False, "amx_int8": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    refused("this CPU has none of the instructions avx512_vnni, avx_vnni, amx_int8")
    monkeypatch.setattr(linear_int8, "is_exact", lambda: True)  # this CPU may really have none
    for name in ("avx512_vnni", "avx_vnni", "amx_int8"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert choose_ops("cpu", torch.float32, "int8")[0].name == "int8"


@NEEDS_BYTES
def test_onednn_without_the_instructions() -> None:
    """oneDNN's kernels for older CPUs accumulate in 16 bits, which overflow."""
    code = "from nomicbert_kernels.linear_int8 import why_not; print(why_not())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "PYTHONPATH": os.pathsep.join(ROOTS)},
    )
    assert done.stdout.startswith("oneDNN does not use this CPU's int8 instructions")


@NEEDS_BYTES
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LEAVES)
def test_other_defaults_change_nothing(name: str, default: torch.dtype, seed: int) -> None:
    wanted = result(name, "int8", "x", seed, record=False)
    linear_int8.no_zero_points.cache_clear()
    torch.set_default_dtype(default)
    try:
        found = result(name, "int8", "x", seed, record=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(found, wanted)


def test_onednn_disabled() -> None:
    with onednn_disabled():
        assert not linear_torch.onednn_packs(torch.float32)
        refused("this torch has no oneDNN, or oneDNN is disabled")
