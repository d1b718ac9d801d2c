"""`nomicbert info` on damaged checkpoints and with options that loading refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nomicbert import Embedder
from nomicbert.errors import NomicBertError
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.command_line import one_line, run_cli
from tests.support.cpus import pretend


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_type(folder: Path) -> None:
    edit_config(folder, model_type="t5")


def lose_a_tensor(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)


def lose_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


def tear_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def widen_the_dense(folder: Path) -> None:
    path = folder / "2_Dense/model.safetensors"
    save_file({"linear.bias": torch.zeros(3)}, path)


BROKEN = {
    break_json: "config.json is not JSON",
    break_type: "model_type = 't5' is not supported",
    lose_a_tensor: "encoder.layer.1.attention.self.query.weight",
    lose_the_tokenizer: "has no tokenizer",
    tear_the_weights: "not a valid safetensors file",
    widen_the_dense: "2_Dense",
    shutil.rmtree: "does not exist",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_one_line(damage: Any, tmp_path: Path) -> None:
    """The error is that of loading."""
    folder = build_checkpoint(tmp_path / "conan", "conan-v1", num_hidden_layers=1)
    damage(folder)
    code, out, err = run_cli("info", str(folder))
    assert (code, out) == (2, "")
    assert BROKEN[damage] in one_line(err)
    with pytest.raises(NomicBertError) as raised:
        Embedder(folder)
    assert err == f"nomicbert: {' '.join(str(raised.value).split())}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "triton", "--device", "cpu"], "it needs a CUDA device, not cpu"),
        (["--backend", "int8", "--dtype", "bfloat16"], "its hidden states are float32"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--rotary-scaling-factor", "2"], "a bert checkpoint has no --rotary-scaling-factor"),
    ],
)
def test_options_that_loading_refuses(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pretend(monkeypatch, True)
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    code, out, err = run_cli("info", str(folder), *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)
