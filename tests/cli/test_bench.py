"""`nomicbert bench`: table and lines on a tiny checkpoint, absent peers, wrong arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.benchmark import group, onnx_peers, torch_peers
from nomicbert.benchmark.workloads import NAMES
from nomicbert.errors import BackendError
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import ROOT, one_line, run_cli

QUICK = ("--quick", "--tokens", "48", "--device", "cpu", "--local-files-only")
EXPORTED = ("onnxruntime", "openvino", "ctranslate2")
WITH_TEXTS = ("light_embed", "infinity_emb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("bench"), "conan-v1", num_hidden_layers=1)


@pytest.fixture(autouse=True)
def without_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide these libraries, so that the tests run alike with and without them."""

    def hide(find: Callable[..., Any]) -> Callable[..., Any]:
        return lambda name: None if name in EXPORTED + WITH_TEXTS else find(name)

    monkeypatch.setattr(onnx_peers, "find_spec", hide(find_spec))


def lines_of(*args: str, said: str = "") -> dict[tuple[str, str, str], dict[str, Any]]:
    code, out, err = run_cli("bench", *args, *QUICK, "--json", "-")
    assert (code, err) == (0, said), err
    found = [json.loads(line) for line in out.splitlines()]
    return {(line["case"], line["peer"], line["dtype"]): line for line in found}


