"""`nomicbert verify`: table, document, exit codes, and the detection of planted faults."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import Embedder
from nomicbert.errors import to_install
from nomicbert.user_warnings import WeightWarning
from nomicbert.verify import references, speed
from nomicbert_kernels import backend as kernels
from nomicbert_kernels import capabilities
from nomicbert_kernels.linear_torch import onednn_packs
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.command_line import ROOT, one_line, run_cli

TINY: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 1}
# one model of ours, and the smallest reference that gives a verdict
QUICK = ("--device", "cpu", "--dtype", "float32", "--backend", "torch", "--local-files-only")


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timing round: no test depends on speed."""
    monkeypatch.setattr(speed, "ROUNDS", 1)


def build(folder: Path, variant: str = "nomic-v1.5") -> Path:
    more = {"dialect": "both"} if variant == "nomic-v1.5" else {}
    build_checkpoint(folder, variant, **TINY, **more)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return folder


def verify(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """The JSON document of a run that must end with this code and print nothing else."""
    found, out, err = run_cli("verify", str(folder), *QUICK, "--json", "-", *options)
    assert (found, err) == (code, ""), out + err
    document: dict[str, Any] = json.loads(out)
    return document


def broken(document: dict[str, Any]) -> set[str]:
    return {row["check"] for row in document["rows"] if row["holds"] is False}


def edit_tensor(file: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(file)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, {"format": "pt"})


def test_the_table(tmp_path: Path) -> None:
    folder = build(tmp_path)
    code, out, err = run_cli("verify", str(folder), *QUICK)
    assert (code, err) == (0, "")
    table, facts = out.split("\n\n")
    header, *lines = table.splitlines()
    assert header.split() == ["row", "what", "found", "bound", "verdict"]
    firsts = [line for line in lines if not line.startswith(" ")]
    checks = ["tensors", "hidden", "hidden", "embedding", *["matryoshka"] * 3, "invariance"]
    assert [line.split()[0] for line in firsts] == [*checks, "speed"]
    assert all(line.endswith("holds") for line in firsts[:-1])
    assert firsts[-1].endswith("-")
    assert [line.split()[1:3] for line in firsts[1:]] == [["fp32", "torch"]] * 8
    assert max(map(len, table.splitlines())) <= 80
    assert "all 8 bounds hold" in facts
    for name in ("NomicBertModel", "sentence-transformers", "nomicbert", "torch"):
        assert name in facts


def test_the_document_in_a_file(tmp_path: Path) -> None:
    folder, path = build(tmp_path / "model"), tmp_path / "report.json"
    code, out, _ = run_cli("verify", str(folder), *QUICK, "--json", str(path))
    assert code == 0
    assert "all 8 bounds hold" in out
    document = json.loads(path.read_text())
    assert document["holds"] is True
    assert (document["judged"], document["broken"]) == (8, 0)
    assert document["model"] == document["against"] == str(folder)
    assert document["versions"]["torch"] == torch.__version__
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert document["machine"]["cpu"]
    fields = [name for name in document if not isinstance(document[name], dict | list)]
    fields += ["notes", *(f"versions.{name}" for name in document["versions"])]
    fields += [f"machine.{name}" for name in document["machine"]]
    fields += [f"rows.{name}" for name in document["rows"][0]]
    page = (ROOT / "docs/verify.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\w[\w.-]*)` \|", page, re.M)) == sorted(fields)


def test_options_are_documented() -> None:
    page = (ROOT / "docs/verify.md").read_text("utf-8")
    _, out, _ = run_cli("verify", "--help")
    options = set(re.findall(r"^  (--[a-z-]+)", out, re.M))
    assert {"--against", "--dtype", "--backend", "--json"} <= options
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", page, re.M))


