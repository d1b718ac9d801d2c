"""`nomicbert info` as text: its lines and their wording."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from nomicbert.cli.info import MLPS
from nomicbert.config import HiddenAct
from nomicbert_kernels import linear_int8
from tests.cli.info_cases import case, info  # noqa: F401
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import run_cli


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_checkpoint(tmp_path / "conan", "conan-v1", num_hidden_layers=2)
    (tmp_path / "conan" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli("info", "conan", "--backend", "reference", "--device", "cpu")
    assert (code, err) == (0, "")
    size = sum(path.stat().st_size for path in Path("conan").rglob("*.safetensors"))
    assert (
        out
        == f"""\
checkpoint   conan
licence      cc-by-nc-4.0
model        bert, {info("conan")["parameters"]:,} parameters
sizes        2 layers, hidden 64, 4 heads of 16, MLP 96, vocabulary 544
weights      safetensors, float32, {size / 1e6:.1f} MB
layout       native config keys, no prefix
unread       pooler.dense.bias, pooler.dense.weight
positions    512 learned
MLP          GELU
pooling      mean, Dense 64 -> 112 (Identity)
embedding    112 dimensions, similarity cosine
matryoshka   slice -> L2
prompts      none
max length   512 tokens (sentence_bert_config.json)
backend      reference on cpu in float32: requested
notes        the licence cc-by-nc-4.0 forbids commercial use of the weights
"""
    )


LINES = {
    "v1.5": ['prompts      search_query = "search_query: " (encode_query)'],
    "v1": [
        "positions    rotary, theta 1000, trained on 2048 tokens, dynamic NTK factor 2",
        "             one of them is required for every text",
    ],
    "v2-moe": ["MLP          GELU; 8 experts in every second layer, 2 per token"],
    "bge": ["pooling      cls, L2"],
    "bare": [
        "layout       native config keys, 'bert.' before tensor names",
        "             cls.predictions.bias, cls.predictions.decoder.weight and 6 more",
    ],
}


def test_lines_of_text_are_short(case: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = case
    monkeypatch.chdir(folder.parent)
    lines = run_cli("info", name)[1].splitlines()
    assert max(map(len, lines)) <= 80
    labels = [line[:13].strip() for line in lines if line[0] != " "]
    assert labels[0] == "checkpoint"
    assert len(set(labels)) == len(labels) >= 14
    assert set(LINES.get(name, ())) <= set(lines)
    assert "             none" not in lines  # "none" is only for checkpoints without prompts


@pytest.mark.skipif(linear_int8.why_not() is not None, reason="no int8 instructions on this CPU")
def test_int8_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    options = ("--backend", "int8", "--device", "cpu")
    assert info(folder, *options)["backend"] == {
        "name": "int8",
        "device": "cpu",
        "dtype": "float32",
        "computed_in": "float32",
        "reason": "requested",
    }
    code, out, err = run_cli("info", str(folder), *options)
    assert (code, err) == (0, "")
    assert "backend      int8 on cpu in float32: requested\n" in out


def test_rare_lines(tmp_path: Path) -> None:
    """Wording of rare cases: shards, partial rotation, a default prompt."""
    folder = build_checkpoint(
        tmp_path, "nomic-v1.5", weights="sharded", num_hidden_layers=1, rotary_emb_fraction=0.5
    )
    settings = {"prompts": {"topic": "about:\n"}, "default_prompt_name": "topic"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    out = run_cli("info", str(folder))[1]
    assert "safetensors in 2 files, float32" in out
    assert "rotary on 8 dimensions, theta 1000" in out
    assert 'topic = "about:\\n" (default, encode_query, encode_document)\n' in out


@pytest.mark.parametrize(
    ("stated", "kind", "shown"),
    [("gelu_fast", "gelu_pytorch_tanh", "GELU by tanh"), ("relu", "relu", "ReLU")],
)
def test_another_activation(stated: str, kind: str, shown: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1, hidden_act=stated)
    assert f"MLP          {shown}" in run_cli("info", str(tmp_path))[1].splitlines()
    assert info(tmp_path)["mlp"]["kind"] == kind
    assert set(MLPS) == set(get_args(HiddenAct))
