"""The oracle's hidden states, against transformers on folders that the factory writes.

The oracle is the reference of other tests. Here it is compared with transformers' own models: in
float32 within the parity bound, in float64 far below it. Layouts without such a model are compared
with one that coincides in a special case. Then every planted fault must exceed the bound tenfold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertModel, NomicBertModel

from tests.support.checkpoints import (
    VARIANTS,
    build_checkpoint,
    edit_config,
    read_config,
    read_tensors,
)
from tests.support.oracle import applicable_faults, oracle_forward, oracle_moe, router_margins
from tests.support.variants import ALIASES, VARIANT_TABLE

BOUND = 1e-4  # parity in float32
LENGTHS = (32, 3, 17, 1)
NATIVE = [name for name in VARIANTS if name not in ("nomic-bert-2048", "nomic-v2-moe")]
IGNORED = ("cls.", "pooler.", "embeddings.position_ids", "bert.pooler.")


class Case:
    """A folder for one tiny checkpoint, and the inputs for it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def make(self, variant: str, **overrides: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Write config and tensors; gated layouts with the keys that transformers reads."""
        if VARIANT_TABLE[variant].base.get("activation_function") == "swiglu":
            overrides = {"dialect": "both"} | overrides
        build_checkpoint(self.folder, variant, seed=self.seed, **overrides)
        return read_config(self.folder), read_tensors(self.folder)

    def inputs(
        self, config: dict[str, Any], lengths: tuple[int, ...] = LENGTHS, left: bool = False
    ) -> dict[str, Tensor]:
        """Random ids and types of texts of these lengths, padded on the right or the left."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        return {
            "input_ids": torch.randint(config["vocab_size"], shape, generator=generator),
            "attention_mask": (mask.flip(1) if left else mask).long(),
            "token_type_ids": torch.randint(config["type_vocab_size"], shape, generator=generator),
        }


@pytest.fixture
def case(tmp_path: Path, seed: int) -> Case:
    torch.manual_seed(seed)
    return Case(tmp_path, seed)


def reference(folder: Path, config: dict[str, Any]) -> torch.nn.Module:
    """transformers' model of a folder, after a check that all its tensors come from the file."""
    gated = config["model_type"] == "nomic_bert"
    more = {} if gated else {"add_pooling_layer": False}
    model, report = (NomicBertModel if gated else BertModel).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **more
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all(key.startswith(IGNORED) for key in report["unexpected_keys"])
    return model.eval()


