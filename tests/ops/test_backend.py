"""backend: the choice of ops, its log and errors, `prepare` and `plan`."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nomicbert_kernels import (
    Backend,
    BackendError,
    EmbeddingTables,
    Rope,
    Run,
    WeightKind,
    choose_ops,
    launch,
    select_ops,
    values,
)
from tests.ops.cases import EVERY_FORM, NEEDS_PACKING, draw, offsets_of, ops_of, refuses

OPS = ["embed", "linear", "qkv_rotary", "attention", "layer_norm", "swiglu", "gelu", "moe", "pool"]


@contextmanager
def onednn_disabled() -> Iterator[None]:
    """Like torch.backends.mkldnn.flags, which also sets TF32 and warns if that is unavailable."""
    was = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=was, _fp32_precision=None)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("auto", "torch"), ("torch", "torch"), ("reference", "reference"), ("triton", "triton")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_names(backend: Backend, name: str, dtype: torch.dtype) -> None:
    ops = select_ops(torch.device("cpu"), dtype, backend)
    assert ops.name == name
    for op in OPS:
        ending = op if name == "reference" else f"{op}_{name}"
        assert getattr(ops, op).__module__ == f"nomicbert_kernels.{ending}"


def test_auto_is_the_default() -> None:
    assert select_ops("cpu", torch.float32) is select_ops("cpu", torch.float32, "auto")


def test_fp64_is_for_the_reference() -> None:
    assert select_ops("cpu", torch.float64, "reference").name == "reference"
    message = (
        "hidden states cannot be torch.float64: choose one of torch.float32, torch.float16, "
        "torch.bfloat16"
    )
    for backend in ("auto", "torch"):
        with refuses(message):
            select_ops("cpu", torch.float64, backend)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference", "triton"])
def test_unsupported_dtype(backend: Backend) -> None:
    with refuses("hidden states cannot be torch.int8"):
        select_ops("cpu", torch.int8, backend)


def test_unknown_backend() -> None:
    with refuses("unknown backend 'cuda': choose one of auto, reference, torch, int8, triton"):
        select_ops("cpu", torch.float32, "cuda")  # type: ignore[arg-type]


H200 = (9, 0)
# machine -> the backend's error, or its name and the end of the reason
WITHOUT = {
    "no device": (
        {"interpret": ""},
        "cpu",
        "it needs a CUDA device, not cpu; to interpret its kernels",
    ),
    "another device": ({}, "meta", "it needs a CUDA device, not meta"),
    "no triton": ({"spec": None}, "cpu", "triton is not installed: pip install triton"),
    "an old device": ({"capability": (7, 5)}, "cuda", "compute capability 7.5 is below 8.0"),
    "bf16": ({}, "cpu", "triton's interpreter computes bfloat16 wrongly"),
}


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    interpret: str = "1",
    spec: object = "there",
    capability: tuple[int, int] = H200,
    proven: bool = False,
) -> None:
    """Pretend to be a machine of this kind, as far as the choice of a backend can see."""
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch, "proven", lambda arch: proven)
    monkeypatch.setattr(
        launch, "architecture", lambda device: "sm_" + "".join(map(str, capability))
    )


@pytest.mark.parametrize("missing", WITHOUT)
def test_triton_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend requested by name that cannot run is an error; there is no fallback."""
    machine, device, message = WITHOUT[missing]
    pretend(monkeypatch, **machine)
    dtype = torch.bfloat16 if missing == "bf16" else torch.float32
    with pytest.raises(
        BackendError, match=re.escape(f"backend 'triton' cannot run here: {message}")
    ):
        select_ops(device, dtype, "triton")
    assert issubclass(BackendError, RuntimeError)


@pytest.mark.parametrize(
    ("machine", "name", "reason"),
    [
        ({"proven": True}, "triton", "its kernels are proven on sm_90"),
        ({}, "torch", "backend 'triton' has not been tested on sm_90 yet"),
        ({"proven": True, "capability": (7, 5)}, "torch", "compute capability 7.5 is below 8.0"),
        ({"proven": True, "spec": None}, "torch", "triton is not installed"),
    ],
)
def test_auto_on_a_gpu(
    machine: dict[str, Any], name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **machine)
    ops, why = choose_ops("cuda", torch.bfloat16)
    assert ops.name == name
    assert why.startswith(reason)


