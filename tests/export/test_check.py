"""The self-check refuses planted faults, and only them; a refused export leaves nothing.

A fault changes the functions that write the graph, or the model after its own outputs have been
computed. In float32 each must exceed the bound tenfold.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nomicbert import Embedder, ExportError
from nomicbert.export import activations, check, encoder, layers, mlp, run, source, vectors
from nomicbert.export import onnx as export
from nomicbert.export.check import Difference, cases_of
from nomicbert.export.graph import Graph, Precision
from nomicbert.export.heads import Outputs
from nomicbert.export.source import load
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.mlp import MixtureOfExperts
from nomicbert.modeling.model import NomicBert
from nomicbert.text.samples import TEXTS
from nomicbert.user_warnings import WeightWarning
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.steps import Dense, LayerNorm
from tests.support.checkpoints import build_checkpoint
from tests.support.heads import change_tensors
from tests.support.rerankers import build_reranker

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]
BIAS = "classifier.bias"


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: Patch) -> None:
    """Fewer and shorter texts, still of different lengths."""
    monkeypatch.setattr(check, "LONGEST", 96)
    monkeypatch.setattr(check, "TEXTS", check.TEXTS[:5])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, each built once."""
    built: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in built:
            built[name] = _build(tmp_path_factory.mktemp("models") / name, name)
        return built[name]

    return of


def _build(folder: Path, name: str) -> Path:
    if name == "reranker":
        return build_reranker(folder)
    if name == "interleaved":
        return build_checkpoint(folder, "nomic-v1-unsupervised", rotary_emb_interleaved=True)
    if name == "scaled":
        return build_checkpoint(folder, "nomic-v1-unsupervised", max_trained_positions=48)
    if name == "modules":
        build_checkpoint(folder, "bge-en")
        embedder = Embedder(folder)
        torch.manual_seed(0)
        steps = [Dense(64, 64), LayerNorm(64)]
        steps[1].norm.weight.data = torch.rand(64) + 0.5
        embedder.embedding_model = EmbeddingModel(embedder.model, Pooling(64, ("mean",), steps))
        embedder.save_pretrained(folder)
        return folder
    return build_checkpoint(folder, name)


def damaged(change: Callable[[NomicBert], None]) -> Fault:
    """Change the model between its own outputs and the writing of the graph."""

    def fault(patch: Patch) -> None:
        write = run.hidden_states

        def changed(graph: Graph, model: NomicBert, mask: str) -> str:
            model = copy.deepcopy(model)  # parameters may be mapped from the file
            change(model)
            return write(graph, model, mask)

        patch.setattr(run, "hidden_states", changed)

    return fault


def replaced(module: Any, name: str, made: Callable[[Any], Any]) -> Fault:
    """Replace a function by what `made` makes of it."""
    return lambda patch: patch.setattr(module, name, made(getattr(module, name)))


def each_layer(change: Callable[[Layer], None]) -> Fault:
    def all_of(model: NomicBert) -> None:
        for layer in model.layers:
            assert isinstance(layer, Layer)
            change(layer)

    return damaged(all_of)


def swap_gate(layer: Layer) -> None:
    weight = layer.mlp.up_gate.weight
    weight.data = torch.cat(weight.data.chunk(2)[::-1])


def swap_norms(layer: Layer) -> None:
    layer.attention_norm, layer.mlp_norm = layer.mlp_norm, layer.attention_norm


def drop_scale(layer: Layer) -> None:
    layer.attention.scale = 1.0


def drop_bias(layer: Layer) -> None:
    layer.attention.out.bias.data = torch.zeros(64)


def wrong_expert(layer: Layer) -> None:
    if isinstance(layer.mlp, MixtureOfExperts):
        layer.mlp.experts_down.data = layer.mlp.experts_down.data.roll(1, 0)


def wrong_router(layer: Layer) -> None:
    if isinstance(layer.mlp, MixtureOfExperts):
        layer.mlp.top_k = 1


def with_config(**changes: Any) -> Callable[[Any], Any]:
    """Angles of other settings."""

    def made(call: Any) -> Any:
        def other(graph: Graph, config: Any, positions: str, mask: str) -> tuple[str, str]:
            changed = {name: change(getattr(config, name)) for name, change in changes.items()}
            return call(graph, dataclasses.replace(config, **changed), positions, mask)

        return other

    return made