@torch.no_grad()
def hidden_states(model: torch.nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """All hidden states, with padded rows set to 0 as in the oracle."""
    states = model(**batch, output_hidden_states=True).hidden_states
    return [state * batch["attention_mask"][..., None] for state in states]


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest absolute difference over all hidden states; NaN propagates."""
    return (torch.stack(a).double() - torch.stack(b).double()).abs().max().item()


@pytest.mark.parametrize("variant", NATIVE)
def test_hidden_states_equal_transformers(variant: str, case: Case) -> None:
    config, tensors = case.make(variant)
    batch = case.inputs(config)
    model = reference(case.folder, config)
    theirs = hidden_states(model, batch)
    assert len(theirs) == 4
    assert difference(theirs, oracle_forward(config, tensors, **batch)) <= BOUND
    single = oracle_forward(config, tensors, **batch, dtype=torch.float32)
    assert difference(theirs, single) <= BOUND
    # in float64 only the order of the sums differs
    exact = hidden_states(model.double(), batch)
    assert difference(exact, oracle_forward(config, tensors, **batch)) <= 1e-10


@pytest.mark.parametrize("variant", ["nomic-v1.5", "minilm"])
def test_other_inputs_equal_transformers(variant: str, case: Case) -> None:
    config, tensors = case.make(variant)
    model = reference(case.folder, config).double()
    batch = case.inputs(config, left=True)
    assert (
        difference(hidden_states(model, batch), oracle_forward(config, tensors, **batch)) <= 1e-10
    )
    positions = torch.randint(60, batch["input_ids"].shape)
    placed = batch | {"position_ids": positions}
    ours = oracle_forward(config, tensors, **placed)
    assert difference(hidden_states(model, placed), ours) <= 1e-10
    assert difference(ours, oracle_forward(config, tensors, **batch)) > 10 * BOUND
    words = torch.randn(*batch["input_ids"].shape, config["hidden_size"])
    embedded = batch | {"input_ids": None, "inputs_embeds": words.double()}
    ours = oracle_forward(config, tensors, **embedded)
    assert difference(hidden_states(model, embedded), ours) <= 1e-10


def test_native_key_family_alone(case: Case) -> None:
    config, tensors = case.make("nomic-v1.5", dialect="native", layer_norm_epsilon=1e-6)
    assert "n_embd" not in config
    batch = case.inputs(config)
    exact = hidden_states(reference(case.folder, config).double(), batch)
    assert difference(exact, oracle_forward(config, tensors, **batch)) <= 1e-10


def test_prefixed_checkpoint_equals_transformers(case: Case) -> None:
    """transformers does not support the prefix of nomic-bert-2048, so it is removed here."""
    config, tensors = case.make("nomic-bert-2048")
    assert sum(name.startswith("bert.") for name in tensors) == len(tensors) - 4
    bare = {name.removeprefix("bert."): t for name, t in tensors.items() if "cls." not in name}
    save_file(bare, case.folder / "model.safetensors", {"format": "pt"})
    batch = case.inputs(config)
    exact = hidden_states(reference(case.folder, config).double(), batch)
    assert difference(exact, oracle_forward(config, tensors, **batch)) <= 1e-10


@pytest.mark.parametrize("factor", [1, 2, 4.0])
def test_dynamic_ntk_equals_transformers(factor: float, case: Case) -> None:
    lengths = {"max_trained_positions": 16, "max_position_embeddings": 16}
    config, tensors = case.make("nomic-v1", rotary_scaling_factor=factor, **lengths)
    batch = case.inputs(config)
    exact = hidden_states(reference(case.folder, config).double(), batch)
    scaled = oracle_forward(config, tensors, **batch)
    # transformers raises theta in float32, the oracle in Python's float
    assert difference(exact, scaled) <= 1e-5
    plain = edit_config(case.folder, rotary_scaling_factor=None, rope_parameters=...)
    assert difference(scaled, oracle_forward(plain, tensors, **batch)) > 10 * BOUND
    ours = oracle_forward(plain, tensors, **batch, rotary_scaling_factor=factor)
    assert difference(scaled, ours) == 0
    short = case.inputs(config, lengths=(16, 5))
    unscaled = oracle_forward(plain, tensors, **short)
    assert difference(unscaled, oracle_forward(config, tensors, **short)) == 0


def test_float64_angles_are_the_formula(case: Case) -> None:
    """At short lengths both precisions of the angles agree closely, but not exactly."""
    config, tensors = case.make("nomic-v1.5")
    batch = case.inputs(config)
    pure = oracle_forward(config, tensors, **batch, angles=torch.float64)
    assert 0 < difference(oracle_forward(config, tensors, **batch), pure) <= 1e-5


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_interleaved_pairs_are_a_permutation(fraction: float, case: Case) -> None:
    """Reordering the rows of queries and keys turns half-split pairs into interleaved ones."""
    config, tensors = case.make("nomic-v1.5", rotary_emb_fraction=fraction)
    heads, size = config["n_head"], config["n_embd"] // config["n_head"]
    dims = int(size * fraction)
    order = torch.arange(size)
    order[0:dims:2], order[1:dims:2] = torch.arange(dims // 2), torch.arange(dims // 2, dims)
    moved = dict(tensors)
    for name in (name for name in tensors if "Wqkv" in name):
        qkv = tensors[name].unflatten(0, (3, heads, size)).clone()
        qkv[:2] = qkv[:2, :, order]
        moved[name] = qkv.flatten(0, 2)
    batch = case.inputs(config)
    ours = oracle_forward(config, tensors, **batch)
    interleaved = config | {"rotary_emb_interleaved": True}
    assert difference(ours, oracle_forward(interleaved, moved, **batch)) <= 1e-10
    assert difference(ours, oracle_forward(interleaved, tensors, **batch)) > 10 * BOUND
    if fraction < 1:
        whole = config | {"rotary_emb_fraction": 1.0}
        assert difference(ours, oracle_forward(whole, tensors, **batch)) > 10 * BOUND


def test_partial_rotary_leaves_the_rest_alone(case: Case) -> None:
    """With queries of zero in the rotated dims, positions do not matter."""
    config, tensors = case.make("nomic-v1.5", rotary_emb_fraction=0.5)
    heads, size = config["n_head"], config["n_embd"] // config["n_head"]
    for name in (name for name in tensors if "Wqkv" in name):
        tensors[name].view(3, heads, size, -1)[0, :, : size // 2] = 0
    batch = case.inputs(config)
    ours = oracle_forward(config, tensors, **batch)
    still = oracle_forward(config, tensors, **batch, position_ids=torch.zeros(1, 32).long())
    assert difference(ours, still) <= 1e-10


def test_biased_gelu_layers_equal_bert(case: Case) -> None:
    """v2-moe without experts, all positions 0: no rotation, so BERT without position vectors."""
    config, tensors = case.make("nomic-v2-moe", moe_every_n_layers=0)
    bert = {"embeddings.position_embeddings.weight": torch.zeros(4, config["n_embd"])}
    names = {"attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    names |= {"norm2": "output.LayerNorm", "emb_ln": "embeddings.LayerNorm"}
    for name, tensor in tensors.items():
        name = name.replace("encoder.layers.", "encoder.layer.")
        for nomic, theirs in names.items():
            name = name.replace(nomic, theirs)
        if "Wqkv" in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                bert[name.replace("attn.Wqkv", f"attention.self.{part}")] = rows
        else:
            bert[name] = tensor
    sizes = {name: config[old] for old, name in ALIASES.items()} | {"max_position_embeddings": 4}
    sizes |= {key: config[key] for key in ("vocab_size", "type_vocab_size")}
    assert sizes["layer_norm_eps"] == 1e-5
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    model.load_state_dict(bert)
    still = case.inputs(config) | {"position_ids": torch.zeros(1, 32).long()}
    exact = hidden_states(model.double().eval(), still)
    assert difference(exact, oracle_forward(config, tensors, **still)) <= 1e-10


def test_mixture_of_experts_by_hand(seed: int) -> None:
    """All experts at once, weighted: the router picks the two largest, without renormalising."""
    torch.manual_seed(seed)
    experts, width, inner = 5, 6, 7
    router, bias = torch.randn(experts, width).double(), torch.randn(width).double()
    w1, w2 = torch.randn(2, experts, inner, width).double()
    layer = {"mlp.router.layer.weight": router, "mlp.experts.bias": bias}
    layer |= {"mlp.experts.mlp.w1": w1.flatten(0, 1), "mlp.experts.mlp.w2": w2.flatten(0, 1)}
    x = torch.randn(9, width).double()
    out, probabilities = oracle_moe(x, layer, top_k=2)
    weights = torch.einsum("tw,ew->te", x, router).exp()
    weights = weights / weights.sum(1, keepdim=True)
    assert torch.allclose(probabilities, weights, atol=1e-12)
    third = weights.sort(1, descending=True).values[:, 2:3]
    middle = torch.einsum("tw,eiw->tei", x, w1)
    middle = middle * 0.5 * (1 + torch.erf(middle / 2**0.5))
    each = torch.einsum("tei,eiw->tew", middle, w2)
    wanted = torch.einsum("te,tew->tw", weights * (weights > third), each) + bias
    assert torch.allclose(out, wanted, atol=1e-12)


def test_router_margins_are_healthy(case: Case) -> None:
    config, tensors = case.make("nomic-v2-moe")
    batch = case.inputs(config, lengths=(64, 64))
    margins = router_margins(config, tensors, **batch)
    assert margins.shape == (2, 64)
    assert (margins > 1e-3).double().mean() >= 0.95
    record: dict[str, list[Tensor]] = {}
    oracle_forward(config, tensors, **batch, record=record)
    assert len(record["router"]) == 1  # of three layers, the second has experts
    # a random router is not balanced: one or two experts may be unused, not more
    used = record["router"][0].topk(2).indices.unique()
    assert len(used) >= config["num_experts"] - 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_planted_faults_exceed_the_bound_tenfold(variant: str, case: Case) -> None:
    config, tensors = case.make(variant)
    batch = case.inputs(config)
    ours = oracle_forward(config, tensors, **batch)[-1:]
    faults = applicable_faults(config, tensors)
    assert len(faults) >= 5
    for fault in faults:
        wrong = oracle_forward(config, tensors, **batch, faults=[fault])[-1:]
        assert difference(ours, wrong) >= 10 * BOUND, fault


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "bge-en"])
def test_every_tensor_matters(variant: str, case: Case) -> None:
    """Zeroing any one tensor changes the output, except a key bias without rotary."""
    config, tensors = case.make(variant)
    batch = case.inputs(config, lengths=(12, 5))
    ours = oracle_forward(config, tensors, **batch)[-1:]
    for name, tensor in tensors.items():
        if name.startswith(IGNORED):
            continue
        wrong = tensors | {name: torch.zeros_like(tensor)}
        moved = difference(ours, oracle_forward(config, wrong, **batch)[-1:])
        if name.endswith("self.key.bias"):
            assert moved <= 1e-10
        else:
            assert moved >= 10 * BOUND, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_logits_spread(variant: str, case: Case) -> None:
    config, tensors = case.make(variant)
    record: dict[str, list[Tensor]] = {}
    oracle_forward(config, tensors, **case.inputs(config, lengths=(48, 48)), record=record)
    for logits in record["logits"]:
        assert 2.0 <= logits.std(-1).mean().item() <= 4.5