def test_the_interpreter_requested_too_late() -> None:
    """Triton's own functions have been created as compiled ones by then."""
    code = """
import os, sys, triton, torch
os.environ["TRITON_INTERPRET"] = "1"
from nomicbert_kernels import BackendError, select_ops
try:
    select_ops("cpu", torch.float32, "triton")
except BackendError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("TRITON_INTERPRET was set after triton was imported")


def logged(caplog: pytest.LogCaptureFixture, dtype: torch.dtype, backend) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="nomicbert_kernels"):
        select_ops("cpu", dtype, backend)
    (record,) = caplog.records
    assert record.name == "nomicbert_kernels.backend"
    return record.getMessage()


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, torch.float32, "reference")
    assert said == "backend reference for cpu in torch.float32: requested"
    said = logged(caplog, torch.float16, "auto")
    assert said == "backend torch for cpu in torch.float16: it runs on every torch device"


@NEEDS_PACKING
def test_the_log_says_whether_weights_are_packed(caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, torch.float32, "auto")
    assert said == "backend torch for cpu in torch.float32: oneDNN packs its weights"
    with onednn_disabled():
        said = logged(caplog, torch.float32, "auto")
    assert said.endswith("it runs on every torch device")


def results(form: str, dtype: torch.dtype, exact: bool = False) -> dict[str, torch.Tensor]:
    """Every op on values of this dtype; `exact` computes with the same values in fp64."""
    ops = ops_of(form, torch.float64 if exact else dtype)

    def numbers(*shape: int, seed: int) -> torch.Tensor:
        drawn = draw(*shape, seed=seed, dtype=dtype)
        return drawn.double() if exact else drawn

    x, w, b, row = numbers(40, 33, seed=1), numbers(60, 33, seed=2), numbers(60, seed=3), 40 * [0]
    router, up = numbers(3, 33, seed=4) / 8, numbers(3, 5, 33, seed=5)
    qkv, lengths = numbers(40, 3, 2, 5, seed=7), [17, 23]
    angle = draw(1, 4, seed=8, dtype=torch.float64 if exact else torch.float32)
    rope = Rope(angle.cos(), angle.sin(), torch.tensor(row), 8)
    linear, tables = ops.prepare(w, b, "linear"), EmbeddingTables(x, w[:1, :33])
    with torch.no_grad():
        return {
            "linear": ops.linear(x, linear, numbers(40, 60, seed=6)),
            "gelu": ops.gelu(x, linear),
            "qkv_rotary": ops.qkv_rotary(x, linear, rope, 2),
            "swiglu": ops.swiglu(x, ops.prepare(w, b, "gated")),
            "moe": ops.moe(
                x,
                ops.prepare(router, None, "router"),
                ops.prepare(up, None, "experts"),
                ops.prepare(numbers(3, 33, 5, seed=6), b[:33], "experts"),
                3,
            ),
            "layer_norm": values(ops.layer_norm(x, b[:33], b[:33], 1e-5, x)),
            "embed": ops.embed(torch.tensor(row), None, None, tables, b[:33], b[:33], 1e-5),
            "attention": ops.attention(
                qkv, offsets_of(lengths), ops.plan(lengths, 2, 5, dtype), 0.5
            ),
        }


@EVERY_FORM
@pytest.mark.parametrize("recorded", [False, True])
def test_a_weight_stored_in_a_narrower_dtype(recorded: bool, form: str, seed: int) -> None:
    """Packed, or cast when gradients forbid packing: bit-identical to a weight stored wide."""
    ops, x = ops_of(form), draw(20, 12, seed=seed).requires_grad_(recorded)
    rope = Rope(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(20, dtype=torch.int32), 4)
    shapes: dict[WeightKind, tuple[int, ...]] = {
        "linear": (24, 12), "gated": (24, 12), "router": (3, 12), "experts": (3, 12, 12),
    }  # fmt: skip
    wide, stored = {}, {}
    for kind, shape in shapes.items():
        source = draw(*shape, seed=seed + 1, dtype=torch.float16)
        bias = None if kind == "router" else draw(shape[-2], seed=seed + 2)
        wide[kind] = ops.prepare(source.float(), bias, kind)
        assert wide[kind].dtype == torch.float32
        stored[kind] = replace(wide[kind], source=source, computed_in=torch.float32)
    for call in (
        lambda w: ops.linear(x, w["linear"]),
        lambda w: ops.gelu(x, w["linear"]),
        lambda w: ops.qkv_rotary(x, w["linear"], rope, 2),
        lambda w: ops.swiglu(x, w["gated"]),
        lambda w: ops.moe(x, w["router"], w["experts"], w["experts"], 2),
    ):
        got = call(stored)
        assert got.dtype == torch.float32
        assert got.requires_grad == recorded
        assert torch.equal(got, call(wide))
    with refuses("x is torch.float16, but the weight is torch.float32"):
        ops.linear(x.half(), stored["linear"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("op", ["linear", "gelu", "qkv_rotary", "swiglu", "moe", "layer_norm",
                                "embed", "attention"])  # fmt: skip
def test_the_reference_rounds_once(op: str, dtype: torch.dtype) -> None:
    """It computes in fp32, so its error is half an eps of each value, however small."""
    got, truth = results("reference", dtype)[op], results("reference", dtype, exact=True)[op]
    assert got.dtype == dtype
    allowed = truth.abs() * torch.finfo(dtype).eps * 0.51 + 2e-6 * truth.abs().max()
    assert ((got.double() - truth).abs() <= allowed).all()


def test_without_onednn_the_parameters_are_used() -> None:
    with onednn_disabled():
        ops = ops_of("torch")
        for kind, shape in {"linear": (4, 3), "gated": (4, 3), "experts": (2, 4, 3)}.items():
            assert ops.prepare(draw(*shape, seed=1), None, kind).packed is None
        found = results("torch", torch.float32)
    truth = results("reference", torch.float32)
    for name, value in found.items():
        torch.testing.assert_close(value, truth[name], rtol=1e-5, atol=1e-5)


@NEEDS_PACKING
@pytest.mark.parametrize(
    ("kind", "shape", "pieces"),
    [("linear", (4, 3), 1), ("gated", (4, 3), 2), ("router", (4, 3), 1), ("experts", (5, 4, 3), 5)],
)
def test_pieces_of_a_prepared_weight(kind: WeightKind, shape: tuple[int, ...], pieces: int) -> None:
    source, bias = draw(*shape, seed=1).requires_grad_(), draw(4, seed=2)
    weight = ops_of("torch").prepare(source, bias, kind)
    assert weight.source is source
    assert weight.bias is bias
    assert weight.packed is not None
    assert len(weight.packed) == pieces
    assert not any(piece.requires_grad for piece in weight.packed)
    assert ops_of("reference").prepare(source, bias, kind).packed is None


def test_weights_that_onednn_cannot_pack_are_unchanged() -> None:
    prepare = ops_of("torch").prepare
    assert prepare(draw(4, 3, seed=1, dtype=torch.float16), None, "linear").packed is None
    assert prepare(torch.empty(0, 3), None, "linear").packed is None
    assert prepare(torch.empty(4, 3, device="meta"), None, "linear").packed is None


@pytest.mark.parametrize("form", ["reference", "torch"])
@given(lengths=st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=12))
def test_a_plan_joins_neighbours_of_one_length(form: str, lengths: list[int]) -> None:
    plan = ops_of(form).plan(lengths, 2, 8, torch.float32)
    wanted, text, token = [], 0, 0
    for length, group in groupby(lengths):
        texts = len(list(group))
        if length:
            wanted.append(Run(text, token, texts, length))
        text, token = text + texts, token + texts * length
    assert list(plan.runs) == wanted
