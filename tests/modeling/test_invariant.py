"""Backend "invariant": a text's bits do not depend on the batch; and errors if it cannot run.

The kernels are interpreted; tests/gpu/test_determinism.py compares bits on a GPU.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nomicbert import Embedder, NomicBert
from nomicbert.modeling.packing import pack
from nomicbert.runtime import graphs
from nomicbert_kernels import BackendError, Ops, Rope, launch, select_ops, tiling
from nomicbert_kernels import qkv_rotary as reference
from tests.ops.cases import INTERPRETS
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import WORDS

interpreted = pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here")
CPU = torch.device("cpu")
# in tokens: alone in a tile, and sharing one
LENGTHS = (3, 5, 18, 40, 70)
ORDERS = (range(4, -1, -1), (1, 0, 2), (3, 2, 3))


def changed(folder: Path, backend: str, seed: int) -> int:
    """Number of vectors that differ from those of the text alone."""
    embedder = Embedder(folder, backend=backend)  # type: ignore[arg-type]
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=n - 2)) for n in LENGTHS]
    alone = np.stack([embedder.encode(text, prompt="") for text in texts])
    assert np.isfinite(alone).all()
    found = 0
    for order in ORDERS:
        got = embedder.encode([texts[i] for i in order], prompt="")
        found += int((got != alone[list(order)]).any(axis=1).sum())
    return found


@interpreted
@pytest.mark.parametrize(
    ("variant", "layers"),
    [("nomic-v1.5", 1), ("conan-v1", 1), ("bge-en", 1), ("nomic-v2-moe", 2)],
)
def test_bits_do_not_depend_on_the_batch(
    variant: str, layers: int, tmp_path: Path, seed: int
) -> None:
    build_checkpoint(tmp_path, variant, seed=seed, num_hidden_layers=layers)
    assert changed(tmp_path, "invariant", seed) == 0


@interpreted
def test_bits_of_triton_depend_on_the_batch(tmp_path: Path) -> None:
    """Shows that the test above can detect a dependence."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    assert changed(tmp_path, "triton", 0) > 0


def test_settings_do_not_depend_on_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper, one row uses the kernel for many rows, and never cuBLAS."""
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")

    def settings(kernel: str, rows: int) -> launch.Settings:
        return launch.settings(kernel, CPU, torch.bfloat16, rows=rows, n=768, k=768, head_dim=64)

    for kernel in ("linear", "qkv_rotary", "swiglu", "gelu", "experts"):
        many = settings(kernel, 20_000)
        assert settings(kernel, 1).constants != many.constants
        with launch.invariant():
            one = settings(kernel, 1)
            assert one == settings(kernel, 300) == settings(kernel, 20_000)
        assert (one.constants, one.options) == (many.constants, many.options)
        assert not one.library
    assert settings("linear", 1).library


def test_tiles_do_not_depend_on_other_texts() -> None:
    lengths = np.array([3, 5, 300, 0, 2])
    with launch.invariant():
        rows = tiling.tile_rows(2, 64, torch.float32, CPU)
        assert tiling.tile_rows(300, 64, torch.float32, CPU) == rows
        table = tiling.tile_table(lengths, 64)
    texts = table[:, 3] - table[:, 2]
    assert (texts == 1).all()
    assert table[:, 1].sum() == lengths.sum()
    assert (tiling.tile_table(lengths, 64)[:, 3] > 1).any()


def test_other_threads_are_left_alone() -> None:
    found = []
    with launch.invariant():
        thread = threading.Thread(target=lambda: found.append(launch.is_invariant()))
        thread.start()
        thread.join()
        assert launch.is_invariant()
    assert found == [False]
    assert not launch.is_invariant()


@interpreted
@pytest.mark.parametrize(("rotary_dim", "interleaved"), [(16, True), (8, False), (16, False)])
def test_rotary_after_the_matmul(
    rotary_dim: int, interleaved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F.linear (cuBLAS on a GPU) is not used: its order of sums depends on the number of rows."""
    generator = torch.Generator().manual_seed(3)
    x, source = (torch.randn(shape, generator=generator) for shape in ((9, 32), (96, 32)))
    angle = torch.randn(9, rotary_dim // 2, generator=generator)
    row = torch.arange(9, dtype=torch.int32)
    rope = Rope(angle.cos(), angle.sin(), row, rotary_dim, interleaved)
    ops = select_ops(CPU, torch.float32, "invariant")
    weight = ops.prepare(source, None, "linear")
    wanted = reference.qkv_rotary(x, weight, rope, 2)

    def refuse(*given: Tensor) -> Tensor:
        raise AssertionError("F.linear was called")

    monkeypatch.setattr(torch.nn.functional, "linear", refuse)
    found = ops.qkv_rotary(x, weight, rope, 2)
    assert (found - wanted).abs().max() < 1e-5


@interpreted
def test_it_is_not_compiled(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path, backend="invariant")
    ctx = model.context(pack([[5, 6, 7]]))
    torch.compiler.reset()
    with pytest.raises(Exception, match="backend 'invariant' cannot be compiled"):
        torch.compile(model.core, fullgraph=True, backend="eager")(ctx)
    torch.compiler.reset()


@interpreted
def test_gradients_are_those_of_the_kernels(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    found = []
    for backend in ("invariant", "reference"):
        model = NomicBert.from_pretrained(tmp_path, backend=backend)
        model(torch.tensor([[5, 6, 7]]))[0].square().sum().backward()
        gradient = model.layers[0].attention.out.weight.grad
        assert gradient is not None
        found.append(gradient)
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[1].abs().max()


def test_no_graph_is_recorded() -> None:
    ops = select_ops(CPU, torch.float32, "reference")
    named = Ops(**{**vars(ops), "name": "invariant"})
    model = type("Model", (), {"device": torch.device("cuda"), "ops": named, "training": False})
    with torch.no_grad():
        assert not graphs.records(model)  # type: ignore[arg-type]


def test_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nomicbert_kernels.backend.why_not_triton", lambda *_: "no such device")
    with pytest.raises(BackendError, match="'invariant' cannot run here: no such device"):
        select_ops(CPU, torch.float32, "invariant")
