"""Who adds a block's residual: the kernel of `linear`, or LayerNorm where a library multiplies.

The kernels are interpreted, with "library" in the launch rows of `linear` as on Hopper.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nomicbert import NomicBert
from nomicbert.modeling.packing import pack
from nomicbert_kernels import Activation, Ops, launch, select_ops, values
from tests.ops.cases import INTERPRETS, draw
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import build_checkpoint

if not INTERPRETS:
    pytest.skip("triton is not interpreted here: see tests/gpu", allow_module_level=True)

CPU, EPS = torch.device("cpu"), 1e-5
BATCH = pack([list(range(5, 5 + n)) for n in (3, 0, 40, 1)])
# ops that would be a pass over memory of their own
PASSES = ("aten.addmm", "aten.add.Tensor", "aten.add_")


class Calls(TorchDispatchMode):
    """Ops called, and the residual given to each of `linear` and `layer_norm`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.residuals: dict[str, list[bool]] = {"linear": [], "layer_norm": []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        place = {"nomicbert.linear.default": 3, "nomicbert.layer_norm.default": 4}.get(str(func))
        if place is not None:
            self.residuals[str(func).split(".")[1]].append(args[place] is not None)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch rows of `linear` that prefer the library, unless the batch must not matter."""
    chosen = launch.settings

    def settings(kernel: str, *args: Any, **sizes: int) -> launch.Settings:
        row = chosen(kernel, *args, **sizes)
        wanted = kernel == "linear" and not launch.is_invariant()
        return dataclasses.replace(row, library=wanted)

    monkeypatch.setattr(launch, "settings", settings)


def load(folder: Path, variant: str, backend: str) -> NomicBert:
    build_checkpoint(folder, variant, num_hidden_layers=2)
    return NomicBert.from_pretrained(folder, backend=backend)  # type: ignore[arg-type]


@torch.inference_mode()
def watch(model: NomicBert) -> tuple[Tensor, Calls]:
    with Calls() as calls:
        hidden = model.encode_packed(BATCH)
    return hidden, calls


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm"])
def test_layer_norm_adds_it_where_a_library_multiplies(
    variant: str, tmp_path: Path, library: None
) -> None:
    """Without and with bias: no addmm, no add, and the same hidden states."""
    with torch.inference_mode():
        wanted = load(tmp_path, variant, "reference").encode_packed(BATCH)
    hidden, calls = watch(load(tmp_path, variant, "triton"))
    assert (hidden - wanted).abs().max() <= HIDDEN
    # out and down of two layers, each followed by a LayerNorm
    assert sum(calls.residuals["linear"]) == 0
    assert calls.residuals["layer_norm"] == [True] * 4
    assert not [name for name in calls.names if name.startswith(PASSES)]


@pytest.mark.parametrize("backend", ["triton", "invariant"])
def test_the_kernel_adds_it_elsewhere(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also on backend "invariant", whatever the tables prefer."""
    if backend == "invariant":
        request.getfixturevalue("library")
    _, calls = watch(load(tmp_path, "minilm", backend))
    assert sum(calls.residuals["linear"]) == 4
    assert calls.residuals["layer_norm"] == [False] * 4


def test_gradients(tmp_path: Path, library: None) -> None:
    """Of every parameter, also with layers computed again."""
    found = {}
    for name, backend in (("wanted", "reference"), ("plain", "triton"), ("again", "triton")):
        model = load(tmp_path, "nomic-v1.5", backend).train()
        if name == "again":
            model.gradient_checkpointing_enable()
        hidden = model.encode_packed(BATCH)
        (hidden * draw(*hidden.shape, seed=3)).sum().backward()
        found[name] = {key: p.grad for key, p in model.named_parameters()}
    for key, wanted in found["wanted"].items():
        got, again = found["plain"][key], found["again"][key]
        assert wanted is not None
        assert got is not None
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max(), key
        assert torch.equal(got, again), key


def block(ops: Ops, t: dict[str, Tensor], apart: bool) -> Tensor:
    """The end of a block, with the residual in `linear` or as the backend prefers."""
    weight = ops.prepare(t["w"], t.get("b"), "linear")
    y, left = ops.linear(t["x"], weight, t["r"]), None
    if apart:
        y, left = ops.project(t["x"], weight, t["r"])  # type: ignore[assignment]
        assert left is t["r"]
    return values(ops.layer_norm(y, t["g"], t["s"], EPS, left)).double()


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_it_is_as_exact_as_before(bias: bool, seed: int, library: None) -> None:
    """In fp16 the product is rounded once, and the sum not at all."""
    shapes = {"x": (64, 96), "w": (80, 96), "r": (64, 80), "g": (80,), "s": (80,), "b": (80,)}
    t = {
        name: draw(*s, seed=seed + i, dtype=torch.float16)
        for i, (name, s) in enumerate(shapes.items())
    }
    t["w"] *= 0.1
    if not bias:
        del t["b"]
    exact = {name: value.double() for name, value in t.items()}
    z = exact["x"] @ exact["w"].T + exact["r"] + exact.get("b", torch.zeros(()).double())
    truth = torch.nn.functional.layer_norm(z, (80,), exact["g"], exact["s"], EPS)
    ops = select_ops(CPU, torch.float16, "triton")
    before, after = (
        (block(ops, t, apart) - truth).square().mean().sqrt() for apart in (False, True)
    )
    assert after <= before


def test_a_compiled_graph_fits_any_number_of_rows(seed: int, library: None) -> None:
    """It adds the residual in `linear`: a look-up in the tables would tie it to some rows."""
    ops = select_ops(CPU, torch.float32, "triton")
    weight = ops.prepare(draw(24, 16, seed=seed), None, "linear")

    def end(x: Tensor, r: Tensor) -> Tensor:
        y, left = ops.project(x, weight, r)
        return values(ops.layer_norm(y, None, None, EPS, left))

    torch.compiler.reset()
    compiled = torch.compile(end, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (9, 3, 70):
            given = draw(rows, 16, seed=seed + 1), draw(rows, 24, seed=seed + 2)
            torch.testing.assert_close(compiled(*given), end(*given), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_e4m3_is_added_by_its_own_kernel(seed: int, library: None) -> None:
    """But a weight that is not quantised is multiplied by the library."""
    ops = select_ops(CPU, torch.float16, "fp8")
    x, w, r = (
        draw(*s, seed=seed + i, dtype=torch.float16)
        for i, s in enumerate(((5, 48), (32, 48), (5, 32)))
    )
    weight, added = ops.prepare(w, None, "linear"), Activation(r, None, r)
    assert ops.project(x, weight, added)[1] is None
    assert ops.project(x, ops.prepare(w, None, "router"), added)[1] is added
    assert ops.project(x, dataclasses.replace(weight, source=w.requires_grad_()), added)[1] is added
