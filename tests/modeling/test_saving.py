"""save_pretrained: the references load its files, and a failure never leaves half a file."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from nomicbert import NomicBert
from nomicbert.loading import hub_config, tensor_files
from nomicbert.loading.saved_config import saved_config
from tests.support.checkpoints import VARIANTS, build_checkpoint, read_config, read_tensors

# transformers' own NomicBert only supports the gated layout without prefix
NATIVE = ("nomic-v1.5", "nomic-v1-unsupervised", "code-rank-embed", "arctic-m-long")
BERTS = ("conan-v1", "gte", "minilm", "bert-base-uncased", "chinese-roberta-wwm-ext-large")
FILES = {"README.md", "config.json", "model.safetensors"}


def ids_and_mask() -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 370, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


@torch.no_grad()
def hidden(model: torch.nn.Module) -> Tensor:
    ids, mask = ids_and_mask()
    return model(ids, attention_mask=mask)[0].float() * mask[..., None]


def same_bits(a: NomicBert, b: NomicBert) -> bool:
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_we_reload_the_same_bits(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", variant)
    model = NomicBert.from_pretrained(tmp_path / "a", dtype="auto")
    model.save_pretrained(tmp_path / "deep" / "b")
    assert {p.name for p in (tmp_path / "deep" / "b").iterdir()} == FILES
    again = NomicBert.from_pretrained(tmp_path / "deep" / "b", dtype="auto")
    assert same_bits(model, again)
    assert torch.equal(hidden(model), hidden(again))


@pytest.mark.parametrize("variant", [*NATIVE, *BERTS])
def test_transformers_loads_the_same_model(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", variant)
    pooler = variant in BERTS
    model = NomicBert.from_pretrained(tmp_path / "a", add_pooling_layer=pooler)
    model.save_pretrained(tmp_path / "b")
    cls = transformers.BertModel if pooler else transformers.NomicBertModel
    theirs, report = cls.from_pretrained(
        tmp_path / "b", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    assert theirs.config.num_hidden_layers == 3
    assert (hidden(model) - hidden(theirs.eval())).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "e5"])
def test_names_and_values_are_those_of_the_hub(variant: str, tmp_path: Path) -> None:
    hub = read_tensors(build_checkpoint(tmp_path / "a", variant))
    NomicBert.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    saved = read_tensors(tmp_path / "b")
    wanted = {n: t for n, t in hub.items() if not re.search(r"pooler|position_ids", n)}
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], wanted[name]) for name in saved)


def test_the_settings_are_the_checkpoints_own_and_of_both_families(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "nomic-v1", vocab_size=378, a_key_of_its_own=[1])
    model = NomicBert.from_pretrained(tmp_path / "a", rotary_scaling_factor=4)
    model.save_pretrained(tmp_path / "b")
    config = read_config(tmp_path / "b")
    assert config["a_key_of_its_own"] == [1]
    assert config["vocab_size"] == 384
    assert config["n_embd"] == config["hidden_size"] == 64
    assert config["max_trained_positions"] == config["max_position_embeddings"] == 2048
    assert config["n_positions"] == 8192
    assert (config["activation_function"], config["hidden_act"]) == ("swiglu", "silu")
    assert config["rope_parameters"] == {
        "rope_theta": 1000.0, "rope_type": "dynamic", "factor": 4.0
    }  # fmt: skip
    assert config["rotary_scaling_factor"] == 4.0
    assert NomicBert.from_pretrained(tmp_path / "b").config.rotary_scaling_factor == 4.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_that_are_written_read_as_the_same(variant: str, tmp_path: Path) -> None:
    config = hub_config.read_config(build_checkpoint(tmp_path, variant))
    written = saved_config(config, torch.float16)
    (tmp_path / "config.json").write_text(json.dumps(written))
    again = hub_config.read_config(tmp_path)
    assert again.source == json.loads(json.dumps(written))
    assert dataclasses.replace(again, source={}) == dataclasses.replace(config, source={})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_is_saved_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "nomic-v2-moe")
    model = NomicBert.from_pretrained(tmp_path / "a", dtype=dtype)
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["dtype"] == str(dtype).removeprefix("torch.")
    assert "torch_dtype" not in read_config(tmp_path / "b")
    assert {t.dtype for t in read_tensors(tmp_path / "b").values()} == {dtype}
    assert same_bits(model, NomicBert.from_pretrained(tmp_path / "b", dtype="auto"))


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_into_the_folder_the_weights_came_from(form: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", weights=form)
    before = {p.name for p in tmp_path.iterdir()}
    model = NomicBert.from_pretrained(tmp_path)
    with torch.no_grad():
        model.layers[0].attention_norm.weight += 1
    at_first = hidden(model)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == before | FILES
    again = NomicBert.from_pretrained(tmp_path)
    assert same_bits(model, again)
    assert torch.equal(hidden(again), at_first)
    assert torch.equal(hidden(model), at_first)  # it does not use pages of the replaced file


def fails(*args: Any, **keywords: Any) -> None:
    raise OSError("no space left on device")


def fails_later(work: Callable[..., None]) -> Callable[..., None]:
    """Write half of a file, then fail."""

    def write(tensors: Any, path: Any, **keywords: Any) -> None:
        work(tensors, path, **keywords)
        os.truncate(path, 1000)
        fails()

    return write


@pytest.mark.parametrize("where", ["replace", "save_file", "half a file"])
def test_a_failure_leaves_the_old_files_whole(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5")
    model = NomicBert.from_pretrained(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with torch.no_grad():
        model.embeddings.word.weight += 1
    with monkeypatch.context() as patch:
        if where == "replace":
            patch.setattr(os, "replace", fails)
        elif where == "save_file":
            patch.setattr(tensor_files, "save_file", fails)
        else:
            patch.setattr(tensor_files, "save_file", fails_later(tensor_files.save_file))
        with pytest.raises(OSError, match="no space left"):
            model.save_pretrained(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not list(tmp_path.glob(".*"))
    model.save_pretrained(tmp_path)
    assert same_bits(model, NomicBert.from_pretrained(tmp_path))


def test_a_model_made_here_can_be_saved(tmp_path: Path) -> None:
    config = NomicBert.from_pretrained(build_checkpoint(tmp_path / "a", "e5")).config
    model = NomicBert(config).eval()  # random weights
    model.save_pretrained(str(tmp_path / "b"))
    assert same_bits(model, NomicBert.from_pretrained(tmp_path / "b"))
    assert model.layers[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.layers[0].mlp_norm.weight, torch.ones(64))
    assert not model.layers[0].mlp.up.bias.any()


def test_an_older_weight_file_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The remote code reads it first."""
    build_checkpoint(tmp_path, "e5", weights="bin")
    NomicBert.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "holds an older pytorch_model.bin, which some loaders prefer" in caplog.text


def test_another_vocabulary_is_saved_as_it_is(tmp_path: Path) -> None:
    model = NomicBert.from_pretrained(build_checkpoint(tmp_path / "a", "nomic-v1.5"))
    model.set_input_embeddings(torch.nn.Embedding(100, 64))
    model.save_pretrained(tmp_path / "b")
    again = NomicBert.from_pretrained(tmp_path / "b")
    assert again.config.vocab_size == 100
    assert same_bits(model, again)
