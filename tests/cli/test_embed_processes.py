"""`nomicbert embed` as a process: standard streams, signals, full disks, memory."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from nomicbert.embedder import Embedder
from tests.cli.embed_cases import (  # noqa: F401
    FORMATS,
    HAS_PYARROW,
    TEXTS,
    checkpoint,
    embedder,
    needs_pyarrow,
    on_linux,
    small_blocks,
    texts,
)
from tests.support.command_line import environment, one_line, run_python
from tests.support.sameness import same

Start: TypeAlias = Callable[..., subprocess.Popen[bytes]]

# The tests below run subprocesses with a stand-in for the model that needs no torch.
STAND_IN = """
import os, sys, types
from itertools import islice
from typing import NamedTuple
import numpy as np

class Window(NamedTuple):
    vectors: object
    lengths: list
    cut: list
    chunks: None = None

class EmbedderEncoder:
    empty = np.empty((0, 4), np.float32)
    refusal = None

    def __init__(self, embedder, **_):
        pass

    def windows(self, texts, progress):
        while some := list(islice(texts, int(os.environ["ROWS"]))):
            vectors = np.stack([np.full(4, len(text), np.float32) for text in some])
            progress.done(len(some))
            yield Window(vectors, [1] * len(some), [])

encoding = {"EmbedderEncoder": EmbedderEncoder, "Window": Window, "Encoder": object}
for name, content in (
    ("nomicbert.embedder", {"Embedder": lambda **_: None}),
    ("nomicbert.bulk.encoding", encoding),
):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)
from nomicbert.bulk import blocks
from nomicbert.cli import main
blocks.BLOCK_ROWS = int(os.environ["ROWS"])
main()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command on the stand-in; kill processes that outlive the test."""
    with ExitStack() as stack:

        def run(*args: str | Path, rows: int = 2, **options: Any) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", STAND_IN, "embed", "-m", "m", *map(str, args)],
                env=environment(ROWS=str(rows)),
                stderr=subprocess.PIPE,
                **({"stdout": subprocess.PIPE} | options),
            )
            stack.callback(close, process)
            return process

        yield run


def close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("waited for 30 s")


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, nomicbert.cli.embed; print(*sys.modules)"
    done = run_python("-c", code)
    assert "nomicbert.cli.embed" in done.stdout.split()
    heavy = {"numpy", "pyarrow", "tokenizers", "torch", "nomicbert.embedder"}
    assert not heavy & set(done.stdout.split())


def test_standard_input_and_output(checkpoint: Path, embedder: Embedder) -> None:
    command = ["-m", "nomicbert", "embed", "-m", str(checkpoint), "-o", "-", "--prompt", ""]
    done = run_python(*command, input="\n".join(TEXTS) + "\n")
    assert done.returncode == 0, done.stderr
    assert ": standard output" in one_line(done.stderr)
    objects = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    found = np.array([each.pop("embedding") for each in objects], np.float32)
    assert objects == [{"id": row, "text": text} for row, text in enumerate(TEXTS)]
    assert all(map(same, found, embedder.encode(TEXTS, prompt="")))


def test_jsonl_from_standard_input(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    process = start("-", "--input-format", "jsonl", "-o", out, stdin=subprocess.PIPE)
    _, err = process.communicate(b'{"text": "abc", "n": 1}\n{"text": "d", "n": 2}\n')
    assert process.returncode == 0, err
    np.testing.assert_array_equal(np.load(out), [[3.0] * 4, [1.0] * 4])
    assert (tmp_path / "v.meta.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'
    args = ("--input-format", "jsonl", "-o", out, "--overwrite")
    process = start("-", *args, stdin=subprocess.PIPE)
    _, err = process.communicate(b'{"text": "abc"}\n[]\n')
    assert process.returncode == 2
    assert b"nomicbert: standard input, line 2: the line must be a JSON object" in err


def test_a_closed_standard_input(start: Start, tmp_path: Path) -> None:
    process = start("-o", tmp_path / "v.npy", preexec_fn=lambda: os.close(0))
    _, err = process.communicate()
    assert process.returncode == 2
    assert b"cannot read standard input: Bad file descriptor" in err


def test_standard_input_is_not_overwritten(start: Start, texts: Path) -> None:
    before = texts.read_bytes()
    with texts.open("rb") as file:
        process = start("-o", texts, "--output-format", "jsonl", stdin=file)
        assert b"would be overwritten" in process.communicate()[1]
    assert process.returncode == 2
    assert texts.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("form", ["npy", "jsonl", pytest.param("parquet", marks=needs_pyarrow)])
def test_the_output_has_its_name_only_when_complete(
    form: str, number: signal.Signals, start: Start, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / f"v.{form}"
    out.write_bytes(b"of an earlier run")
    args = ("-o", out, "--input-format", "jsonl", "--overwrite")
    process = start(*args, stdin=subprocess.PIPE, preexec_fn=heed_interrupts)
    assert process.stdin
    # enough for some blocks, and for a file's buffer to overflow
    more = np.random.default_rng(seed).bytes(50_000).hex().encode()
    process.stdin.write(b'{"text": "a", "more": "%s"}\n' % more * 80)
    process.stdin.flush()
    wait_until(lambda: any(path.stat().st_size for path in beside(out)), process)
    assert len(beside(out)) == 1 + (form == "npy")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (-9 if number is signal.SIGKILL else 128 + number), err
    assert out.read_bytes() == b"of an earlier run"
    if number is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == [out]
        assert err == (b"nomicbert: interrupted\n" if number is signal.SIGINT else b"")


def heed_interrupts() -> None:
    """Restore default signals: a suite in the background ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def beside(out: Path) -> list[Path]:
    """The temporary files in an output's folder."""
    return [path for path in out.parent.iterdir() if path != out]


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_cannot_grow(form: str, start: Start, tmp_path: Path) -> None:
    source, out = tmp_path / "many.txt", tmp_path / "out"
    source.write_text("a text\n" * 20_000)
    out.mkdir()
    process = start(source, "-o", out / f"v.{form}", rows=100, preexec_fn=limit_files)
    _, err = process.communicate()
    assert process.returncode == 1
    assert one_line(err.decode()) == f"nomicbert: cannot write {out}/v.{form}: File too large\n"
    assert list(out.iterdir()) == []


