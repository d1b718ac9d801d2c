"""Other forms of ours in the GPU benchmark: they run with the settings in their name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench.aot_cases import Model
from bench.gpu import attention, forms, ops, race
from bench.gpu.place import DRY_MODELS, Place
from bench.harness import Peer
from bench.problem import Call, Problem, Tensors
from nomicbert_kernels import launch
from nomicbert_kernels.backend import TORCH, Ops
from tests.ops.cases import INTERPRETS

if INTERPRETS:
    from tests.interpreter import fp8

CPU = torch.device("cpu")
NAMED = {model.name: model for model in DRY_MODELS}


def half_a_second(work: Any) -> float:
    work()
    return 0.5


@pytest.fixture
def here() -> Place:
    """A CPU whose ops are named "triton", so that the interpreter's launch tables apply."""
    found = Place(CPU, torch.float32, "torch", True, half_a_second)
    vars(found)["ops"] = dataclasses.replace(TORCH, name="triton")
    return found


def problem(
    kernel: str, seen: list[launch.Settings], dtype: torch.dtype = torch.float32
) -> Problem:
    """A problem that records the settings in effect when it is bound and when it is called."""
    sizes = {"rows": 5, "n": 8, "k": 8, "head_dim": 16}

    def look() -> torch.Tensor:
        seen.append(launch.settings(kernel, CPU, dtype, **sizes))
        return torch.zeros(1)

    def bind(ops: Ops, t: Tensors) -> Call:
        look()
        return look

    tensors = {"weight": torch.zeros(8, 8), "cos": torch.zeros(1, 8)}
    return Problem(kernel, tensors, bind, (), 5, 1.0, 1.0)


@pytest.mark.parametrize("kernel", forms.PRODUCTS)
def test_gemms_use_the_settings_in_their_name(kernel: str, here: Place) -> None:
    seen: list[launch.Settings] = []
    sizes = {"rows": 5, "n": 8, "k": 8, "head_dim": 16}
    shipped = launch.settings(kernel, CPU, torch.float32, **sizes)
    found = forms.of_products(here, kernel, problem(kernel, seen))
    assert len(found) == len(forms.PRODUCTS[kernel]) == 2
    for name, peer in found.items():
        seen.clear()
        peer.call({})()
        bound, called = seen
        assert bound == called != shipped
        assert {*bound.constants} == {*shipped.constants}
        if name == "ours, library":
            assert bound.library
            continue
        tile = f"{bound['BLOCK_M']}x{bound['BLOCK_N']}x{bound['BLOCK_K']}"
        assert name == f"ours, {tile} w{bound.options['num_warps']} s{bound.options['num_stages']}"
        assert not bound.library
    assert launch.settings(kernel, CPU, torch.float32, **sizes) == shipped