def swap(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant a fault in the torch backend: an op that calls the real one with wrong arguments."""
    right = getattr(kernels.TORCH, name)

    def swiglu(x: Any, weight: Any, *rest: Any) -> Any:
        halves = weight.source.chunk(2)
        other = kernels.TORCH.prepare(torch.cat(halves[::-1]), weight.bias, "gated")
        return right(x, other, *rest)

    def layer_norm(x: Any, weight: Any, bias: Any, eps: float, *rest: Any) -> Any:
        return right(x, weight, bias, eps + 1e-3, *rest)

    def pool(hidden: Any, *rest: Any) -> Any:
        return right(hidden, *rest[:2], "cls", *rest[3:])

    def qkv_rotary(x: Any, weight: Any, rope: Any, *rest: Any) -> Any:
        return right(x, weight, dataclasses.replace(rope, cos=rope.cos.roll(1, 0)), *rest)

    wrong = {"swiglu": swiglu, "layer_norm": layer_norm, "pool": pool, "qkv_rotary": qkv_rotary}

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(kernels, "TORCH", kernels.TORCH.replaced(**{name: wrong[name]}))

    return plant


FAULTS = {
    "swiglu": {"hidden", "embedding", "matryoshka"},  # gate and up swapped
    "layer_norm": {"hidden", "embedding", "matryoshka"},  # another epsilon
    "qkv_rotary": {"hidden", "embedding", "matryoshka"},  # angles of the previous position
    "pool": {"embedding", "matryoshka"},  # another mode
}


@pytest.mark.parametrize("op", FAULTS)
def test_a_planted_fault_breaks_bounds(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap(op)(monkeypatch)
    document = verify(build(tmp_path), code=1)
    assert broken(document) == FAULTS[op]
    assert document["holds"] is False
    bad = [row for row in document["rows"] if row["holds"] is False]
    assert all(row["value"] > 10 * row["bound"] for row in bad)


def test_a_vector_that_depends_on_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By less than the bound of vectors: only the bitwise comparison detects it."""
    right = Embedder.encode

    def encode(self: Embedder, inputs: Any, **keywords: Any) -> Any:
        return right(self, inputs, **keywords) * (1 + 1e-7 * (len(inputs) > 1))

    monkeypatch.setattr(Embedder, "encode", encode)
    assert broken(verify(build(tmp_path), code=1)) == {"invariance"}


@pytest.mark.skipif(not onednn_packs(torch.float32), reason="without oneDNN it is no promise")
def test_a_broken_promise_names_op_dtype_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kernels.TORCH.attention

    def attention(qkv: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
        fault = torch.get_num_threads() == 2 and qkv.shape[0] > 100
        return right(qkv, *args, **keywords) * (1 + 2e-7 * fault)

    monkeypatch.setattr(kernels, "TORCH", kernels.TORCH.replaced(attention=attention))
    folder = build(tmp_path)
    code, out, _ = run_cli("verify", str(folder), *QUICK)
    assert code == 1
    (line,) = (line for line in out.splitlines() if line.startswith("invariance"))
    assert line.split()[1:6] == ["fp32", "torch", "attention,", "2", "threads"]
    assert line.endswith("BROKEN")
    assert out.endswith("1 of 8 bounds are BROKEN\n")


def copy_of(folder: Path) -> Path:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    return copy


def theta_changed(copy: Path) -> None:
    edit_config(
        copy, rotary_emb_base=1010, rope_parameters={"rope_theta": 1010.0, "rope_type": "default"}
    )


def bias_zeroed(copy: Path) -> None:
    name = "encoder.layer.0.output.dense.bias"
    edit_tensor(copy / "model.safetensors", name, torch.zeros_like)


def dense_altered(copy: Path) -> None:
    path = copy / "2_Dense" / "model.safetensors"
    edit_tensor(path, "linear.weight", lambda weight: weight.roll(1, 0))


@pytest.mark.parametrize(
    ("variant", "damage", "rows"),
    [
        ("nomic-v1.5", theta_changed, {"hidden", "embedding", "matryoshka"}),
        ("conan-v1", bias_zeroed, {"hidden", "embedding"}),
        ("conan-v1", dense_altered, {"embedding"}),
    ],
)
def test_a_copy_that_differs(
    variant: str, damage: Callable[[Path], None], rows: set[str], tmp_path: Path
) -> None:
    folder = build(tmp_path / "sound", variant)
    copy = copy_of(folder)
    damage(copy)
    document = verify(copy, "--against", str(folder), code=1)
    assert broken(document) == rows
    assert document["against"] == str(folder)
    # each checkpoint is valid by itself
    assert broken(verify(copy)) == set()


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1"])
def test_a_copy_that_does_not_differ(variant: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "sound", variant)
    assert broken(verify(copy_of(folder), "--against", str(folder))) == set()


def test_the_same_weights_in_another_layout(tmp_path: Path) -> None:
    """Settings that transformers cannot read, compared with an equal checkpoint that it can."""
    folder = build_checkpoint(tmp_path / "legacy", "nomic-v1.5", dialect="legacy", **TINY)
    twin = build(tmp_path / "both")
    shutil.copy(twin / "sentence_bert_config.json", folder)
    document = verify(folder, "--against", str(twin))
    assert document["reference"].endswith("NomicBertModel")
    assert document["reason"] is None


def test_nan_in_a_tensor(tmp_path: Path) -> None:
    """NaN on both sides does not count as agreement. The loader warns once."""
    folder = build(tmp_path, "conan-v1")

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0] = torch.nan
        return tensor

    edit_tensor(folder / "model.safetensors", "encoder.layer.0.output.dense.bias", spoil)
    with warnings.catch_warnings():
        warnings.simplefilter("always", WeightWarning)
        code, out, err = run_cli("verify", str(folder), *QUICK, "--json", "-")
    document = json.loads(out)
    assert code == 1
    assert broken(document) == {"hidden", "embedding", "invariance"}
    assert "NaN or infinite" in one_line(err)
    hidden = next(row for row in document["rows"] if row["check"] == "hidden")
    assert (hidden["value"], hidden["layers"]) == (None, [pytest.approx(0, abs=1e-5), None])


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def contradicting(folder: Path) -> None:
    edit_config(folder, rotary_emb_base=2000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "model.safetensors is not a valid safetensors file"),
        (contradicting, "rotary_emb_base = 2000 but rope_parameters.rope_theta = 1000"),
    ],
)
def test_what_loading_refuses(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = build(tmp_path)
    damage(folder)
    code, out, err = run_cli("verify", str(folder), *QUICK)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text("{}")
    code, out, err = run_cli("verify", str(tmp_path))
    assert (code, out) == (2, "")
    assert one_line(err).endswith(f"transformers: {to_install('verify')}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--dtype", "float64"], "float64"),
        (["--backend", "auto"], "auto"),
        (["--backend", "int8"], "int8"),
        (["--json", "no/such/folder/report.json"], "no/such/folder does not exist"),
        (["--against", "no/such/folder/"], "no/such/folder"),
    ],
)
def test_wrong_arguments(options: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = run_cli("verify", str(build(tmp_path)), "--device", "cpu", *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_backend_that_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error if it is requested by name, a note otherwise."""
    monkeypatch.setattr(capabilities, "interprets", lambda: False)
    folder = build(tmp_path)
    options = ("--device", "cpu", "--dtype", "float32")
    code, out, err = run_cli("verify", str(folder), *options, "--backend", "triton")
    assert (code, out) == (2, "")
    assert "backend 'triton' cannot run here" in one_line(err)
    code, out, err = run_cli("verify", str(folder), *options, "--json", "-")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert {row["backend"] for row in document["rows"]} == {None, "reference", "torch"}
    assert any("backend 'triton' cannot run here" in note for note in document["notes"])