@on_linux
def test_a_full_device(start: Start, texts: Path) -> None:
    process = start(texts, "-o", "/dev/full")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == b"nomicbert: cannot write /dev/full: No space left on device\n"
    with open("/dev/full", "wb") as full:
        process = start(texts, "-o", "-", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == b"nomicbert: cannot write standard output: No space left on device\n"


def test_a_reader_that_closes_the_pipe(start: Start, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("a text\n" * 20_000)
    process = start(source, "-o", "-")
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"id": 0, "text": "a text", "embedding": [6.0000')
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr
    assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="has no /dev/stdout")
def test_the_name_of_standard_output(start: Start, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"before\n")
    for name in ("/dev/stdout", out):
        with out.open("ab") as file:
            process = start(texts, "-o", name, stdout=file)
            _, err = process.communicate()
            assert process.returncode == 0, err
    lines = out.read_bytes().split(b"\n")[:-1]
    assert lines[0] == b"before"
    assert [json.loads(line)["id"] for line in lines[1:]] == [*range(8), *range(8)]


@on_linux
def test_memory_does_not_grow_with_the_input(start: Start, tmp_path: Path) -> None:
    """Peak memory after a tenth of the lines equals peak memory after all."""
    line = b'{"text": "a text", "more": "%s"}\n' % (b"x" * 20_000)
    for form in ("npy", "jsonl", "parquet") if HAS_PYARROW else ("npy", "jsonl"):
        out = tmp_path / f"v.{form}"
        args = ("--input-format", "jsonl", "-o", out)
        process = start(*args, rows=100, stdin=subprocess.PIPE)
        assert process.stdin
        peaks = []
        for count in (500, 4500):
            for _ in range(count):
                process.stdin.write(line)
            process.stdin.flush()
            peaks.append(peak_memory(process.pid))
        _, err = process.communicate()
        assert process.returncode == 0, err
        # the remaining lines would take 90 MB, and twice that when parsed
        assert peaks[1] - peaks[0] < 30e6, f"{form}: {peaks}"


def peak_memory(process: int) -> int:
    """Peak resident memory of a process in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_standard_output_is_not_the_input(texts: Path, checkpoint: Path) -> None:
    """Otherwise it would read its own output, endlessly."""
    before = texts.read_bytes()
    command = [sys.executable, "-m", "nomicbert", "embed", str(texts), "-m", str(checkpoint)]
    with texts.open("ab") as itself:
        done = subprocess.run(
            [*command, "--prompt", "", "-o", "-"],
            stdout=itself,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "standard output is an input and would be overwritten" in one_line(done.stderr)
    assert texts.read_bytes() == before


@on_linux
def test_a_closed_standard_output(texts: Path, checkpoint: Path, embedder: Embedder) -> None:
    """As in a daemon; the output file is still written."""
    out = texts.with_name("v.npy")
    command = [sys.executable, "-m", "nomicbert", "embed", str(texts), "-m", str(checkpoint)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command, "--prompt", "", "-o", str(out)],
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(np.load(out)) == len(TEXTS)
    assert all(map(same, np.load(out), embedder.encode(TEXTS, prompt="")))
