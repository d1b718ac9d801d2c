"""Programs of torch.export, against eager calls of a model on backend "reference".

Every layout, at sizes that neither were recorded nor are checked by `program` itself; what a
program consists of; faults that its own check must see; and what is refused by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrizations

from nomicbert import (
    Embedder,
    EncoderConfig,
    NomicBert,
    NomicBertForSequenceClassification,
    export,
)
from nomicbert.errors import BackendError, ExportError
from nomicbert.export import equal_lengths
from nomicbert.export.torch_program import BOUND, checked_sizes
from nomicbert.modeling.rope import RotaryTables
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.backend import EQUAL_LENGTHS
from tests.ops.cases import INTERPRETS
from tests.parity.bounds import FAULT, HIDDEN
from tests.support.checkpoints import VARIANTS, build_checkpoint, read_config, read_tensors
from tests.support.heads import build_head
from tests.support.oracle import oracle_forward
from tests.support.variants import VARIANT_TABLE

SIZES = ((1, 9), (4, 2), (3, 40))
# Of a checkpoint with dynamic NTK: its length, shorter than nomic's 2048, which takes as long in
# fp64; then that length, the first one beyond it, and a longer one.
TRAINED = 128
SCALED = ((1, TRAINED), (1, TRAINED + 1), (1, TRAINED + 30))
ODD_ROTARY = {"rotary_emb_interleaved": True, "rotary_emb_fraction": 0.5}


def load(folder: Path, variant: str, kind: Any = NomicBert, **settings: Any) -> Any:
    """A small model of one layer, or two where the second has experts."""
    settings["num_hidden_layers"] = 2 if variant == "nomic-v2-moe" else 1
    if VARIANT_TABLE[variant].settings.get("rotary_scaling_factor"):
        settings["max_trained_positions"] = TRAINED
    build_checkpoint(folder, variant, **settings)
    more = (
        {"pooling": "mean"} if kind is Embedder and not (folder / "modules.json").exists() else {}
    )
    return kind.from_pretrained(folder, backend="reference", **more)


def draw(sizes: tuple[int, int], limit: int, seed: int) -> Tensor:
    return torch.randint(limit, sizes, generator=torch.Generator().manual_seed(seed))


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the largest value, as `program` measures it."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def sizes_of(model: NomicBert) -> tuple[tuple[int, int], ...]:
    config = model.config
    sizes = SIZES + (SCALED if config.rotary_scaling_factor else ())
    fresh = set(sizes) - {tuple(s) for s in checked_sizes(config)} - {(3, 7)}
    assert len(fresh) == len(sizes), "recorded or checked already"
    return sizes


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_vectors(variant: str, tmp_path: Path, seed: int) -> None:
    """Of every layout: pooling, Dense, L2, and layer_norm and slice if they are asked for."""
    embedder = load(tmp_path, variant, Embedder)
    recipe = {"matryoshka_dim": 24} if variant == "nomic-v1.5" else {}
    call = export.program(embedder, **recipe).module()
    for sizes in sizes_of(embedder.model):
        ids = draw(sizes, embedder.model.config.vocab_size, seed)
        wanted = embedder.embedding_model.encode_ids(ids.tolist(), Finish(**recipe))
        assert difference(call(ids), wanted) <= BOUND, sizes


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("nomic-v1.5", ODD_ROTARY),
        ("nomic-v1", {}),
        ("nomic-v1", ODD_ROTARY),
        ("nomic-v2-moe", {}),
        ("minilm", {}),
        ("minilm", {"hidden_act": "gelu_pytorch_tanh"}),
        ("minilm", {"hidden_act": "quick_gelu"}),
    ],
)
@torch.no_grad()
def test_hidden_states(variant: str, settings: Any, tmp_path: Path, seed: int) -> None:
    """With token types, against eager and against the published equations in float64."""
    model = load(tmp_path, variant, **settings)
    call = export.program(model, token_type_ids=True).module()
    config, tensors = read_config(tmp_path), read_tensors(tmp_path)
    for sizes in sizes_of(model):
        ids = draw(sizes, model.config.vocab_size, seed)
        types = draw(sizes, model.config.type_vocab_size, seed + 1)
        found = call(ids, token_type_ids=types)
        assert difference(found, model(ids, token_type_ids=types)[0]) <= BOUND, sizes
        if not settings:
            wanted = oracle_forward(config, tensors, ids, token_type_ids=types)[-1]
            assert (found - wanted).abs().max() <= HIDDEN, sizes


def test_a_program_of_source_weights(tmp_path: Path) -> None:
    """It holds the parameters themselves and nothing else; the model is as it was before."""
    embedder = load(tmp_path, "conan-v1", Embedder)
    embedder.model.use("torch")
    ids = draw((2, 11), embedder.model.config.vocab_size, 0)
    before = embedder.embedding_model.encode_ids(ids.tolist())
    made = export.program(embedder)
    held = {value.data_ptr(): name for name, value in made.state_dict.items()}
    own = {value.data_ptr() for value in embedder.embedding_model.parameters()}
    assert held.keys() == own
    assert not made.constants
    used = {node.target for node in made.graph.nodes if node.op == "call_function"}
    ops = {op.namespace for op in used if isinstance(op, torch._ops.OpOverload)}
    assert ops == {"aten"}
    rest = {op.__module__ for op in used if not isinstance(op, torch._ops.OpOverload)}
    assert rest <= {"_operator"}, rest
    assert len(made.graph_signature.user_inputs) == 1
    assert torch.equal(embedder.embedding_model.encode_ids(ids.tolist()), before)


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path, seed: int) -> None:
    """A file of its own, which needs no nomicbert; torch.compile takes it too."""
    model = load(tmp_path / "model", "nomic-v1")
    made = export.program(model)
    torch.export.save(made, tmp_path / "program.pt2")
    wanted = {sizes: made.module()(draw(sizes, 90, seed)) for sizes in ((2, 30), (1, TRAINED + 20))}
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.compiler.reset()
    compiled = torch.compile(loaded, fullgraph=True, dynamic=True, backend="eager")
    for sizes, states in wanted.items():
        ids = draw(sizes, 90, seed)
        assert torch.equal(loaded(ids), states)
        assert difference(compiled(ids), states) <= BOUND
    torch.compiler.reset()


@torch.no_grad()
def test_within_other_modes(tmp_path: Path) -> None:
    """Recorded within inference_mode and autocast, a program is the same."""
    model = load(tmp_path, "minilm")
    ids = draw((2, 11), 90, 0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made = export.program(model)
    assert difference(made.module()(ids), model(ids)[0]) <= BOUND


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    """A negative one does not read the end of a table."""
    model = load(tmp_path, "minilm")
    call = export.program(model, token_type_ids=True).module()
    ids, types = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 0]])
    assert call(ids, token_type_ids=types).isfinite().all()
    for wrong in (-1, model.config.vocab_size):
        with pytest.raises(IndexError, match="out of range"):
            call(torch.tensor([[5, wrong, 7]]), token_type_ids=types)
        with pytest.raises(IndexError, match="out of range"):
            call(ids, token_type_ids=torch.tensor([[0, wrong, 0]]))


def test_other_inputs_than_the_recorded(tmp_path: Path) -> None:
    """A mask, also as the second argument of a program with token types; too long a text."""
    model = load(tmp_path, "minilm", max_position_embeddings=40)
    ids = torch.tensor([[5, 6, 7]])
    for typed in (False, True):
        call = export.program(model, token_type_ids=typed).module()
        for inputs, keywords in (
            ((ids, torch.ones_like(ids)), {}),
            ((ids,), {"attention_mask": torch.ones_like(ids)}),
            ((ids,), {"position_ids": torch.ones_like(ids)}),
            ((ids,), {} if typed else {"token_type_ids": torch.ones_like(ids)}),
        ):
            with pytest.raises((TypeError, ValueError)):
                call(*inputs, **keywords)
    with pytest.raises((AssertionError, RuntimeError), match="40"):
        export.program(model).module()(draw((1, 41), 90, 0))


# Faults of what is recorded, each with the layout that it is planted in.
def theta_off(patch: pytest.MonkeyPatch) -> None:
    own = RotaryTables.of_equal_lengths

    def changed(self: RotaryTables, texts: int, length: int) -> Any:
        patch.setattr(self, "theta", self.theta * 1.01)
        found = own(self, texts, length)
        patch.undo()
        return found

    patch.setattr(RotaryTables, "of_equal_lengths", changed)


def scaling_ignored(patch: pytest.MonkeyPatch) -> None:
    own = RotaryTables._scaled

    def changed(self: RotaryTables, length: Any) -> Any:
        return own(self, length * 0 + self.trained if isinstance(length, Tensor) else length)

    patch.setattr(RotaryTables, "_scaled", changed)


def other_op(name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A fault in one op."""
    own = getattr(EQUAL_LENGTHS, name)

    def plant(patch: pytest.MonkeyPatch) -> None:
        ops = dataclasses.replace(EQUAL_LENGTHS, **{name: lambda *given: change(own, *given)})
        patch.setattr(equal_lengths, "EQUAL_LENGTHS", ops)

    return plant