def test_lines(folder: Path) -> None:
    cases = ("--case", "fixed-16", "--case", "latency-16", "--case", "fixed-2048")
    said = "nomicbert: fixed-2048 is left out: this checkpoint takes at most 512 tokens per text\n"
    lines = lines_of(str(folder), *cases, "--dtype", "float32", "--rounds", "2", said=said)
    measured = {key for key, line in lines.items() if line["status"] == "measured"}
    peers = ("ours", "ours-texts", "transformers", "transformers-32", "sentence-transformers")
    cases = ("fixed-16", "latency-16")
    assert measured == {(case, peer, "float32") for case in cases for peer in peers}
    for key in measured:
        assert lines[key]["cosine_min"] > 0.99999
        assert lines[key]["reference"] == "transformers-32 float32"
        assert lines[key]["from_texts"] == (key[1] in ("ours-texts", "sentence-transformers"))
    ours = lines["fixed-16", "ours", "float32"]
    assert (ours["tokens"], ours["texts"], len(ours["seconds"])) == (48, 3, 2)
    assert ours["versions"]["torch"] == torch.__version__
    assert ours["machine"]["threads"] == torch.get_num_threads()
    for library in EXPORTED + WITH_TEXTS:
        peer = library.replace("_", "-")
        line = lines["fixed-16", peer, "float32"]
        assert (line["status"], line["reason"]) == ("absent", f"{peer} is not installed")
    fields = {name for line in lines.values() for name in line}
    page = (ROOT / "docs/bench.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == fields | {"peak_bytes", "work_bytes"}


def test_the_table(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    code, out, err = run_cli(
        "bench", str(folder), *QUICK, "--case", "queries", "--peer", "transformers",
        "--peer", "onnxruntime", "--dtype", "bfloat16", "--dtype", "int8", "--json", str(path),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    first = [row.split()[:2] for row in out.splitlines() if "own" in row or "0%" in row]
    assert ["ours", "bfloat16"] in first
    assert ["transformers", "bfloat16"] in first
    rate = next(row.split()[4] for row in out.splitlines() if row.startswith("ours bfloat16 "))
    (line,) = [x for x in map(json.loads, path.read_text().splitlines())
               if (x["peer"], x["dtype"]) == ("ours", "bfloat16")]  # fmt: skip
    hourly = line["texts_per_second"] * 3600 / line["machine"]["threads"]
    assert rate == f"{hourly:,.0f}"
    assert re.search(r"ours bfloat16: \d+\.\d\d x the best peer, transformers; tokenise", out)
    left_out = out.split("left out:\n")[1]
    assert "  onnxruntime int8: onnxruntime is not installed\n" in left_out
    assert {json.loads(line)["case"] for line in path.read_text().splitlines()} == {"queries"}


def test_lines_are_written_after_each_case(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later case may be interrupted: file and tables have the cases measured before."""
    right = group.Group._case

    def until_latency(self: Any, case: Any, step: Any) -> Any:
        if case.is_latency:
            raise OSError("the machine is gone")
        return right(self, case, step)

    monkeypatch.setattr(group.Group, "_case", until_latency)
    path = tmp_path / "lines.jsonl"
    path.write_text("of an older run\n")
    words = ["bench", str(folder), *QUICK, "--dtype", "float32", "--peer", "transformers-32"]
    words += ["--case", "fixed-16", "--case", "latency-16", "--json"]
    code, out, err = run_cli(*words, str(path))
    assert (code, err) == (1, "nomicbert: the machine is gone\n")
    peers = ["ours", "ours-texts", "transformers-32"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["case"], x["peer"]) for x in lines] == [("fixed-16", peer) for peer in peers]
    assert out.startswith("fixed-16: 3 texts, 48 tokens\n")
    code, out, err = run_cli(*words, "-")
    assert code == 1
    assert [json.loads(line)["peer"] for line in out.splitlines()] == peers


def test_nothing_measured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("of an older run\n")
    words = ("bench", str(folder), *QUICK, "--dtype", "float32", "--json", str(path))
    code, out, err = run_cli(*words, "--case", "fixed-2048")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "nomicbert: fixed-2048 is left out: this checkpoint takes at most 512 tokens per text",
        "nomicbert: nothing was measured: every case is left out",
    ]
    assert path.read_text() == "of an older run\n"

    def refuse(*_: Any, **__: Any) -> Any:
        raise BackendError("not on this machine")

    monkeypatch.setattr(Embedder, "from_pretrained", refuse)
    monkeypatch.setattr(group.Group, "_truth", lambda *_: ("nobody", np.zeros((3, 2))))
    code, out, err = run_cli(*words, "--case", "fixed-16", "--peer", "onnxruntime")
    assert (code, err) == (1, "nomicbert: nothing was measured: no library could take part\n")
    assert out.startswith("left out:\n  ours float32: not on this machine\n")
    assert {json.loads(line)["status"] for line in path.read_text().splitlines()} == {"absent"}


def test_limits_of_a_few_tokens(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    limit = {"max_seq_length": 2, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limit))
    code, out, err = run_cli("bench", str(folder), *QUICK, *(f"--case={name}" for name in NAMES))
    assert (code, out) == (1, "")
    said = " is left out: this checkpoint takes at most 2 tokens per text\n"
    assert err.count(said) == len(NAMES)


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ours take part, and are their own reference."""
    monkeypatch.setattr("nomicbert.benchmark.sentence.find_spec", lambda name: None)
    monkeypatch.setattr(torch_peers, "find_spec", lambda name: None)
    lines = lines_of(str(folder), "--case", "fixed-16", "--dtype", "bfloat16")
    measured = {key[1] for key, line in lines.items() if line["status"] == "measured"}
    assert measured == {"ours", "ours-texts"}
    assert lines["fixed-16", "ours", "bfloat16"]["reference"] == "ours float32"
    reason = lines["fixed-16", "transformers", "bfloat16"]["reason"]
    assert reason == "transformers is not installed"
    reason = lines["fixed-16", "sentence-transformers", "bfloat16"]["reason"]
    assert reason == "sentence-transformers is not installed"


def test_checkpoint_that_transformers_cannot_read(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, dialect="legacy")
    lines = lines_of(str(folder), "--case", "fixed-16", "--dtype", "float32")
    assert lines["fixed-16", "ours", "float32"]["status"] == "measured"
    line = lines["fixed-16", "transformers", "float32"]
    assert line["status"] == "absent"
    assert line["reason"].startswith("transformers misreads its config.json")


def test_default_cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short passages, chunks of 512 tokens and one text at a time; as the page says."""
    asked: list[str] = []

    def record(checkpoint: Any, options: Any, step: Any) -> Any:
        asked.extend(options.cases)
        return iter(())

    monkeypatch.setattr("nomicbert.benchmark.run.run", record)
    run_cli("bench", str(folder), *QUICK)
    assert asked == ["passages", "fixed-512", "latency-8", "latency-32", "latency-128"]
    said = f"The cases are {', '.join(asked[:-1])} and {asked[-1]} by default."
    assert said in " ".join((ROOT / "docs/bench.md").read_text("utf-8").split())
    assert f"Default: {', '.join(asked)}." in " ".join(run_cli("bench", "--help")[1].split())


def test_options_are_documented() -> None:
    page = (ROOT / "docs/bench.md").read_text("utf-8")
    _, out, _ = run_cli("bench", "--help")
    options = set(re.findall(r"^  (--[a-z-]+)", out, re.M))
    assert {"--case", "--peer", "--tokens", "--quick", "--json"} <= options
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", page, re.M))
    assert all(name in page for name in NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "fixed-17"], "unknown case 'fixed-17'"),
        (["--dtype", "float64"], "unknown dtype 'float64'"),
        (["--dtype", "float16"], "no peer supports float16 on cpu"),
        (["--peer", "abacus"], "unknown peer 'abacus'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--json", "no/such/folder/lines.jsonl"], "no/such/folder does not exist"),
        (["--json", "/"], "the output / is a folder"),
    ],
)
def test_wrong_arguments(options: list[str], message: str, folder: Path) -> None:
    code, out, err = run_cli("bench", str(folder), *QUICK, *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_threads_are_restored(folder: Path) -> None:
    before = torch.get_num_threads()
    lines = lines_of(
        str(folder), "--case", "latency-16", "--dtype", "float32", "--peer", "transformers",
        "--threads", str(before + 1),
    )  # fmt: skip
    assert torch.get_num_threads() == before
    assert lines["latency-16", "ours", "float32"]["machine"]["threads"] == before + 1
