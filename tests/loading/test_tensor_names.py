"""Values of every parameter against the hub tensors, assembled by independent code."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nomicbert import NomicBert
from nomicbert.errors import CheckpointError
from nomicbert.loading.tensor_names import IGNORED, canonical
from tests.support.checkpoints import VARIANTS, build_checkpoint, read_tensors
from tests.support.guards import guarded

Tensors = dict[str, Tensor]


def plain_names(tensors: Tensors) -> Tensors:
    """Names without the prefix of the trained model, and with current LayerNorm names."""
    names = {}
    for name, tensor in tensors.items():
        for prefix in ("bert.", "nomic_bert.", "trunk.", "model."):
            name = name.removeprefix(prefix)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        names[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return names


def expected(hub: Tensors, experts: int) -> Tensors:
    """Expected parameters by name: the tensors of the published layouts, fused."""
    bert = "embeddings.LayerNorm.weight" in hub
    layers = 1 + max(int(m[1]) for n in hub if (m := re.search(r"encoder\.layers?\.(\d+)\.", n)))
    ours: Tensors = {}

    def put(name: str, *sources: str) -> None:
        for kind in ("weight", "bias"):
            if f"{sources[0]}.{kind}" in hub:
                ours[f"{name}.{kind}"] = torch.cat([hub[f"{s}.{kind}"] for s in sources])

    put("embeddings.word", "embeddings.word_embeddings")
    put("embeddings.token_type", "embeddings.token_type_embeddings")
    put("embeddings.position", "embeddings.position_embeddings")
    put("embeddings.norm", "embeddings.LayerNorm" if bert else "emb_ln")
    for i in range(layers):
        at, to = (f"encoder.layer.{i}." if bert else f"encoder.layers.{i}."), f"layers.{i}."
        if bert:
            own = at + "attention.self."
            put(to + "attention.qkv", own + "query", own + "key", own + "value")
            put(to + "attention.out", at + "attention.output.dense")
            put(to + "attention_norm", at + "attention.output.LayerNorm")
            put(to + "mlp.up", at + "intermediate.dense")
            put(to + "mlp.down", at + "output.dense")
            put(to + "mlp_norm", at + "output.LayerNorm")
            continue
        put(to + "attention.qkv", at + "attn.Wqkv")
        put(to + "attention.out", at + "attn.out_proj")
        put(to + "attention_norm", at + "norm1")
        put(to + "mlp_norm", at + "norm2")
        put(to + "mlp.up", at + "mlp.fc1")
        put(to + "mlp.down", at + "mlp.fc2")
        put(to + "mlp.up_gate", at + "mlp.fc11", at + "mlp.fc12")  # fc12 goes through silu
        put(to + "mlp.router", at + "mlp.router.layer")
        if at + "mlp.experts.bias" in hub:
            ours[to + "mlp.bias"] = hub[at + "mlp.experts.bias"]
            w1, w2 = hub[at + "mlp.experts.mlp.w1"], hub[at + "mlp.experts.mlp.w2"]
            ours[to + "mlp.experts_up"] = torch.stack(w1.split(len(w1) // experts))
            # an expert computes y = gelu(x w1^T) w2: as a linear layer's weight, w2 is transposed
            turned = [part.T for part in w2.split(len(w2) // experts)]
            ours[to + "mlp.experts_down"] = torch.stack(turned)
    return ours


def assert_loaded(folder: Path, hub: Tensors | None = None) -> NomicBert:
    """Every parameter has the bits of the file."""
    tensors = plain_names(read_tensors(folder)) if hub is None else hub
    dtype = tensors["embeddings.word_embeddings.weight"].dtype
    model = NomicBert.from_pretrained(folder, dtype=dtype)
    wanted = expected(tensors, model.config.num_experts)
    found = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    wrong = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert wrong == []
    assert {p.dtype for p in found.values()} == {dtype}
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_row(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant)
    model = assert_loaded(tmp_path)
    assert not model.training
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "bert-base-uncased"])
def test_every_form_of_file(form: str, variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant, weights=form)
    assert_loaded(tmp_path)


@pytest.mark.parametrize("prefix", ["bert.", "nomic_bert.", "trunk.", "model.", "model.bert."])
@pytest.mark.parametrize("variant", ["code-rank-embed", "e5"])
def test_every_prefix(prefix: str, variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant)
    hub = read_tensors(tmp_path)
    save_file({prefix + name: t for name, t in hub.items()}, tmp_path / "model.safetensors")
    assert_loaded(tmp_path, hub)


def test_queries_keys_and_values_may_not_be_swapped(tmp_path: Path) -> None:
    """Checks `expected` itself: swapping q, k and v, or up and gate, must be detected."""
    for variant, one, other in (
        ("e5", "encoder.layer.1.attention.self.query.weight", "key"),
        ("code-rank-embed", "encoder.layers.1.mlp.fc11.weight", "fc12"),
    ):
        build_checkpoint(tmp_path, variant)
        hub = plain_names(read_tensors(tmp_path))
        name = re.sub(r"query|fc11", other, one)
        hub[one], hub[name] = hub[name], hub[one]
        with pytest.raises(AssertionError, match=r"layers\.1\."):
            assert_loaded(tmp_path, hub)


def test_tied_head_present_or_dropped(tmp_path: Path) -> None:
    for variant in ("nomic-bert-2048", "bert-base-uncased"):
        build_checkpoint(tmp_path, variant)
        with_head = assert_loaded(tmp_path).state_dict()
        hub = read_tensors(tmp_path)
        del hub["cls.predictions.decoder.weight"]
        save_file(hub, tmp_path / "model.safetensors")
        without = assert_loaded(tmp_path).state_dict()
        assert all(torch.equal(without[name], with_head[name]) for name in with_head)


def test_padded_vocabulary(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "code-rank-embed", vocab_size=378)  # and in multiples of 64
    hub = read_tensors(tmp_path)
    assert hub["embeddings.word_embeddings.weight"].shape == (378, 64)
    word = NomicBert.from_pretrained(tmp_path).embeddings.word.weight
    assert word.shape == (384, 64)
    assert torch.equal(word[:378], hub["embeddings.word_embeddings.weight"])
    assert torch.equal(word[378:], torch.zeros(6, 64))
    # the file may hold the padding rows already; any other number of rows is an error
    table = torch.randn(384, 64)
    save_file(hub | {"embeddings.word_embeddings.weight": table}, tmp_path / "model.safetensors")
    assert torch.equal(NomicBert.from_pretrained(tmp_path).embeddings.word.weight, table)
    for rows in (377, 379, 385):
        table = torch.randn(rows, 64)
        save_file(
            hub | {"embeddings.word_embeddings.weight": table}, tmp_path / "model.safetensors"
        )
        with pytest.raises(CheckpointError, match=rf"is \({rows}, 64\), wanted \(384, 64\)"):
            NomicBert.from_pretrained(tmp_path)


def test_pooler_is_read_when_asked_for(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bert-base-uncased")
    model = NomicBert.from_pretrained(tmp_path, add_pooling_layer=True)
    hub = read_tensors(tmp_path)
    assert torch.equal(model.pooler.weight, hub["bert.pooler.dense.weight"])
    assert torch.equal(model.pooler.bias, hub["bert.pooler.dense.bias"])
    build_checkpoint(tmp_path, "nomic-v1.5")
    with pytest.raises(CheckpointError, match=r"2 missing: pooler.dense.weight, pooler.dense.bias"):
        NomicBert.from_pretrained(tmp_path, add_pooling_layer=True)


def test_names() -> None:
    assert canonical("bert.embeddings.LayerNorm.gamma") == "embeddings.LayerNorm.weight"
    assert canonical("bert.embeddings.LayerNorm.beta") == "embeddings.LayerNorm.bias"
    assert canonical("model.nomic_bert.emb_ln.bias") == "emb_ln.bias"
    assert canonical("trunk.encoder.layers.0.norm1.weight") == "encoder.layers.0.norm1.weight"
    assert canonical("beta.gamma") == "beta.gamma"  # only parameters of LayerNorm had these names
    for name in (
        "embeddings.position_ids",
        "encoder.layers.3.attn.rotary_emb.inv_freq",
        "encoder.layers.3.attn.norm_factor",
        "cls.predictions.decoder.weight",
        "cls.seq_relationship.bias",
        "seq_relationship.weight",
        "pooler.dense.weight",
        "classifier.weight",
        "qa_outputs.bias",
    ):
        assert IGNORED.fullmatch(name), name
    for name in (
        "embeddings.position_embeddings.weight",
        "encoder.layers.3.norm1.weight",
        "classifier_norm.weight",
        "encoder.pooler_norm.weight",
        "position_ids.weight",
    ):
        assert not IGNORED.fullmatch(name), name


def test_a_name_of_prefixes() -> None:
    """A header of safetensors may have names of 100 MB; each prefix must not copy the rest."""
    with guarded(room=2**31):
        assert canonical("model.bert." * 2_000_000 + "x.LayerNorm.gamma") == "x.LayerNorm.weight"
    assert canonical("x.model.bert.y") == "x.model.bert.y"
    assert canonical("bert.modelx.y") == "modelx.y"