@pytest.mark.parametrize(
    ("kernel", "longest", "forms_tried"), [("attention_short", 256, 2), ("attention_long", 257, 3)]
)
def test_attention_uses_the_settings_in_its_name(
    kernel: str, longest: int, forms_tried: int, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Hopper, where the shipped settings for short texts are among them: not raced twice. Those
    for long texts have a cap on registers in addition."""
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    hopper = dataclasses.replace(here, dtype=torch.bfloat16)
    vars(hopper)["ops"] = here.ops
    seen: list[launch.Settings] = []
    found = forms.of_attention(hopper, 16, longest, problem(kernel, seen, torch.bfloat16))
    assert len(found) == forms_tried
    for name, peer in found.items():
        seen.clear()
        peer.call({})()
        assert seen[0] == seen[1]
        blocks, options = seen[0].constants, seen[0].options
        tile = f"{blocks['BLOCK_M']}x{blocks['BLOCK_N']}"
        assert name == f"ours, {tile} w{options['num_warps']} s{options['num_stages']}"


def test_settings_that_are_not_looked_up(here: Place) -> None:
    """A form that runs with the shipped settings must not get a figure."""
    other = forms.of_products(here, "swiglu", problem("gelu", []))
    for peer in other.values():
        with pytest.raises(RuntimeError, match="no launch of swiglu has asked"):
            peer.call({})()


def test_cases_without_other_forms(here: Place) -> None:
    """Few rows, an op without tiles, and another backend."""
    few = problem("swiglu", [])
    assert not forms.of_products(
        dataclasses.replace(here, dry=False, backend="torch"), "swiglu", few
    )
    assert not forms.of_products(here, "linear, layer_norm", few)
    assert not forms.in_fp8(here, "embed", few)
    vars(here)["ops"] = TORCH
    assert not forms.of_products(here, "swiglu", few)
    assert not forms.of_attention(here, 16, 5, few)
    assert not forms.in_fp8(here, "swiglu", few)


def test_a_wrong_form_is_not_ranked(here: Place) -> None:
    """Other settings have the bound of ours; fp8 has its own."""
    model: Model = NAMED["nomic"]
    made, peers = ops.swiglu(model, here.bench.draw(), 70)
    right = made.run(TORCH)

    def off(by: float) -> Peer:
        return Peer(lambda t: lambda: right + by * right.abs().max())

    task = race.Task("ops", "nomic", "swiglu, 70", "op")
    lines = race.contest(
        here, task, made, peers,
        {"ours, close": off(0), "ours, far": off(1e-4)},
        {"ours-fp8": off(0.05), "ours-fp8, far": off(0.2)},
    )  # fmt: skip
    found = {line["peer"]: line["status"] for line in lines if line["peer"].startswith("ours")}
    assert found == {
        "ours": "measured",
        "ours, close": "measured",
        "ours, far": "wrong",
        "ours-fp8": "measured",
        "ours-fp8, far": "wrong",
    }
    dtypes = {line["peer"]: line["dtype"] for line in lines}
    assert dtypes["ours, close"] == "float32"
    assert dtypes["ours-fp8"] == "float8_e4m3fn"


WIDE, NARROW = ("qkv_rotary", "swiglu", "linear down"), ("gelu", "linear out", "layer_norm")


@pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here")
def test_forms_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels, tiles and launch tables: each form gives correct results."""
    fp8.install()
    monkeypatch.setattr(attention, "DRY_TOKENS", 40)
    here = Place(CPU, torch.float32, "triton", True, half_a_second)
    cases: list[tuple[Any, str, str]] = [(ops, "nomic", f"{op}, 70") for op in WIDE]
    cases += [(ops, "minilm", f"{op}, 70") for op in (*NARROW, "linear, layer_norm")]
    cases += [(ops, "bert-large", "qkv_rotary, 70"), (attention, "minilm", "mixture")]
    lines: list[dict[str, Any]] = []
    for module, model, case in cases:
        task = next(t for t in module.tasks(here) if (t.model, t.case) == (model, case))
        lines += module.measure(here, task)
    ours = [line for line in lines if line["peer"].startswith("ours")]
    assert [line for line in ours if line["status"] != "measured"] == []
    found: dict[str, list[str]] = {}
    for line in ours:
        case = f"{line['model']} {line['case'].removesuffix(', 70')}"
        peer = line["peer"].removeprefix("ours").removeprefix(", ")
        found.setdefault(case, []).append(peer)
    assert found == {
        "nomic qkv_rotary": ["", "128x256x64 w8 s3", "library", "-fp8"],
        "nomic swiglu": ["", "64x128x64 w4 s2", "library", "-fp8"],
        "nomic linear down": ["", "128x128x64 w8 s4", "64x128x64 w4 s4", "-fp8"],
        "minilm gelu": ["", "64x128x64 w4 s3", "library", "-fp8"],
        "minilm linear out": ["", "128x128x64 w8 s4", "64x128x64 w4 s4", "-fp8"],
        "minilm layer_norm": ["", "-fp8"],
        "minilm linear, layer_norm": [""],
        "bert-large qkv_rotary": ["", "128x128x64 w8 s4", "64x128x64 w4 s4", "-fp8"],
        "minilm mixture": ["", "64x64 w4 s3", "128x64 w8 s3", "128x128 w8 s2"],
    }