def of_all_columns(call: Any) -> Any:
    """A mask of ones."""

    def other(graph: Graph, *args: Any) -> Any:
        *before, mask = args
        return call(
            graph, *before, graph.add("Add", mask, graph.add("Sub", graph.floats(1.0), mask))
        )

    return other


def shifted(call: Any) -> Any:
    def other(graph: Graph, model: NomicBert, positions: str) -> str:
        return call(graph, model, graph.add("Add", positions, graph.scalar(1)))

    return other


def wrong_eps(call: Any) -> Any:
    def other(graph: Graph, name: str, norm: nn.LayerNorm, x: str) -> str:
        norm = copy.deepcopy(norm)
        norm.eps = 1e-5
        return call(graph, name, norm, x)

    return other


def without_types(model: NomicBert) -> None:
    table = model.embeddings.token_type.weight
    table.data = table.data[:1].expand(2, -1).clone()


def last_token(call: Any) -> Any:
    return lambda graph, states, mask: vectors._one_token(graph, states, mask, last=True)


FAULTS: dict[str, tuple[str, Fault]] = {
    "gate and up swapped": ("nomic-v1.5", each_layer(swap_gate)),
    "theta + 1%": (
        "nomic-v1.5",
        replaced(encoder, "angles", with_config(rope_theta=lambda theta: theta * 1.01)),
    ),
    "mask ignored by attention": (
        "minilm",
        lambda patch: patch.setitem(encoder.MASKED, "fp32", 0.0),
    ),
    "mask ignored by rotary attention": (
        "nomic-v1.5",
        lambda patch: patch.setitem(encoder.MASKED, "fp32", 0.0),
    ),
    "mask ignored by pooling": ("minilm", replaced(source, "text_vectors", of_all_columns)),
    "positions shifted": ("minilm", replaced(encoder, "_embedded", shifted)),
    "pooling of another mode": (
        "minilm",
        replaced(vectors, "_pooled", lambda call: lambda g, mode, *more: call(g, "cls", *more)),
    ),
    "last token, not first": ("bge-en", replaced(vectors, "first_token", last_token)),
    "modules skipped": ("modules", replaced(vectors, "_stepped", lambda _: lambda g, steps, x: x)),
    "activation of Dense": (
        "modules",
        replaced(vectors, "activation", lambda _: lambda graph, name, x: x),
    ),
    "L2 skipped": ("minilm", replaced(vectors, "_unit", lambda _: lambda graph, x: x)),
    "norms swapped": ("bge-en", each_layer(swap_norms)),
    "eps": ("nomic-v1.5", replaced(encoder, "layer_norm", wrong_eps)),
    "scale missing": ("nomic-v1.5", each_layer(drop_scale)),
    "bias dropped": ("bge-en", each_layer(drop_bias)),
    "GELU by tanh": (
        "bge-en",
        lambda patch: patch.setitem(activations._FUNCTIONS, "gelu", activations.gelu_tanh),
    ),
    "wrong expert": ("nomic-v2-moe", each_layer(wrong_expert)),
    "one expert, not two": ("nomic-v2-moe", each_layer(wrong_router)),
    "pairs not interleaved": (
        "interleaved",
        replaced(
            encoder,
            "row_order",
            lambda call: lambda config: call(dataclasses.replace(config, rotary_interleaved=False)),
        ),
    ),
    "NTK off": (
        "scaled",
        replaced(encoder, "angles", with_config(rotary_scaling_factor=lambda _: None)),
    ),
    "one theta for the batch": ("scaled", replaced(encoder, "angles", of_all_columns)),
    "token types ignored": ("reranker", damaged(without_types)),
}


