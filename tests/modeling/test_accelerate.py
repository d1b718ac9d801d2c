"""accelerate: its hooks on layers, a prepared training step, mixed precision, and offloading."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState
from torch import Tensor

from nomicbert import Embedder, NomicBert, NomicBertForSequenceClassification
from nomicbert.modeling.output import EncoderOutput, LogitsOutput
from nomicbert.modeling.packing import pack
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import build_checkpoint
from tests.support.heads import build_head

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 3]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
VARIANTS = ("nomic-v1.5", "nomic-v2-moe", "conan-v1")
TEXTS = ["a short text", "and a longer text than that"]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """accelerate keeps one state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Doubled(ModelHook):
    """Doubles what a module returns."""

    def post_forward(self, module: torch.nn.Module, output: Tensor) -> Tensor:
        return 2 * output


@torch.no_grad()
def test_hooks_on_layers(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = NomicBert.from_pretrained(tmp_path)
    before = model(IDS, MASK).last_hidden_state
    wanted = copy.deepcopy(model)
    for name in ("attention.qkv", "mlp.down"):
        layer = wanted.layers[0].get_submodule(name)
        layer.weight.mul_(2)
        assert layer.bias is None
        add_hook_to_module(model.layers[0].get_submodule(name), Doubled())
    truth = wanted(IDS, MASK).last_hidden_state
    assert (truth - before).abs().max() > 0.1
    assert (model(IDS, MASK).last_hidden_state - truth).abs().max() <= HIDDEN
    for name in ("attention.qkv", "mlp.down"):
        remove_hook_from_module(model.layers[0].get_submodule(name))
    assert (model(IDS, MASK).last_hidden_state - before).abs().max() <= HIDDEN


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_step(precision: str, tmp_path: Path) -> None:
    """The same loss and parameters as without; in bf16 as under autocast, with fp32 outputs."""
    folder = build_head(tmp_path, "Bert", "SequenceClassification", hidden_dropout_prob=0.0)
    labels, found = torch.tensor([0, 1]), []
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    for prepared in (True, False):
        model: Any = NomicBertForSequenceClassification.from_pretrained(folder)
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        if prepared:
            model, optimizer = accelerator.prepare(model, optimizer)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and not prepared):
            output = model(IDS, MASK, labels=labels, output_hidden_states=True)
        assert type(output) is LogitsOutput
        assert len(output.hidden_states) == 3
        assert output[0] is output.loss
        if prepared:
            assert output.logits.dtype == torch.float32
            accelerator.backward(output.loss)
        else:
            output.loss.backward()
        optimizer.step()
        state = [p.detach() for p in model.parameters()]
        found.append([output.loss.detach(), output.logits.detach().float(), *state])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-6
    with torch.no_grad():
        exact = NomicBertForSequenceClassification.from_pretrained(folder)(IDS, MASK).logits
    assert ((found[0][1] - exact).abs().max() > 1e-4) == (precision == "bf16")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_offloading(variant: str, tmp_path: Path) -> None:
    """Parameters wait elsewhere; a model is on the device that they are brought to."""
    build_checkpoint(tmp_path, variant, num_hidden_layers=2)
    embedder, model = Embedder(tmp_path), NomicBert.from_pretrained(tmp_path)
    wanted, hidden = embedder.encode(TEXTS, prompt=""), model(IDS, MASK, output_hidden_states=True)
    cpu_offload(embedder.embedding_model, execution_device=CPU)
    cpu_offload(model, execution_device=CPU)
    for one in (embedder.model, model):
        assert {p.device.type for p in one.parameters()} == {"meta"}
        assert one.device == CPU
    assert np.abs(embedder.encode(TEXTS, prompt="") - wanted).max() <= 1e-5
    found = model(IDS, MASK, output_hidden_states=True)
    assert type(found) is EncoderOutput
    for a, b in zip(found.hidden_states, hidden.hidden_states, strict=True):
        assert (a - b).abs().max() <= HIDDEN


@torch.no_grad()
def test_dispatching(tmp_path: Path) -> None:
    """Blocks with hooks of their own, some of them offloaded."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    model = NomicBert.from_pretrained(tmp_path)
    wanted = model(IDS, MASK).last_hidden_state
    places = {"embeddings": "cpu", "layers.0": "cpu", "layers.1": "cpu"}
    dispatch_model(model, places, main_device="cpu", force_hooks=True)
    assert (model(IDS, MASK).last_hidden_state - wanted).abs().max() <= HIDDEN


def test_hooks_that_would_not_run_are_refused(tmp_path: Path) -> None:
    """Autocast around the encoder's forward, which an embedder does not call."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    embedder = Embedder(tmp_path)
    Accelerator(cpu=True, mixed_precision="bf16").prepare(embedder.model)
    with pytest.raises(ValueError, match="wrapped forward"):
        embedder.encode(TEXTS, prompt="")
    embedder = Embedder(tmp_path)
    before = embedder.embedding_model(pack([[5, 6, 7]]))
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(embedder.embedding_model)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = Embedder(tmp_path).embedding_model(pack([[5, 6, 7]]))
    found = model(pack([[5, 6, 7]]))
    assert (wanted - before).abs().max() > 1e-4
    assert torch.equal(found, wanted)
