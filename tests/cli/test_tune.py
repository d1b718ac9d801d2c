"""`nomicbert tune`: its arguments, its output, and the table it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import NomicBert
from nomicbert.cli import tune
from nomicbert_kernels import launch
from nomicbert_kernels.tuning import problems as measured
from nomicbert_kernels.tuning import tables, timing
from nomicbert_kernels.tuning.problems import KERNELS, problems
from tests.interpreter import fp8
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.command_line import ROOT, one_line, run_cli

CPU = torch.device("cpu")
# Kernels that are not tuned: the router is small, attention_backward is for training only.
NOT_TUNED = {"route", "attention_backward"}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "launch"))
    launch.table.cache_clear()
    yield tmp_path / "launch"
    launch.table.cache_clear()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(build_checkpoint(tmp_path / "tiny", "nomic-v1.5", num_hidden_layers=1))


class Device:
    """The interpreter in place of a GPU, with invented times: later ones are faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured = 0
        self.fails: BaseException | None = None
        monkeypatch.setattr(tune, "_measurable", lambda device: True)
        monkeypatch.setattr(timing, "gpu_timer", lambda device: self)
        monkeypatch.setattr(measured, "LIMITS", (4,))
        monkeypatch.setattr(measured, "LARGE", 8)

    def __call__(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        self.measured += 1
        if self.fails:
            raise self.fails
        return [[20.0 - 2 * (place == len(calls) - 2)] * rounds for place in range(len(calls))]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    pytest.importorskip("triton", minversion="3.6")
    return Device(monkeypatch)


SWIGLU = ("--kernel", "swiglu", "--dtype", "float32", "--quick")


def test_it_needs_a_gpu(folder: Path) -> None:
    """Triton's interpreter runs the kernels, but its times are meaningless."""
    code, out, err = run_cli("tune", "--device", "cpu")
    assert (code, out) == (2, "")
    assert "needs a CUDA device, not cpu" in one_line(err)
    assert "--dry-run" in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--kernel", "softmax"], "softmax"),
        (["--dtype", "float64"], "float64"),
        (["--dry-run", "no/such/folder/at/all"], "no/such/folder"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    code, out, err = run_cli("tune", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_the_names_of_kernels_and_dtypes() -> None:
    assert tuple(name.value for name in tune.KernelName) == KERNELS
    assert {getattr(torch, name.value).itemsize for name in tune.TunedDtype} == {2, 4}


def test_dry_run_without_a_gpu(checkpoint: str, folder: Path) -> None:
    code, out, err = run_cli("tune", checkpoint, "--dry-run", "--device", "cpu")
    assert code == 0
    assert "no GPU here" in one_line(err)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["kernel", "shape", "rows", "candidates"]
    assert {line[0] for line in lines[1:]} == {
        "qkv_rotary",
        "swiglu",
        "linear",
        "attention_short",
        "attention_long",
        "attention_rows",
    }
    assert {line[-1] for line in lines[1:]} == {"?"}
    assert not folder.exists()
    code, out, _ = run_cli("tune", checkpoint, "--dry-run", "--device", "cpu", "--json")
    plan = json.loads(out)
    assert (plan["architecture"], plan["path"]) == (None, None)
    assert len(plan["problems"]) == len(lines) - 1


def test_dry_run_with_one(checkpoint: str, folder: Path, device: Device) -> None:
    code, out, err = run_cli("tune", checkpoint, "--dry-run", "--json", *SWIGLU)
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["architecture"] == "interpreter"
    assert plan["path"] == str(folder / "interpreter.json")
    assert [(p["up_to_rows"], p["rows"]) for p in plan["problems"]] == [(4, 4), (None, 8)]
    assert all(0 < p["candidates"] < 20 for p in plan["problems"])
    code, out, err = run_cli("tune", checkpoint, "--dry-run", *SWIGLU)
    assert str(folder / "interpreter.json") in one_line(err)
    assert str(plan["problems"][0]["candidates"]) in out.splitlines()[1]
    assert not device.measured
    assert not folder.exists()


def test_the_leading_shapes_without_a_model() -> None:
    code, out, _ = run_cli("tune", "--dry-run", "--device", "cpu")
    assert code == 0
    for shape in ("3072 x 768", "4096 x 1024", "1536 x 384", "heads of 64", "heads of 32"):
        assert shape in out
    assert {line.split()[0].split("_")[0] for line in out.splitlines()[1:]} == {
        name.split("_")[0] for name in KERNELS
    }


def test_a_table_is_written_and_read_first(checkpoint: str, folder: Path, device: Device) -> None:
    code, out, err = run_cli("tune", checkpoint, *SWIGLU)
    assert code == 0
    header, *lines = out.splitlines()
    assert header.split() == ["kernel", "shape", "rows", "shipped", "us", "tuned", "us", "ratio"]
    assert [line.split()[-3:] for line in lines] == [["20.0", "18.0", "1.11"]] * 2
    assert max(map(len, out.splitlines())) <= 80
    assert "2 of 2 settings are replaced" in one_line(err)
    path = folder / "interpreter.json"
    assert str(path) in err
    stored = json.loads(path.read_text())
    assert set(stored) == {"written_by", "written_at", "device", "torch", "triton", "rows"}
    first, last = stored["rows"]
    assert (first["up_to"], last.get("up_to")) == ({"rows": 4}, None)
    sizes = first["exactly"]
    for rows, row in ((4, first), (5, last)):
        found = launch.settings("swiglu", CPU, torch.float32, rows=rows, **sizes)
        assert {name: row[name] for name in found.fields} == found.fields
    model = NomicBert.from_pretrained(checkpoint, backend="triton")
    plain = NomicBert.from_pretrained(checkpoint, backend="reference")
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        got, want = (m(ids).last_hidden_state for m in (model.eval(), plain.eval()))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_json_is_documented(checkpoint: str, folder: Path, device: Device) -> None:
    code, out, _ = run_cli("tune", checkpoint, *SWIGLU, "--json")
    assert code == 0
    document = json.loads(out)
    fields = [name for name in document if name != "results"]
    fields += [f"results.{name}" for name in document["results"][0]]
    page = (ROOT / "docs/tune.md").read_text("utf-8")
    documented = re.findall(r"^\| `([\w.]+)` \|", page, re.M)
    # each kernel has its own sizes
    sizes = {"results.n", "results.k", "results.head_dim"}
    assert set(documented) - sizes == set(fields) - sizes
    assert sizes <= set(documented)
    assert document["path"] == str(folder / "interpreter.json")


def test_options_are_documented() -> None:
    page = (ROOT / "docs/tune.md").read_text("utf-8")
    _, out, _ = run_cli("tune", "--help")
    options = set(re.findall(r"^  (--[a-z-]+)", out, re.M))
    assert {"--kernel", "--quick", "--dry-run", "--json"} <= options
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", page, re.M))


def test_a_second_run_replaces_and_keeps(checkpoint: str, folder: Path, device: Device) -> None:
    assert run_cli("tune", checkpoint, *SWIGLU)[0] == 0
    swiglu = json.loads((folder / "interpreter.json").read_text())["rows"]
    run_cli("tune", checkpoint, "--kernel", "linear", "--dtype", "float32", "--quick")
    rows = json.loads((folder / "interpreter.json").read_text())["rows"]
    assert [row for row in rows if row["kernel"] == "swiglu"] == swiglu
    assert {row["kernel"] for row in rows} == {"swiglu", "linear"}


def test_wrong_candidates_are_reported(
    checkpoint: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nomicbert_kernels import swiglu_triton

    right = swiglu_triton.forward

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        s = launch.settings(
            "swiglu", x.device, x.dtype, rows=len(x), n=weight.shape[0] // 2, k=weight.shape[1]
        )
        return right(x, weight, bias) * (2 if s["BLOCK_M"] == 16 else 1)

    monkeypatch.setattr(swiglu_triton, "forward", forward)
    code, _, err = run_cli("tune", checkpoint, *SWIGLU)
    assert code == 0
    wrong = [line for line in err.splitlines() if "wrong values, rejected: swiglu" in line]
    assert wrong
    assert all("BLOCK_M=16" in line for line in wrong)


def test_an_unwritable_folder_is_reported_first(
    checkpoint: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "file"))
    code, out, err = run_cli("tune", checkpoint, *SWIGLU)
    assert (code, out) == (1, "")
    assert "NOMICBERT_LAUNCH" in one_line(err)
    assert str(tmp_path / "file") in err
    assert not device.measured


def test_a_broken_table_is_reported_first(checkpoint: str, folder: Path, device: Device) -> None:
    folder.mkdir()
    (folder / "interpreter.json").write_text("{")
    code, out, err = run_cli("tune", checkpoint, *SWIGLU)
    assert (code, out) == (2, "")
    assert str(folder / "interpreter.json") in one_line(err)
    assert not device.measured


def test_an_interrupted_run_keeps_the_old_table(
    checkpoint: str, folder: Path, device: Device
) -> None:
    assert run_cli("tune", checkpoint, *SWIGLU)[0] == 0
    old = (folder / "interpreter.json").read_bytes()
    device.fails = SystemExit(130)
    assert run_cli("tune", checkpoint, *SWIGLU)[0] == 130
    assert (folder / "interpreter.json").read_bytes() == old
    assert len([*folder.iterdir()]) == 1


def test_rows_of_e4m3(
    checkpoint: str, folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of backend "fp8", apart from those of the hidden states."""
    code, out, _ = run_cli("tune", checkpoint, "--fp8", "--dry-run", "--json")
    assert code == 0
    kernels = {problem["kernel"] for problem in json.loads(out)["problems"]}
    assert kernels == {"qkv_rotary", "swiglu", "linear"}
    fp8.install()
    half = ("--kernel", "swiglu", "--dtype", "float16", "--quick")
    code, out, err = run_cli("tune", checkpoint, "--fp8", "--json", *half)
    assert code == 0, err
    document = json.loads(out)
    assert (document["backend"], document["dtype"]) == ("fp8", "float16")
    rows = json.loads((folder / "interpreter.json").read_text())["rows"]
    assert {(row["kernel"], row["bytes"]) for row in rows} == {("swiglu", 1)}
    code, _, err = run_cli("tune", checkpoint, "--fp8", "--kernel", "attention", "--dry-run")
    assert code == 2
    assert "backend 'fp8'" in one_line(err)
    code, _, err = run_cli("tune", checkpoint, "--fp8", "--dtype", "float32", "--dry-run")
    assert code == 2
    assert "not --dtype float32: use bfloat16 or float16" in one_line(err)


def test_e4m3_without_rows(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_measurable", lambda device: True)
    monkeypatch.setattr(launch, "architecture", lambda device: "gfx942")
    code, _, err = run_cli("tune", checkpoint, "--fp8", "--dry-run")
    assert code == 2
    assert "the launch table of gfx942 has no rows for elements of 1 bytes" in one_line(err)


def test_a_model_without_the_kernel(checkpoint: str) -> None:
    code, _, err = run_cli("tune", checkpoint, "--dry-run", "--device", "cpu", "--kernel", "gelu")
    assert code == 2
    assert "none of these kernels: gelu" in one_line(err)


@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "minilm", "relu", "interleaved"])
def test_problems_are_the_look_ups_of_a_model(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problems are exactly the settings that a forward pass looks up."""
    pytest.importorskip("triton", minversion="3.6")
    built = {"interleaved": "nomic-v1.5", "relu": "minilm"}.get(variant, variant)
    place = build_checkpoint(tmp_path / variant, built, num_hidden_layers=2)
    if variant == "interleaved":
        edit_config(place, rotary_emb_interleaved=True)
    if variant == "relu":
        edit_config(place, hidden_act="relu")
    asked: set[tuple[Any, ...]] = set()
    look_up = launch.settings

    def settings(kernel: str, *args: Any, **sizes: int) -> launch.Settings:
        if kernel not in NOT_TUNED:
            asked.add((kernel, *(v for name, v in sizes.items() if name != "rows")))
        return look_up(kernel, *args, **sizes)

    monkeypatch.setattr(launch, "settings", settings)
    model = NomicBert.from_pretrained(place, backend="triton").eval()
    with torch.no_grad():
        model(torch.arange(3, 9)[None])
    shipped = tables.shipped_rows(launch.INTERPRETER, 4)
    found = problems([tune._read_model(str(place), None, True)], KERNELS, shipped)
    listed = {(p.kernel, *p.exactly.values()) for p in found}
    # learnt from other texts, or from pooling; angles of another kind have no kernel to set
    other = {key for key in listed if key[0] in ("attention_long", "attention_rows")}
    unfused = {key for key in asked if variant == "interleaved" and key[0] == "qkv_rotary"}
    assert asked - unfused - other == listed - other