def other_batch(**changes: Callable[[Tensor], Tensor | None]) -> Callable[..., None]:
    """A fault in what the batch holds."""
    own = equal_lengths.PackedBatch

    def plant(patch: pytest.MonkeyPatch) -> None:
        def changed(**fields: Any) -> Any:
            for name, change in changes.items():
                fields[name] = change(fields[name])
            return own(**fields)

        patch.setattr(equal_lengths, "PackedBatch", changed)

    return plant


@pytest.mark.parametrize(
    ("variant", "plant"),
    [
        pytest.param("nomic-v1.5", theta_off, id="theta"),
        pytest.param("nomic-v1", scaling_ignored, id="scaling"),
        pytest.param(
            "minilm",
            other_op("attention", lambda own, a, b, c, scale, *rest: own(a, b, c, scale * 1.02)),
            id="scale of the logits",
        ),
        pytest.param(
            "minilm",
            other_op("pool", lambda own, x, b, plan, mode, *rest: own(x, b, plan, "max", *rest)),
            id="pooling",
        ),
        pytest.param(
            "nomic-v2-moe",
            other_op("moe", lambda own, *given: own(*given[:-1], 1)),
            id="experts",
        ),
        pytest.param("minilm", other_batch(position_ids=lambda x: x // 2), id="positions"),
        pytest.param("minilm", other_batch(token_type_ids=lambda x: None), id="types"),
        pytest.param("minilm", other_batch(input_ids=lambda x: x.flip(0)), id="order of texts"),
        pytest.param("bge-en", other_batch(cu_seqlens=lambda x: x.clamp_min(1)), id="offsets"),
    ],
)
def test_a_fault_is_refused(
    variant: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    embedder = load(tmp_path, variant, Embedder)
    typed = embedder.model.config.type_vocab_size > 1
    plant(monkeypatch)
    with pytest.raises(ExportError, match="the program differs from the model") as caught:
        export.program(embedder, token_type_ids=typed)
    error = re.search(r"by (\S+) of the largest value", str(caught.value))
    assert error
    assert float(error[1]) >= FAULT * BOUND


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = load(tmp_path, "minilm")
    with torch.no_grad():
        model.layers[0].mlp.down.bias[3] = torch.nan
    with pytest.raises(ExportError, match="by nan of the largest value"):
        export.program(model)


def doubled(layer: nn.Linear) -> nn.Module:
    return nn.Sequential(layer)


def by_hook(model: NomicBert) -> None:
    model.layers[0].register_forward_hook(lambda module, given, found: found)


def by_parametrisation(model: NomicBert) -> None:
    parametrizations.weight_norm(model.layers[0].mlp.down)


def by_another_layer(model: NomicBert) -> None:
    model.layers[0].attention.out = doubled(model.layers[0].attention.out)


def by_another_norm(model: NomicBert) -> None:
    model.embeddings.norm = nn.LayerNorm(model.config.hidden_size, bias=False)


def by_a_subclass(model: NomicBert) -> None:
    class Sub(nn.Linear):
        pass

    model.layers[0].mlp.up.__class__ = Sub


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.train(), r"the model \(NomicBert\) is in training mode: call eval"),
        (lambda model: model.layers[0].mlp.train(), r"layers\.0\.mlp \(PlainMLP\) is in training"),
        (by_hook, r"layers\.0 \(Layer\) was replaced, wrapped, hooked"),
        (by_parametrisation, r"layers\.0\.mlp\.down \(ParametrizedLinear\) was replaced"),
        (by_another_layer, r"layers\.0\.attention\.out \(Sequential\) was replaced"),
        (by_another_norm, r"embeddings\.norm \(LayerNorm\) was replaced"),
        (by_a_subclass, r"layers\.0\.mlp\.up \(Sub\) was replaced"),
        (lambda model: model.half(), "a parameter is torch.float16: load with dtype"),
        (lambda model: model.bfloat16(), "a parameter is torch.bfloat16"),
        (lambda model: model.double(), "a parameter is torch.float64"),
        (lambda model: model.to("meta"), "recorded on the CPU, not on meta"),
        pytest.param(
            lambda model: model.use("triton"),
            "not as 'triton': load with backend='torch'",
            marks=pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here"),
        ),
    ],
)
def test_what_a_program_cannot_hold(
    change: Callable[[NomicBert], object], message: str, tmp_path: Path
) -> None:
    model = load(tmp_path, "minilm")
    change(model)
    with pytest.raises(BackendError, match=message):
        export.program(model)


