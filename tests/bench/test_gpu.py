"""The GPU benchmark of single ops in tiny sizes on a CPU: products, attention, launches, clocks."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import attention, gemm, launches, ops, place, race, report
from bench.gpu.place import Place
from nomicbert_kernels.backend import TORCH
from tests.bench.gpu_cases import CPU, SECONDS, by_peer, half_a_second, here, limits, one  # noqa: F401


def test_products(here: Place) -> None:
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "qkv 32")))
    library = found[gemm.LIBRARY]
    # 32 rows of 64 by 192 columns, in fp32
    assert library["flops"] == 2 * 32 * 192 * 64
    assert library["bytes"] == 4 * (32 * 64 + 192 * 64 + 32 * 192)
    assert library["tflops"] == pytest.approx(2 * 32 * 192 * 64 / SECONDS / 1e12)
    assert library["tokens_per_second"] == 64
    assert (library["median"], library["iqr"], library["repeats"]) == (SECONDS, 0, 2)
    assert (library["dtype"], library["copies"]) == ("float32", 2)
    for name in (gemm.WHOLE, gemm.BY_ROW):
        assert found[name]["status"] == "measured"
        assert found[name]["dtype"] == "float8_e4m3fn"
        assert found[name]["error"] < 1e-5
        assert "roofline_percent" not in found[name]


def test_sizes_of_a_real_run() -> None:
    real = Place(CPU, torch.bfloat16, "torch", False, half_a_second)
    shapes = {(task.model, task.case): task for task in gemm.tasks(real)}
    assert len(shapes) == 2 * 4 * 7
    up = shapes["nomic", "up 65536"]
    assert up.flops == 2 * 65536 * 6144 * 768
    assert up.bytes == 2 * (65536 * 768 + 6144 * 768 + 65536 * 6144)
    assert shapes["bert-large", "down 256"].more == {"shape": [256, 1024, 4096]}
    found = {(task.model, task.case): task for task in attention.tasks(real)}
    long = found["nomic", "S=8192"]
    assert (long.flops, long.tokens) == (4 * 768 * 8 * 8192**2, 65536)
    assert found["minilm", "S=32"].flops == 4 * 384 * 2048 * 32**2
    assert {task.more["head_dim"] for task in found.values() if task.more} == {32, 64}
    mixed = found["nomic", "mixture"]
    assert mixed.more is not None
    assert mixed.tokens < mixed.more["padded_tokens"] == 1024 * mixed.more["texts"]
    cases = [(task.model, task.case) for task in ops.tasks(real)]
    assert ("nomic", "swiglu, 16896") in cases
    assert ("minilm", "gelu, 16896") in cases
    assert ("minilm", "gelu, 256") not in cases
    assert ("nomic", "pool 512, 256") not in cases
    assert {case for model, case in cases if model == "nomic-moe"} == {"moe, 16896"}
    assert len(set(cases)) == len(cases)
    kernels = [task.more for task in launches.tasks(real)]
    assert kernels[1:3] == [{"kernels": 86}, {"kernels": 170}]


def test_attention(here: Place) -> None:
    found = by_peer(attention.measure(here, one(attention.tasks(here), "nomic", "S=8")))
    # 32 texts of 8 tokens, 64 wide
    assert found["ours"]["flops"] == 4 * 64 * 32 * 8 * 8
    assert found["ours"]["tokens"] == 256
    assert found["ours"]["bytes"] == 4 * 256 * 64 * 4
    assert found["sdpa math"]["status"] == "measured"
    absent = found["flash-attn-4"]
    assert absent["reason"] == "ImportError: flash-attn-4 is not installed"
    assert "median" not in absent
    mixed = by_peer(attention.measure(here, one(attention.tasks(here), "minilm", "mixture")))
    assert mixed["ours"]["status"] == mixed["padded sdpa auto"]["status"] == "measured"
    lengths = attention.lengths_of(here, "mixture")
    assert len(set(lengths)) > 1
    assert mixed["ours"]["flops"] == 4 * 32 * sum(n * n for n in lengths)


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """Plain attention over packed texts, in place of libraries that are not installed."""
    out = torch.empty_like(q)
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        logits = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * scale
        out[a:b] = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v[a:b])
    return out


def test_flash_attention_4_and_torch_on_packed_texts(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    cute = types.ModuleType("flash_attn.cute")

    def flash(q: Any, k: Any, v: Any, **given: Any) -> Any:
        assert torch.equal(given["cu_seqlens_q"], given["cu_seqlens_k"])
        assert given["max_seqlen_q"] == given["max_seqlen_k"] == max(lengths)
        return attend(q, k, v, given["cu_seqlens_q"], given["softmax_scale"]), None

    def packed(q: Any, k: Any, v: Any, a: Any, b: Any, most: int, _: int) -> Any:
        return attend(q, k, v, a, q.shape[-1] ** -0.5)

    cute.flash_attn_varlen_func = flash  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    monkeypatch.setattr(varlen, "varlen_attn", packed)
    right = attention.peers_of
    more = lambda *a: right(*a) | {"varlen_attn": None}  # noqa: E731
    monkeypatch.setattr(attention, "peers_of", more)
    lengths = attention.lengths_of(here, "mixture")
    found = by_peer(attention.measure(here, one(attention.tasks(here), "nomic", "mixture")))
    assert found["flash-attn-4"]["status"] == "measured"
    assert found["varlen_attn"]["status"] == "measured"


@pytest.mark.parametrize(
    ("model", "case", "flops"),
    [
        ("nomic", "qkv_rotary, 70", 2 * 70 * 192 * 64),
        ("nomic", "swiglu, 70", 2 * 70 * 192 * 64),
        ("bert-large", "gelu, 70", 2 * 70 * 96 * 64),
        ("nomic", "linear, layer_norm, 70", 2 * 70 * 64 * 96),
        ("nomic", "embed, 70", None),
        ("minilm", "pool 70, 70", None),
        ("nomic-moe", "moe, 70", 2 * 70 * 32 * (8 + 2 * 2 * 48)),
    ],
)
def test_ops(model: str, case: str, flops: float | None, here: Place) -> None:
    found = by_peer(ops.measure(here, one(ops.tasks(here), model, case)))
    assert {line["status"] for line in found.values()} == {"measured"}
    assert len(found) >= 3
    assert found["ours"].get("flops") == flops
    assert 0 < found["ours"]["error"] <= found["ours"]["bound"]


def test_break_even(here: Place) -> None:
    lines = ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70"))
    own = by_peer(lines)["ours"]
    assert own["break_even_tflops"] == 465.0
    own["tflops"], by_peer(lines)["linear, silu * up"]["tflops"] = 930.0, 620.0
    (row,) = report.break_even(lines)
    assert row[2:] == ("930.0", "465", "2.00", "linear, silu * up", "620.0", "1.50")
    other = ops.measure(here, one(ops.tasks(here), "minilm", "gelu, 70"))
    assert list(report.break_even(other)) == []
    plain = one(ops.tasks(here), "bert-large", "qkv_rotary, 70").more
    assert plain
    assert plain["break_even_tflops"] is None


def scaled(factor: float, right: Any) -> Any:
    return lambda *a, **k: right(*a, **k) * factor


def test_a_wrong_kernel_is_listed_and_not_ranked(here: Place) -> None:
    wrong = TORCH.replaced(swiglu=scaled(1.001, TORCH.swiglu))
    vars(here)["ops"] = wrong
    lines = ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70"))
    found = by_peer(lines)
    assert found["ours"]["status"] == "wrong"
    assert "ours is off by" in found["ours"]["reason"]
    assert "median" not in found["ours"]
    assert found["linear, silu * up"]["status"] == "measured"
    assert race.in_words(lines).endswith("ours: wrong")
    text = report.as_markdown(lines)
    assert "- ours float32: wrong: ours is off by" in text
    assert "| nomic | swiglu, 70 | ours |" not in text


@pytest.mark.parametrize(
    ("where", "name", "peer"),
    [
        (gemm.F, "linear", gemm.LIBRARY),
        (torch, "_scaled_mm", gemm.WHOLE),
        (torch, "_scaled_mm", gemm.BY_ROW),
    ],
)
def test_a_wrong_product(
    where: Any, name: str, peer: str, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, scaled(1.05, getattr(where, name)))
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "out 32")))
    assert found[peer]["status"] == "wrong"
    monkeypatch.setattr(where, name, scaled(float("nan"), getattr(where, name)))
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "out 32")))
    assert found[peer]["status"] == "wrong"


def test_launches(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = list(launches.tasks(here))
    copy = by_peer(launches.measure(here, tasks[0]))["copy_"]
    # read once and written once
    assert copy["gigabytes_per_second"] == pytest.approx(2 * 2**20 / SECONDS / 1e9)
    monkeypatch.setattr(launches, "launching", lambda place, work: half_a_second(work))
    single = by_peer(launches.measure(here, tasks[-1]))
    assert single["torch"]["median"] == SECONDS
    assert single["triton"]["status"] == "absent"
    graphs = by_peer(launches.measure(here, tasks[1]))
    assert {line["reason"] for line in graphs.values()} == {
        "RuntimeError: Triton's kernels are compiled for a GPU only"
    }
    with monkeypatch.context() as patch:
        patch.setattr(torch, "equal", lambda *_: False)
        assert by_peer(launches.measure(here, tasks[0]))["copy_"]["status"] == "wrong"


def test_a_graph_holds_all_launches(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    capturing: list[Any] = []

    class Graph:
        def replay(self) -> None:
            recorded.append("replay")

    @contextlib.contextmanager
    def capture(graph: Any) -> Iterator[None]:
        capturing.append(graph)
        yield
        capturing.pop()

    def launch() -> None:
        assert capturing
        recorded.append("launch")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    replay = launches.graph_of(here, launch, 86)
    assert recorded == ["launch"] * 86
    replay()
    assert recorded[86:] == ["replay"]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Place:
    facts = types.SimpleNamespace(uuid="ab-12", L2_cache_size=60 * 10**6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    cuda = torch.device("cuda", 0)
    return Place(cuda, torch.bfloat16, "triton", False, half_a_second)


def test_copies_leave_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend_gpu(monkeypatch)
    # the smallest GEMM: 256 rows, and 768 by 768 weights
    size = 2 * (256 * 768 + 768 * 768)
    assert gpu.copies(size) * size > 2 * 60 * 10**6
    assert gpu.copies(1e9) == 2
    assert gpu.copies(1.0) == place.MOST_COPIES


def test_clocks_are_read_and_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend_gpu(monkeypatch)
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        seen.append(command)
        text = "1980, 3201, 1980, 512.25, 700.00, 41, 0x0000000000000000\n"
        return types.SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    found = place.clocks(gpu.device)
    assert found is not None
    assert (found["clocks.sm"], found["power.draw"]) == (1980.0, 512.25)
    assert found["clocks_event_reasons.active"] == "0x0000000000000000"
    (command,) = seen
    assert command[:2] == ["nvidia-smi", "--id=GPU-ab-12"]
    assert [word.split("=")[0] for word in command[2:]] == ["--query-gpu", "--format"]

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert place.clocks(gpu.device) is None
    assert place.clocks(CPU) is None


def test_copies_are_compiled_once(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of ops have one call per copy: torch.compile must not recompile for each."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    right = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **k: right(work, backend=backend, **k))
    monkeypatch.setattr(Place, "copies", lambda *_: 20)
    vars(here)["bench"] = dataclasses.replace(here.bench, compiled=True)
    with limits():
        found = by_peer(ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70")))
    assert found["linear, silu * up, compiled"]["status"] == "measured"
    assert len(graphs) == 1
