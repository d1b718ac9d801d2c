"""`nomicbert export`: table, document, exit codes and messages, as users type it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomicbert import Embedder
from nomicbert.errors import to_install
from nomicbert.export import check, encoder, graph, run
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import environment, one_line, run_cli, run_python
from tests.support.fake_hub import FakeHub, Repository
from tests.support.onnx_batches import open_session
from tests.support.rerankers import build_reranker


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONGEST", 32)
    monkeypatch.setattr(check, "TEXTS", check.TEXTS[:3])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("m") / "m", "minilm", num_hidden_layers=1)


def test_table(model: Path, tmp_path: Path) -> None:
    """A row per output: the file once, what was found, and its bound."""
    output = tmp_path / "onnx"
    code, out, err = run_cli("export", str(model), "-o", str(output), "--dtype", "fp32, fp16,q8")
    assert (code, err) == (0, "")
    header, *rows, empty, task, name = out.splitlines()
    assert header.split() == ["file", "MB", "output", "found", "bound"]
    found = [row.split() for row in rows]
    assert [row[:-3] for row in found] == [
        ["onnx/model.onnx", "0.4", "last_hidden_state"],
        ["sentence_embedding"],
        ["onnx/model_fp16.onnx", "0.2", "last_hidden_state"],
        ["sentence_embedding"],
        ["onnx/model_quantized.onnx", "0.2", "last_hidden_state"],
        ["sentence_embedding"],
    ]
    assert [row[-2:] for row in found] == [
        ["<=", "1e-05"],
        ["<=", "1e-05"],
        [">=", "0.9999"],
        [">=", "0.9999"],
        [">=", "0.98"],
        [">=", "0.98"],
    ]
    assert 0 < float(found[0][-3]) < 1e-5
    assert 0.98 < float(found[5][-3]) < float(found[3][-3]) <= 1
    assert (empty, task) == ("", f"feature-extraction in {output}")
    assert name.endswith(Embedder(model).fingerprint(prompt=""))
    assert len({len(row) for row in [header, *rows]}) == 1


def test_document(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "onnx"
    code, out, err = run_cli("export", str(model), "--output", str(output), "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    record = json.loads((output / "nomicbert_export.json").read_text())
    assert document["folder"] == str(output)
    for key in ("task", "fingerprint", "files"):
        assert document[key] == record[key]
    [file] = document["files"]
    assert [one["output"] for one in file["differences"]] == [
        "last_hidden_state",
        "sentence_embedding",
    ]


def test_a_reranker(tmp_path: Path) -> None:
    """Its logits, which have no fingerprint."""
    folder = build_reranker(tmp_path / "model")
    code, out, err = run_cli("export", str(folder), "-o", str(tmp_path / "onnx"), "--dtype", "q8")
    assert (code, err) == (0, "")
    assert "logits" in out
    assert "fingerprint" not in out
    assert f"text-classification in {tmp_path / 'onnx'}" in out


@pytest.mark.filterwarnings("default::nomicbert.user_warnings.PoolingWarning")
def test_choices_of_the_user(tmp_path: Path) -> None:
    """--task, --pooling and --rotary-scaling-factor; an assumption is one line on stderr."""
    folder = build_checkpoint(tmp_path / "model", "nomic-bert-2048", num_hidden_layers=1)
    where = str(tmp_path / "onnx")
    code, out, err = run_cli("export", str(folder), "-o", where, "--task", "fill-mask")
    assert (code, err) == (0, "")
    assert "fill-mask in" in out
    line = ("export", str(folder), "-o", where, "--overwrite")
    code, _, err = run_cli(*line)
    assert code == 0
    assert "its vectors are assumed to be plain means" in one_line(err)
    code, _, err = run_cli(*line, "--pooling", "cls", "--rotary-scaling-factor", "2.5")
    assert (code, err) == (0, "")
    pooling = json.loads((tmp_path / "onnx/1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_cls_token"] is True
    config = json.loads((tmp_path / "onnx/config.json").read_text())
    assert config["rotary_scaling_factor"] == 2.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int8"], "dtypes (--dtype) must be a list of fp32, fp16, q8, not ['int8']"),
        (["--dtype", "fp32;q8"], "not ['fp32;q8']"),
        (["--dtype", ""], "not []"),
        (["--task", "translation"], "'translation' is not one of 'auto', 'feature-extraction'"),
        (["--task", "fill-mask"], "has no head for MaskedLM (it has none)"),
        (["--pooling", "median"], "median"),
        (["--rotary-scaling-factor", "-1"], "Invalid value for '--rotary-scaling-factor'"),
        (["--revision", "v2", "--quick"], "No such option"),
    ],
)
def test_wrong_options(options: list[str], message: str, model: Path, tmp_path: Path) -> None:
    code, out, err = run_cli("export", str(model), "-o", str(tmp_path / "onnx"), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_without_an_output(model: Path) -> None:
    code, out, err = run_cli("export", str(model))
    assert (code, out) == (2, "")
    assert "Missing option '--output' / '-o'" in err


def test_an_existing_folder(model: Path, tmp_path: Path) -> None:
    line = ("export", str(model), "-o", str(tmp_path / "onnx"))
    assert run_cli(*line)[0] == 0
    code, out, err = run_cli(*line)
    assert (code, out) == (2, "")
    assert one_line(err).endswith(
        "onnx exists: choose another folder, or overwrite it (--overwrite)\n"
    )
    assert run_cli(*line, "--overwrite")[0] == 0
    (tmp_path / "onnx/README.md").write_text("mine")
    code, out, err = run_cli(*line, "--overwrite")
    assert (code, out) == (2, "")
    assert "README.md" in one_line(err)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    code, out, err = run_cli("export", str(tmp_path / "none"), "-o", str(tmp_path / "onnx"))
    assert (code, out) == (2, "")
    assert "does not exist" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_its_check(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoder.MASKED, "fp32", 0.0)
    code, out, err = run_cli("export", str(model), "-o", str(tmp_path / "onnx"))
    assert (code, out) == (2, "")
    assert "the fp32 export is not the model: the difference of last_hidden_state" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    code, out, err = run_cli("export", str(model), "-o", str(tmp_path / "onnx"))
    assert (code, out) == (2, "")
    assert to_install("onnx") in one_line(err)


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the machine: exit code 1."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph, "write", full)
    code, out, err = run_cli("export", str(model), "-o", str(tmp_path / "onnx"))
    assert (code, out) == (1, "")
    assert one_line(err) == f"nomicbert: No space left on device: {tmp_path / 'onnx'}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal(number: int, code: int, tmp_path: Path) -> None:
    """While texts are computed: the hidden folder is removed."""
    folder = build_checkpoint(tmp_path / "model", "minilm", num_hidden_layers=48, hidden_size=256)
    line = [sys.executable, "-m", "nomicbert", "export", str(folder), "-o", str(tmp_path / "onnx")]
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len([*tmp_path.iterdir()]) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    server.start()
    yield server
    server.stop()


def test_a_repository_of_the_hub(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Under its name, in a process of its own, with a revision; its name may be the folder's."""
    files = {
        path.relative_to(model).as_posix(): path.read_bytes()
        for path in model.rglob("*")
        if path.is_file()
    }
    hub.repositories["acme/tiny"] = Repository()
    hub.repositories["acme/tiny"].commit("v2", files)
    settings = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "cache"))
    line = ("-m", "nomicbert", "export", "acme/tiny", "-o", "acme/tiny", "--dtype", "q8", "--json")
    done = run_python(*line, "--revision", "v2", env=settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == "acme/tiny"
    assert document["fingerprint"] == Embedder(model).fingerprint(prompt="")
    session = open_session(tmp_path / "acme/tiny/onnx/model_quantized.onnx")
    assert len(session.get_inputs()) == 3
    options = ("--revision", "v3", "-o", "other")
    done = run_python(*line[:4], *options, env=settings, cwd=tmp_path / "cache")
    assert done.returncode == 2
    assert "'acme/tiny' has no revision 'v3'" in one_line(done.stderr)