def refused(folder: Path, tmp_path: Path, **options: Any) -> tuple[float, float]:
    """The figure and the bound of a refusal, after which nothing is left."""
    with pytest.raises(ExportError, match="export is not the model") as caught:
        export(folder, tmp_path / "onnx", **options)
    assert list(tmp_path.iterdir()) == []
    found = re.search(r"is (\S+), and its bound (\S+);", str(caught.value))
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault(
    name: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    variant, plant = FAULTS[name]
    folder = folders(variant)
    export(folder, tmp_path.with_name(tmp_path.name + "-sound"))
    plant(monkeypatch)
    value, bound = refused(folder, tmp_path)
    assert bound == 1e-5
    assert value > 10 * bound


def wrong_scale(call: Any) -> Any:
    """Steps of 8 bits that are read back 30% too large."""
    return lambda rows, most: (lambda steps, scale: (steps, 1.3 * scale))(*call(rows, most))


@pytest.mark.parametrize(
    ("dtype", "variant", "plant"),
    [
        ("fp16", "nomic-v1.5", FAULTS["gate and up swapped"][1]),
        ("fp16", "nomic-v1.5", FAULTS["scale missing"][1]),
        ("fp16", "minilm", lambda patch: patch.setitem(encoder.MASKED, "fp16", 0.0)),
        ("fp16", "nomic-v2-moe", each_layer(wrong_expert)),
        ("q8", "nomic-v1.5", FAULTS["gate and up swapped"][1]),
        ("q8", "minilm", lambda patch: patch.setitem(encoder.MASKED, "q8", 0.0)),
        ("q8", "bge-en", replaced(layers, "quantized", wrong_scale)),
        ("q8", "nomic-v2-moe", each_layer(wrong_expert)),
    ],
)
def test_a_fault_in_fewer_bits(
    dtype: str,
    variant: str,
    plant: Fault,
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """Bounds are cosines, so they miss small faults: theta + 1% moves no vector by 1e-4 in float16.

    But the same functions write the graphs of all precisions.
    """
    plant(monkeypatch)
    value, bound = refused(folders(variant), tmp_path, dtypes=("fp32", dtype)[1:])
    assert 1 - value > 8 * (1 - bound)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "q8"])
