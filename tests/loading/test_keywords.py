"""Keywords that people pass to transformers' from_pretrained: each has a meaning or is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nomicbert import CrossEncoder, Embedder, NomicBert, NomicBertForTokenClassification
from nomicbert.errors import CheckpointError, ConfigError, HubError
from nomicbert.loading import hub
from nomicbert.loading.keywords import ATTENTION, OFF
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors
from tests.support.heads import build_head

IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "model", "nomic-v1.5", num_hidden_layers=1)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What is refused -> a value that switches it on, and words of the advice.
REFUSED: dict[str, tuple[Any, str]] = {
    "variant": ("fp16", "give the revision or folder"),
    "proxies": ({"https": "proxy"}, "HTTPS_PROXY"),
    "output_loading_info": (True, "loading is strict"),
    "from_tf": (True, "convert the checkpoint"),
    "from_flax": (True, "convert the checkpoint"),
    "mirror": ("tuna", "HF_ENDPOINT"),
    "quantization_config": ({"load_in_8bit": True}, "backend='int8'"),
    "key_mapping": ({"a": "b"}, "give them as state_dict"),
    "_fast_init": ("yes", "not supported"),
    "resume_download": (2, "not supported"),
    "ignore_mismatched_sizes": (True, "never replaced by a random one"),
}


@pytest.mark.parametrize("name", OFF)
def test_what_is_switched_off_passes_and_anything_else_is_refused(name: str, folder: Path) -> None:
    wanted = NomicBert.from_pretrained(folder)
    for value in OFF[name][0]:
        assert same(NomicBert.from_pretrained(folder, **{name: value}), wanted)
        Embedder.from_pretrained(folder, **{name: value})
    value, advice = REFUSED[name]
    said = rf"^{name}={re.escape(repr(value))} is not supported: .*"
    for load in (NomicBert.from_pretrained, Embedder.from_pretrained):
        with pytest.raises(ValueError, match=said if advice == "not supported" else said + advice):
            load("./nowhere", **{name: value})  # before the folder is looked at


def test_heads_accept_and_refuse_the_same(tmp_path: Path) -> None:
    folder = build_head(tmp_path, "Bert", "TokenClassification", num_labels=3)
    load = NomicBertForTokenClassification.from_pretrained
    off = {name: values[0] for name, (values, _) in OFF.items()}
    assert same(load(folder, **off), load(folder))
    for name, (value, _) in REFUSED.items():
        if name != "ignore_mismatched_sizes":  # which has a meaning for a head
            with pytest.raises(ValueError, match=f"^{name}="):
                load("./nowhere", **{name: value})
    with pytest.raises(TypeError, match=r"NomicBertForTokenClassification.*'add_pooling_layer'"):
        load(folder, add_pooling_layer=True)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("num_labels", "only a class with such a head has labels"),
        ("id2label", "only a class with such a head has labels"),
        ("load_in_8bit", "backend='int8'"),
        ("max_memory", "dispatch_model"),
        ("tp_plan", "give one device"),
        ("output_attentions", "give it to the call"),
        ("output_hidden_states", "give it to the call"),
        ("gguf_file", "only safetensors"),
        ("use_auth_token", "give token"),
        ("use_cache", "no cache of keys"),
        ("prompts", "give it to Embedder or CrossEncoder when loading"),
        ("truncate_dim", "give it to Embedder when loading"),
        ("activation_fn", "give it to CrossEncoder when loading"),
        ("max_length", "set max_seq_length of an Embedder or CrossEncoder"),
        ("config_kwargs", "give its entries as keywords"),
        ("atn_implementation", "did you mean 'attn_implementation'"),
    ],
)
def test_others_are_refused_with_advice(name: str, advice: str) -> None:
    with pytest.raises(TypeError, match=f"has no keyword '{name}': .*{re.escape(advice)}"):
        NomicBert.from_pretrained("./nowhere", **{name: 1})


def test_what_is_accepted_and_changes_nothing(folder: Path) -> None:
    wanted = NomicBert.from_pretrained(folder)
    for said in [
        *({"attn_implementation": name} for name in (*ATTENTION, None)),
        *({"low_cpu_mem_usage": value} for value in (True, False, None)),
        *({"weights_only": value} for value in (True, None)),
    ]:
        assert same(NomicBert.from_pretrained(folder, **said), wanted)
    with pytest.raises(ValueError, match=r"attn_implementation must be one of 'eager', .*'paged'"):
        NomicBert.from_pretrained(folder, attn_implementation="paged")
    with pytest.raises(ValueError, match="weights_only=False is not supported"):
        NomicBert.from_pretrained(folder, weights_only=False)
    for name in ("weights_only", "low_cpu_mem_usage", "use_safetensors"):
        with pytest.raises(TypeError, match=f"{name} must be True, False or None, not 'yes'"):
            NomicBert.from_pretrained(folder, **{name: "yes"})


def test_dropout(folder: Path, tmp_path: Path) -> None:
    given = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0}
    model = NomicBert.from_pretrained(folder, **given)
    found = {name: getattr(model.config, name) for name in given}
    assert found == given
    assert {name: type(value) for name, value in found.items()} == dict.fromkeys(given, float)
    plain = NomicBert.from_pretrained(folder)
    assert torch.equal(model(IDS)[0], plain(IDS)[0])
    assert not torch.equal(model.train()(IDS)[0], plain.train()(IDS)[0])
    half = NomicBert.from_pretrained(folder, attention_probs_dropout_prob=0.5).train()
    assert not torch.equal(half(IDS)[0], plain(IDS)[0])
    model.save_pretrained(tmp_path / "saved")
    assert read_config(tmp_path / "saved")["resid_pdrop"] == 0.25
    assert NomicBert.from_pretrained(tmp_path / "saved").config.hidden_dropout_prob == 0.25
    assert NomicBert.from_pretrained(folder, hidden_dropout_prob=None).config == plain.config
    with pytest.raises(ConfigError, match=r"^hidden_dropout_prob must be from 0 to 1, not 1\.5"):
        NomicBert.from_pretrained(folder, hidden_dropout_prob=1.5)
    with pytest.raises(TypeError, match="attention_probs_dropout_prob must be a number from 0 to"):
        NomicBert.from_pretrained(folder, attention_probs_dropout_prob="0.1")


def test_every_form_of_config(folder: Path, tmp_path: Path) -> None:
    wanted = NomicBert.from_pretrained(folder)
    own = read_config(folder)
    edit_config(folder, num_hidden_layers=7, n_layer=7)  # is not read
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_text((folder / "config.json").read_text("utf-8"), "utf-8")
    edit_config(moved, num_hidden_layers=1, n_layer=1)
    theirs = transformers.NomicBertConfig(**own)
    for given in (wanted.config, own, moved, str(moved / "config.json"), theirs):
        model = NomicBert.from_pretrained(folder, config=given)
        assert same(model, wanted)
        assert torch.equal(model(IDS)[0], wanted(IDS)[0])
        scaled = NomicBert.from_pretrained(folder, config=given, rotary_scaling_factor=3)
        assert scaled.config.rotary_scaling_factor == 3.0
        assert model.config.rotary_scaling_factor is None
    changed = dataclasses.replace(wanted.config, rope_theta=77.0)
    again = NomicBert.from_pretrained(folder, config=changed)
    assert again.config.rope_theta == 77.0
    assert not torch.equal(again(IDS)[0], wanted(IDS)[0])
    with pytest.raises(ConfigError, match=r"model_type = None is not supported"):
        NomicBert.from_pretrained(folder, config={"hidden_size": 8})
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        NomicBert.from_pretrained(folder, config=own | {"more": object()})
    with pytest.raises(TypeError, match=r"config must be an EncoderConfig, .* not int"):
        NomicBert.from_pretrained(folder, config=3)
    with pytest.raises(CheckpointError, match="do not fit"):
        NomicBert.from_pretrained(folder, config=own | {"n_inner": 80, "intermediate_size": 80})
    bert = build_checkpoint(tmp_path / "bert", "e5", num_hidden_layers=1)
    config = NomicBert.from_pretrained(bert).config
    with pytest.raises(ConfigError, match="a bert checkpoint has no rotary_scaling_factor"):
        NomicBert.from_pretrained(bert, config=config, rotary_scaling_factor=2)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_state_dict_in_the_names_of_the_hub_or_ours(prefix: str, folder: Path) -> None:
    wanted = NomicBert.from_pretrained(folder)
    tensors = {prefix + name: tensor for name, tensor in read_tensors(folder).items()}
    (folder / "model.safetensors").unlink()
    for given in (tensors, wanted.state_dict()):
        model = NomicBert.from_pretrained(folder, state_dict=given)
        assert same(model, wanted)
        assert all(p.requires_grad for p in model.parameters())
        alone = NomicBert.from_pretrained(None, config=wanted.config, state_dict=given)
        assert same(alone, wanted)
        with torch.no_grad():  # copied: training one leaves the other alone
            model.embeddings.word.weight.zero_()
        assert not same(alone, model)
        assert same(NomicBert.from_pretrained(folder, state_dict=given), wanted)
    missing = {name: t for name, t in tensors.items() if not name.endswith("fc2.weight")}
    with pytest.raises(CheckpointError, match=r"tensors of state_dict do not fit.*1 missing.*fc2"):
        NomicBert.from_pretrained(folder, state_dict=missing)
    with pytest.raises(TypeError, match="state_dict must map names to tensors, not 3"):
        NomicBert.from_pretrained(folder, state_dict=3)
    with pytest.raises(CheckpointError, match=r"has no values for .*: it is on 'meta'"):
        NomicBert.from_pretrained(folder, state_dict={n: t.to("meta") for n, t in tensors.items()})
    for lacking in ({"config": wanted.config}, {"state_dict": tensors}, {}):
        with pytest.raises(ValueError, match="without a path or repository, give both config"):
            NomicBert.from_pretrained(None, **lacking)


def test_subfolder(folder: Path, tmp_path: Path) -> None:
    wanted = NomicBert.from_pretrained(folder)
    for said in ("model", "model/", "./model"):
        assert same(NomicBert.from_pretrained(tmp_path, subfolder=said), wanted)
    assert same(NomicBert.from_pretrained(folder, subfolder=""), wanted)
    with pytest.raises(HubError, match="holds no folder 'modle': check subfolder"):
        NomicBert.from_pretrained(tmp_path, subfolder="modle")
    for outside in ("../x", "/etc", "a\0b"):
        with pytest.raises(HubError, match="is no folder within a repository"):
            NomicBert.from_pretrained(tmp_path, subfolder=outside)
    with pytest.raises(TypeError, match="subfolder must be a string, not 3"):
        NomicBert.from_pretrained(tmp_path, subfolder=3)
    for load in (Embedder, CrossEncoder):
        with pytest.raises(
            ValueError, match=r"^subfolder='model' is not supported, .* give the path"
        ):
            load(tmp_path, subfolder="model")
    assert same(Embedder(folder, subfolder="").model, wanted)


@pytest.mark.parametrize("load", [Embedder, CrossEncoder])
def test_a_facade_hands_on_how_to_fetch(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a repository are chosen and fetched before the model is built."""
    said: list[dict[str, Any]] = []

    def resolve(_: object = None, **keywords: Any) -> Path:
        said.append(keywords)
        raise HubError("no network here")

    monkeypatch.setattr(hub, "resolve", resolve)
    for given in (
        {"use_safetensors": False, "force_download": True},
        {"model_kwargs": {"use_safetensors": False}, "force_download": True},
        {},
    ):
        with pytest.raises(HubError, match="no network here"):
            load("some/model", **given)
    found = [(one["use_safetensors"], one["force_download"]) for one in said]
    assert found == [(False, True), (False, True), (None, False)]


def test_force_download_of_a_folder_is_ignored(folder: Path) -> None:
    """As `hub.resolve` says."""
    assert same(Embedder(folder, force_download=True).model, NomicBert.from_pretrained(folder))


def test_use_safetensors(folder: Path) -> None:
    """Two files that differ show which one is read."""
    tensors = load_file(folder / "model.safetensors")
    torch.save({name: 2 * tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    plain = NomicBert.from_pretrained(folder).state_dict()
    for said, factor in ((None, 1), (True, 1), (False, 2)):
        found = NomicBert.from_pretrained(folder, use_safetensors=said).state_dict()
        assert all(torch.equal(found[name], factor * plain[name]) for name in plain)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"holds no weights: none of model.safetensors, .*True"
    ):
        NomicBert.from_pretrained(folder, use_safetensors=True)
    assert NomicBert.from_pretrained(folder, use_safetensors=False)
    save_file(tensors, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"none of pytorch_model\.bin, .*is False"):
        NomicBert.from_pretrained(folder, use_safetensors=False)


def test_a_reranker_hands_its_keywords_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^from_tf=True is not supported"):
        CrossEncoder(tmp_path, from_tf=True)