def test_other_refusals(tmp_path: Path) -> None:
    embedder = load(tmp_path / "a", "minilm", Embedder)
    with pytest.raises(ValueError, match="matryoshka_dim must be 1 to 64, not 65"):
        export.program(embedder, matryoshka_dim=65)
    with pytest.raises(ValueError, match="are for vectors: give the Embedder"):
        export.program(embedder.model, normalize_embeddings=True)
    with pytest.raises(TypeError, match="not EmbeddingModel"):
        export.program(embedder.embedding_model)
    with pytest.raises(TypeError, match="attention_mask"):
        export.program(embedder.model, attention_mask=True)  # type: ignore[call-arg]
    embedder.pooling.include_prompt = False
    with pytest.raises(BackendError, match="leaves out the prompt"):
        export.program(embedder)
    head = build_head(tmp_path / "b", "NomicBert", "SequenceClassification")
    with pytest.raises(TypeError, match="of a model with a head, export its `encoder`"):
        export.program(NomicBertForSequenceClassification.from_pretrained(head))  # type: ignore[arg-type]
    with torch.inference_mode():
        made = NomicBert(EncoderConfig("bert", 50, 32, 1, 4, 64, 2, 16, 1e-12)).eval()
    with pytest.raises(BackendError, match=r"made in torch\.inference_mode"):
        export.program(made)
    for rows in (1, 2):
        short = NomicBert(EncoderConfig("bert", 50, 32, 1, 4, 64, 2, rows, 1e-12)).eval()
        with pytest.raises(BackendError, match=f"at most {rows} tokens cannot be dynamic"):
            export.program(short)
    shortest = NomicBert(EncoderConfig("bert", 50, 32, 1, 4, 64, 2, 3, 1e-12)).eval()
    assert isinstance(export.program(shortest), ExportedProgram)