def test_a_value_that_is_not_a_number(
    dtype: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    """In the graph alone, and in the checkpoint, where the model's own vectors are NaN too."""

    def spoil(layer: Layer) -> None:
        layer.attention.out.bias.data = torch.full((64,), torch.nan)

    with monkeypatch.context() as patch:
        each_layer(spoil)(patch)
        value, _ = refused(folders("bge-en"), tmp_path, dtypes=(dtype,))
    assert np.isnan(value)
    folder = build_checkpoint(tmp_path / "model", "bge-en")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.warns(WeightWarning, match="NaN"):
        value, _ = refused(folder, tmp_path / "out", dtypes=(dtype,))
    assert np.isnan(value)


def tied_experts(folder: Path) -> Path:
    """Two experts with one row in the router, and different weights: rounding decides."""
    build_checkpoint(folder, "nomic-v2-moe")
    tensors = load_file(folder / "model.safetensors")
    router = tensors["encoder.layers.1.mlp.router.layer.weight"]
    router[5] = router[2]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def last_of_equals(call: Any) -> Any:
    """Routing that prefers the last of equally probable experts, as another runtime may."""

    def other(graph: Graph, name: str, module: MixtureOfExperts, x: str) -> str:
        turned = copy.deepcopy(module)
        turned.router.weight.data = module.router.weight.data.flip(0)
        turned.experts_up.data = module.experts_up.data.flip(0)
        turned.experts_down.data = module.experts_down.data.flip(0)
        return call(graph, name, turned, x)

    return other


def test_experts_that_are_tied(tmp_path: Path, monkeypatch: Patch) -> None:
    """A text in which the second and third expert of a token are equal has no bound in float32."""
    monkeypatch.setattr(check, "TEXTS", tuple(TEXTS[0].split()))
    monkeypatch.setattr(check, "LONG", "rain")
    folder = tied_experts(tmp_path / "model")
    cases = cases_of(load(folder, "auto"))
    margins = torch.cat([case.margins for case in cases])
    assert 0 < int((margins == 0).sum()) < len(margins)
    export(folder, tmp_path / "first")
    monkeypatch.setattr(mlp, "_experts", last_of_equals(mlp._experts))
    export(folder, tmp_path / "last")
    # without the margin one of the two orders would be refused
    monkeypatch.setitem(check.ROUTER_MARGIN, "fp32", 0.0)
    (tmp_path / "out").mkdir()
    value, _ = refused(folder, tmp_path / "out")
    assert value > 1e-3


def test_experts_that_are_all_tied(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model", "nomic-v2-moe")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layers.1.mlp.router.layer.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"cannot be compared .* two experts are almost equally"):
        export(folder, tmp_path / "onnx")


def test_texts_of_the_check(folders: Callable[[str], Path], monkeypatch: Patch) -> None:
    """Different lengths in a batch; one fills the positions, or exceeds the trained length."""
    longest = {"minilm": 96, "nomic-v1.5": 96, "scaled": 48 + check.BEYOND, "reranker": 96}
    for name, most in longest.items():
        loaded = load(folders(name), "auto")
        assert loaded.max_length >= most
        cases = cases_of(loaded)
        lengths = [case.inputs["attention_mask"].sum(1) for case in cases]
        assert all(len(set(found.tolist())) > 1 for found in lengths)
        assert max(found.max() for found in lengths) == most
        for case, found in zip(cases, lengths, strict=True):
            assert tuple(found) == case.batch.lengths
            assert case.margins.isinf().all()
        kinds = {int(kind) for case in cases for kind in case.inputs["token_type_ids"].flat}
        assert kinds == {0, 1}


def test_a_limit_below_the_texts(tmp_path: Path) -> None:
    """Texts are cut to what the model takes."""
    folder = build_checkpoint(tmp_path / "model", "minilm", max_position_embeddings=8)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    loaded = load(folder, "auto")
    assert {int(case.inputs["attention_mask"].sum(1).max()) for case in cases_of(loaded)} == {8}
    export(folder, tmp_path / "onnx")


def test_a_difference_holds_within_its_bound() -> None:
    for measure, inside, beyond in (("difference", 0.1, 0.3), ("cosine", 0.3, 0.1)):
        assert Difference("x", measure, 0.2, 0.2).holds
        assert Difference("x", measure, inside, 0.2).holds
        assert not Difference("x", measure, beyond, 0.2).holds
        assert not Difference("x", measure, float("nan"), 0.2).holds


def faulty(monkeypatch: Patch, name: str) -> None:
    """Multiply one output of every graph by 0."""
    outputs = source.Source.outputs

    def changed(self: source.Source, graph: Graph, hidden: str, mask: str) -> Outputs:
        found = outputs(self, graph, hidden, mask)
        value, shape = found[name]
        return {**found, name: (graph.add("Mul", value, graph.floats(0.0)), shape)}

    monkeypatch.setattr(source.Source, "outputs", changed)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "q8"])
@pytest.mark.parametrize("name", ["last_hidden_state", "sentence_embedding"])
def test_every_output_is_compared(
    dtype: Precision, name: str, folders: Callable[[str], Path], monkeypatch: Patch, tmp_path: Path
) -> None:
    faulty(monkeypatch, name)
    with pytest.raises(ExportError, match=f"of {name} is"):
        export(folders("minilm"), tmp_path / "onnx", dtypes=(dtype,))


def test_an_offset_of_all_logits_hides_no_fault(
    folders: Callable[[str], Path], monkeypatch: Patch, tmp_path: Path
) -> None:
    """A reranker whose scores are all far from 0, with a mask that is ignored."""
    folder = shutil.copytree(folders("reranker"), tmp_path / "model")
    change_tensors(folder, lambda found: {**found, BIAS: found[BIAS] + 50.0})
    export(folder, tmp_path / "right", dtypes=("fp16",))
    monkeypatch.setitem(encoder.MASKED, "fp16", 0.0)
    with pytest.raises(ExportError, match="cosine of logits"):
        export(folder, tmp_path / "onnx", dtypes=("fp16",))


def test_token_types_are_compared(
    folders: Callable[[str], Path], monkeypatch: Patch, tmp_path: Path
) -> None:
    weight = Graph.weight

    def changed(self: Graph, name: str, values: Tensor) -> str:
        return weight(self, name, values[:1].expand_as(values) if name == "token_type" else values)

    monkeypatch.setattr(Graph, "weight", changed)
    with pytest.raises(ExportError, match="difference of last_hidden_state"):
        export(folders("minilm"), tmp_path / "onnx")
