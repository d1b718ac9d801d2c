"""The distributions: the wheel holds all that runs, and the sdist builds the same wheel."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nomicbert import Embedder
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "nomicbert", ROOT / "kernels" / "nomicbert_kernels")


def _build(kind: str, source: Path, into: Path) -> Path:
    """Build with the project's own build backend, which needs no network."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(into)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def _content(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist()}


def test_the_wheel_holds_the_two_packages_and_the_manual(wheel: Path) -> None:
    wanted = {
        str(path.relative_to(package.parent))
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {f"nomicbert/docs/{path.name}" for path in (ROOT / "docs").iterdir()}
    found = {name for name in _content(wheel) if ".dist-info/" not in name}
    assert found == wanted
    assert {"nomicbert/py.typed", "nomicbert/cli/embed.py"} <= found


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = _build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    # what the tests run is there too
    tests = {path.name for path in (ROOT / "tests").iterdir() if path.name != "__pycache__"}
    assert {path.name for path in (source / "tests").iterdir()} == tests
    assert (source / "examples/finetune.py").is_file()
    deployed = {path.relative_to(ROOT) for path in (ROOT / "deploy").rglob("*") if path.is_file()}
    assert all((source / path).is_file() for path in deployed)
    assert Path("deploy/Dockerfile.dockerignore") in deployed
    again = _build("wheel", source, tmp_path / "again")
    assert again.name == wheel.name
    assert _content(again) == _content(wheel)


def test_the_wheel_runs_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    """`embed` from the unpacked wheel, in another folder, writes the vectors of `encode`."""
    installed, work = tmp_path / "installed", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    checkpoint = build_checkpoint(tmp_path / "checkpoint", "e5", num_hidden_layers=1)
    (work / "texts.txt").write_text("\n".join(SENTENCES) + "\n", "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import nomicbert, nomicbert_kernels as k; print(nomicbert.__file__, k.__file__)"
    assert all(path.startswith(str(installed)) for path in run("-c", where).split())
    run("-m", "nomicbert", "embed", "texts.txt", "-m", str(checkpoint), "-o", "vectors.npy")
    assert run("-m", "nomicbert", "help", "bits").startswith("# The same bits in any batch\n")
    advice = "from nomicbert.errors import to_install as i; print(i('parquet'), i('onnx'))"
    advised = 'pip install "pyarrow>=17" pip install "onnx>=1.17" "onnxruntime>=1.20"'
    assert run("-c", advice).strip() == advised
    wanted = Embedder(checkpoint).encode(SENTENCES)
    assert len(np.load(work / "vectors.npy")) == len(wanted)
    assert all(map(same, np.load(work / "vectors.npy"), wanted))


def test_an_editable_installation_finds_the_packages(tmp_path: Path) -> None:
    """What `pip install --editable` unpacks: a link to this tree, beside the manual's pages."""
    editable = _build("wheel:editable", ROOT, tmp_path / "editable")
    zipfile.ZipFile(editable).extractall(tmp_path / "site")
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import nomicbert.cli, nomicbert_kernels.launch.limits as limits\n"
        "print(nomicbert.cli.__file__, limits.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    others = [
        path for path in sys.path if "site-packages" in path or not path.startswith(str(ROOT))
    ]
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {others!r}\n{code}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [
        str(ROOT / "nomicbert/cli/__init__.py"),
        str(ROOT / "kernels/nomicbert_kernels/launch/limits.py"),
    ], done.stderr
