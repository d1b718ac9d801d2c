"""The whole model on backend "triton", with interpreted kernels, against the reference.

Then as one graph: torch.compile with a varying and torch.export with a dynamic token dimension.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nomicbert import Embedder, NomicBert
from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert_kernels import Plan, Rope, tiling
from nomicbert_kernels.tensors import Tiles
from tests.ops.cases import INTERPRETS
from tests.parity.bounds import EMBEDDING, GRADIENT, HIDDEN, KEY_BIAS
from tests.support.checkpoints import build_checkpoint

if not INTERPRETS:
    pytest.skip("triton is not interpreted here: see tests/gpu", allow_module_level=True)

VARIANTS = ("nomic-v1.5", "minilm", "nomic-v2-moe", "conan-v1")
# short texts that share a tile, one of several tiles, and an empty one
LENGTHS = (3, 17, 1, 0, 70, 16, 2)


def batch_of(*lengths: int) -> PackedBatch:
    return pack([[(7 * i + 3 * n) % 90 + 5 for i in range(n)] for n in lengths])


def load(folder: Path, variant: str, backend: str, layers: int = 1) -> NomicBert:
    build_checkpoint(folder, variant, num_hidden_layers=layers)
    return NomicBert.from_pretrained(folder, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_hidden_states(variant: str, tmp_path: Path) -> None:
    wanted: list[Tensor] = []
    got: list[Tensor] = []
    batch = batch_of(*LENGTHS)
    load(tmp_path, variant, "reference", 2).encode_packed(batch, states=wanted)
    model = load(tmp_path, variant, "triton", 2)
    model.encode_packed(batch, states=got)
    assert model.ops.name == "triton"
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= HIDDEN


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm"])
@torch.inference_mode()
def test_rows_of_the_last_layer(variant: str, tmp_path: Path) -> None:
    """As CLS pooling needs them: one token per text, and no other is computed."""
    batch = batch_of(3, 40, 1)
    for rows in (batch.first_tokens(), batch.last_tokens()):
        wanted = load(tmp_path, variant, "reference").encode_packed(batch, rows=rows)
        got = load(tmp_path, variant, "triton").encode_packed(batch, rows=rows)
        assert (got - wanted).abs().max() <= HIDDEN


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm", "nomic-v2-moe"])
def test_gradients(variant: str, tmp_path: Path) -> None:
    found = {}
    for backend in ("reference", "triton"):
        model = load(tmp_path, variant, backend)
        hidden = model.encode_packed(batch_of(5, 0, 40, 1))
        generator = torch.Generator().manual_seed(3)
        (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
        found[backend] = {name: p.grad for name, p in model.named_parameters()}
    for name, wanted in found["reference"].items():
        got = found["triton"][name]
        assert got is not None, name
        if name.endswith("qkv.bias"):  # without rotary a key's bias has no gradient of its own
            query, key, value = (
                (a - b).abs().max() / b.abs().max()
                for a, b in zip(got.chunk(3), wanted.chunk(3), strict=True)
            )
            assert max(query, value) <= GRADIENT, name
            error = (got.chunk(3)[1] - wanted.chunk(3)[1]).abs().max()
            assert error <= max(GRADIENT * wanted.chunk(3)[1].abs().max(),
                                KEY_BIAS * wanted.chunk(3)[0].abs().max()), (name, key)  # fmt: skip
            continue
        error = (got - wanted).abs().max() / wanted.abs().max()
        assert error <= GRADIENT, (name, error)


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1", "bge-en"])
def test_embedder(variant: str, tmp_path: Path) -> None:
    """Mean and CLS pooling, Dense, the Matryoshka recipe; a text alone and among others."""
    build_checkpoint(tmp_path, variant, num_hidden_layers=1)
    texts = ["a short one", "", "the words of a longer text " * 9, "b", "another short one"]
    vectors = {}
    for backend in ("reference", "triton"):
        embedder = Embedder.from_pretrained(tmp_path, backend=backend)  # type: ignore[arg-type]
        vectors[backend] = embedder.encode(texts, prompt="", matryoshka_dim=32)
    assert np.abs(vectors["triton"] - vectors["reference"]).max() <= EMBEDDING
    alone = embedder.encode(texts[2:3], prompt="", matryoshka_dim=32)
    assert np.abs(alone[0] - vectors["triton"][2]).max() <= EMBEDDING


def test_autocast_plans_for_its_dtype(tmp_path: Path) -> None:
    """The plan has the tiles of the dtype that attention runs in."""
    model = load(tmp_path, "minilm", "triton")
    asked: list[torch.dtype] = []

    def plan(lengths: Any, heads: int, size: int, dtype: torch.dtype) -> Plan:
        asked.append(dtype)
        return tiling.plan_tiles(lengths, size, dtype, "cpu")

    model._ops = dataclasses.replace(model.ops, plan=plan)
    model.plan([3])
    with torch.autocast("cpu", torch.float16):
        model.plan([3])
    assert asked == [torch.float32, torch.float16]


class PackedCore(nn.Module):
    """The packed core of a model for torch.export: tensors in, a tensor out."""

    def __init__(self, model: NomicBert, rows: int) -> None:
        super().__init__()
        self.model, self.rows = model, rows

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        table: Tensor,
        text: Tensor,
        cos: Tensor,
        sin: Tensor,
        row: Tensor,
    ) -> Tensor:
        model = self.model
        batch = PackedBatch((), (), cu_seqlens, position_ids, input_ids)
        rope = None if model.rotary is None else Rope(cos, sin, row, model.config.rotary_dim)
        plan = Plan(tiles=Tiles(table, text, self.rows))
        ctx = ForwardContext(model.ops, model.compute_dtype, model._prepared, batch, plan, rope)
        return model.core(ctx)

    def inputs(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The arguments of `forward` for a batch."""
        ctx = self.model.context(batch)
        assert ctx.plan.tiles is not None
        tiles, rope = ctx.plan.tiles, ctx.rope
        angles = (torch.zeros(1, 1),) * 2 + (torch.zeros(sum(batch.lengths), dtype=torch.int32),)
        if rope is not None:
            angles = rope.cos, rope.sin, rope.row
        assert batch.input_ids is not None
        return (
            batch.input_ids,
            batch.position_ids,
            batch.cu_seqlens,
            tiles.table,
            tiles.text,
            *angles,
        )


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm", "nomic-v2-moe"])
def test_one_graph(variant: str, tmp_path: Path) -> None:
    """No recompilation for other texts, and gradients through the graph.

    The graph without gradients is compiled of NomicBERT only, with experts and without: that of
    BERT has the same ops as its forward pass here.
    """
    model = load(tmp_path, variant, "triton")
    core = PackedCore(model, model.plan([1]).tiles.rows)  # type: ignore[union-attr]
    torch.compiler.reset()
    compiled = torch.compile(core, fullgraph=True, dynamic=True, backend="aot_eager")
    with (
        torch.set_grad_enabled(variant == "minilm"),
        torch._dynamo.config.patch(error_on_recompile=True),
    ):
        # no two dimensions are equal, and none is 1: torch would specialise on them
        for lengths in ((3, 17, 9, 20, 18, 19), (35, 2), (33, 5, 1)):
            inputs = core.inputs(batch_of(*lengths))
            assert torch.equal(compiled(*inputs), core(*inputs))
    if variant != "nomic-v2-moe":  # its experts are differentiated by torch, one by one
        compiled(*inputs).square().sum().backward()
        got = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        core(*inputs).square().sum().backward()
        for name, p in model.named_parameters():
            assert (got[name] - p.grad).abs().max() <= 1e-6 * p.grad.abs().max(), name
    torch.compiler.reset()


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm"])
def test_export(variant: str, tmp_path: Path) -> None:
    """torch.export with dynamic dimensions for tokens, texts and tiles; saved and reloaded."""
    model = load(tmp_path, variant, "triton").requires_grad_(False)
    core = PackedCore(model, model.plan([1]).tiles.rows)  # type: ignore[union-attr]
    inputs = core.inputs(batch_of(3, 17, 9))
    tokens, texts, tiles = (torch.export.Dim(name, min=2) for name in ("tokens", "texts", "tiles"))
    shapes = (
        {0: tokens},
        {0: tokens},
        {0: texts},
        {0: tiles},
        {0: tokens},
        None,
        None,
        {0: tokens},
    )
    with torch.no_grad():
        program = torch.export.export(core, core.inputs(batch_of(40, 17, 9)), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "core.pt2")
    loaded = torch.export.load(tmp_path / "core.pt2").module()
    for lengths in ((40, 30, 5, 8), (3, 40, 33)):
        inputs = core.inputs(batch_of(*lengths))
        assert torch.equal(loaded(*inputs), core(*inputs))


def test_the_interpreter_is_enough(tmp_path: Path) -> None:
    """As in the README: set the variable before the start, then choose the backend by name."""
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    code = f"""
from nomicbert import Embedder
for backend in ("triton", "reference"):
    print(*Embedder.from_pretrained({str(tmp_path)!r}, backend=backend).encode("a text")[:4])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    got, wanted = (np.array(line.split(), dtype=float) for line in done.stdout.splitlines())
    assert np.abs(got - wanted).max() <= EMBEDDING
