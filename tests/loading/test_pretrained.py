"""from_pretrained: dtypes, keywords and the modules after the encoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import Embedder, NomicBert
from nomicbert.errors import BackendError, CheckpointError, ConfigError, HubError
from nomicbert.loading.folder import read_folder
from nomicbert.vectors.modules import read_pooling
from tests.support.checkpoints import build_checkpoint, edit_config, read_tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path, "nomic-v1.5")


@pytest.mark.parametrize("asked", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_dtypes(stored: torch.dtype, asked: torch.dtype, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v2-moe", on_disk_dtype=stored)
    hub = read_tensors(tmp_path)
    model = NomicBert.from_pretrained(tmp_path, dtype=asked)
    assert {p.dtype for p in model.parameters()} == {asked}
    w1 = hub["encoder.layers.1.mlp.experts.mlp.w1"]
    assert torch.equal(model.layers[1].mlp.experts_up.flatten(0, 1), w1.to(asked))
    edit_config(tmp_path, torch_dtype=...)  # then "auto" takes the dtype of the tensors
    assert NomicBert.from_pretrained(tmp_path, dtype="auto").dtype == stored


def test_auto_is_what_config_says(folder: Path) -> None:
    for key, name in (("torch_dtype", "float16"), ("dtype", "bfloat16"), ("dtype", "float32")):
        edit_config(folder, **{"torch_dtype": ..., "dtype": ...} | {key: name})
        assert NomicBert.from_pretrained(folder, dtype="auto").dtype == getattr(torch, name)
    edit_config(folder, dtype="nothing known")
    assert NomicBert.from_pretrained(folder, dtype="auto").dtype == torch.float32
    edit_config(folder, dtype="float64")
    with pytest.raises(ValueError, match=r"is stored in torch\.float64, which parameters cannot"):
        NomicBert.from_pretrained(folder, dtype="auto")


def test_ways_to_say_a_dtype_and_a_device(folder: Path) -> None:
    for said in ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"},
                 {"dtype": "torch.bfloat16"}, {"torch_dtype": "bfloat16"}):  # fmt: skip
        assert NomicBert.from_pretrained(folder, **said).dtype == torch.bfloat16
    assert NomicBert.from_pretrained(folder).dtype == torch.float32
    for said in ({"device": "cpu"}, {"device_map": "cpu"}, {"device": torch.device("cpu")}):
        assert NomicBert.from_pretrained(folder, **said).device.type == "cpu"
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert NomicBert.from_pretrained(folder, device_map="auto").device.type == wanted


def test_keywords_of_existing_call_sites(folder: Path) -> None:
    keywords = {"trust_remote_code": True, "safe_serialization": True, "revision": "main"}
    plain = NomicBert.from_pretrained(folder).state_dict()
    for off in (keywords, dict.fromkeys(keywords)):
        model = NomicBert.from_pretrained(str(folder), **off, strict=True, local_files_only=True)
        assert all(torch.equal(model.state_dict()[name], plain[name]) for name in plain)
    assert Embedder.from_pretrained(folder, **keywords).model.device.type == "cpu"


@pytest.mark.parametrize("facade", [NomicBert, Embedder])
@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("rotary_scale_factor", "did you mean 'rotary_scaling_factor'?"),
        ("dtypes", "did you mean 'dtype'?"),
        ("add_pooling", "did you mean 'add_pooling_layer'?"),
        ("local_file_only", "did you mean 'local_files_only'?"),
        ("xxxx", "known are add_pooling_layer, attention_probs_dropout_prob, attn_implementation"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(facade: Any, keyword: str, message: str) -> None:
    with pytest.raises(TypeError) as caught:  # before the folder is looked at
        facade.from_pretrained("./nowhere", **{keyword: 1})
    name = {NomicBert: "NomicBert.from_pretrained", Embedder: "Embedder"}[facade]
    assert str(caught.value).startswith(f"{name} has no keyword {keyword!r}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"dtype": "float8"}, ValueError, r"dtype must be one of torch.float32.* not 'float8'"),
        ({"dtype": torch.int8}, ValueError, r", 'auto' or 'fastest', not torch\.int8"),
        ({"torch_dtype": "float64"}, ValueError, "not 'float64'"),
        ({"device": "tpu9"}, ValueError, "unknown device 'tpu9': "),
        ({"device_map": {"": 0}}, ValueError, r"device_map\) must be one device's name, not \{"),
        ({"device_map": "balanced"}, ValueError, "must be one device's name, not 'balanced'"),
        ({"device": 0}, ValueError, "must be one device's name, not 0"),
        ({"backend": "numpy"}, ValueError, "unknown backend 'numpy': choose one of auto, refer"),
    ],
)
def test_wrong_values_are_refused_before_weights_are_read(
    keywords: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(error, match=message):
        NomicBert.from_pretrained(folder, **keywords)


def test_a_backend_that_cannot_run_is_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BackendError, match="backend 'triton'"):
        NomicBert.from_pretrained(folder, backend="triton")
    with pytest.raises(CheckpointError, match="not a valid"):
        NomicBert.from_pretrained(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    for facade in (NomicBert, Embedder):
        with pytest.raises(HubError, match="nowhere"):
            facade.from_pretrained(tmp_path / "nowhere")


def pooling_of(folder: Path, **changes: Any) -> Any:
    file = folder / "1_Pooling" / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return read_pooling(read_folder(folder), torch.float32)


def test_pooling_modes(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    pooling = pooling_of(tmp_path)
    assert (pooling.mode, pooling.normalize, pooling.embedding_dimension) == ("cls", True, 64)
    cls, mean = "pooling_mode_cls_token", "pooling_mode_mean_tokens"
    assert pooling_of(tmp_path, **{cls: False}).mode == "mean"  # no flag at all
    assert pooling_of(tmp_path, pooling_mode_max_tokens=True).mode == "max"
    both = pooling_of(tmp_path, **{mean: True})
    assert (both.mode, both.embedding_dimension) == ("max+mean", 128)
    other = "pooling_mode_attention"
    with pytest.raises(ConfigError, match=f"asks for {other}: supported are pooling_mode_cls"):
        pooling_of(tmp_path, **{mean: False, other: True})
    assert pooling_of(tmp_path, **{other: False}, include_prompt=False).include_prompt is False
    for value in (None, "no", 0):
        with pytest.raises(ConfigError, match="include_prompt must be true or false, not"):
            pooling_of(tmp_path, include_prompt=value)
    flags = dict.fromkeys((cls, mean, "pooling_mode_max_tokens", other), ...)
    newer = {"word_embedding_dimension": ..., "embedding_dimension": 64, "include_prompt": True}
    for name, mode in (("cls", "cls"), ("mean_sqrt_len_tokens", "mean_sqrt_len")):
        assert pooling_of(tmp_path, **flags, **newer, pooling_mode=name).mode == mode
    with pytest.raises(ConfigError, match="pooling_mode = 'median' is not supported; supported"):
        pooling_of(tmp_path, pooling_mode="median")
    with pytest.raises(ConfigError, match="pools 65 columns, but the encoder has 64"):
        pooling_of(tmp_path, embedding_dimension=65)


def test_modules(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    file = tmp_path / "modules.json"
    entries = json.loads(file.read_text())

    def with_modules(*modules: dict[str, Any]) -> None:
        file.write_text(json.dumps(modules))
        read_pooling(read_folder(tmp_path), torch.float32)

    with_modules(*entries)
    with pytest.raises(ConfigError, match="lists Transformer, Dense, Pooling: supported are Tran"):
        with_modules(entries[0], entries[2], entries[1])
    strange = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.LSTM"}
    with pytest.raises(ConfigError, match="lists Transformer, LSTM: supported are Transformer"):
        with_modules(entries[0], strange)
    with pytest.raises(ConfigError, match=r"modules.json lacks type"):
        with_modules({"path": ""})
    for path in ("../1_Pooling", "/etc", "1_Pooling/../.."):
        with pytest.raises(ConfigError, match=rf"names the path '{path}', which leaves its folder"):
            with_modules(entries[0], entries[1] | {"path": path})
        with pytest.raises(ConfigError, match="leaves its folder"):
            Embedder.from_pretrained(tmp_path)
    file.unlink()
    shutil.rmtree(tmp_path / "1_Pooling")
    assert read_pooling(read_folder(tmp_path), torch.float32).mode == "mean"


def test_dense(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    place = tmp_path / "2_Dense"
    stated = json.loads((place / "config.json").read_text())
    held = load_file(place / "model.safetensors")

    def dense(**changes: Any) -> Any:
        new = {k: v for k, v in (stated | changes).items() if v is not ...}
        (place / "config.json").write_text(json.dumps(new))
        return read_pooling(read_folder(tmp_path), torch.bfloat16)

    pooling = dense()
    assert torch.equal(pooling.steps[0].linear.weight, held["linear.weight"].bfloat16())
    assert torch.equal(pooling.steps[0].linear.bias, held["linear.bias"].bfloat16())
    assert (pooling.steps[0].activation, pooling.embedding_dimension) == ("Identity", 112)
    assert dense(activation_function=...).steps[0].activation == "Tanh"
    with pytest.raises(ConfigError, match=r"= 'torch.nn.PReLU' is not supported; supported are Id"):
        dense(activation_function="torch.nn.PReLU")
    with pytest.raises(ConfigError, match=r"in_features = 65, but .* gives 64 columns"):
        dense(in_features=65)
    with pytest.raises(
        ConfigError, match="module_input_name = 'token_embeddings' is not supported"
    ):
        dense(module_input_name="token_embeddings")
    with pytest.raises(CheckpointError, match=r"\(112, 64\).*, wanted .*\(113, 64\)"):
        dense(out_features=113)
    with pytest.raises(CheckpointError, match=r"the tensors of .*linear.bias.*, wanted"):
        dense(bias=False)
    save_file({"linear.weight": held["linear.weight"]}, place / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the tensors of .*2_Dense are .*, wanted"):
        dense()
    torch.save(held, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    assert torch.equal(dense().steps[0].linear.bias, held["linear.bias"].bfloat16())
    (place / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="2_Dense holds no weights"):
        dense()
