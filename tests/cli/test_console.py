"""The command line itself: fast help, completion, errors, signals, pipes, log lines."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import nomicbert
import nomicbert_kernels
from nomicbert import cli
from nomicbert.cli import console
from nomicbert.errors import BackendError, ConfigError, HubError, WorkerError
from tests.support.command_line import environment, one_line, run_cli, run_python

posix = pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX")

# Modules that are slow to import, or must not be imported at all.
HEAVY = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "tqdm", "transformers"}


def test_public_names_are_imported_at_first_use() -> None:
    done = run_python(
        "-c",
        "import nomicbert, sys\n"
        "assert 'Embedder' in dir(nomicbert) and 'torch' not in sys.modules\n"
        "from nomicbert import Embedder, NomicBert\n"
        "import nomicbert.embedder, nomicbert.modeling.model\n"
        "assert Embedder is nomicbert.Embedder is nomicbert.embedder.Embedder\n"
        "assert NomicBert is nomicbert.NomicBert is nomicbert.modeling.model.NomicBert\n"
        "assert 'Embedder' in vars(nomicbert)\n"
        "from nomicbert.loading import hub\n"
        "print(hasattr(nomicbert, 'Embeder'), hub.resolve.__name__)",
    )
    assert done.stdout == "False resolve\n", done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'nomicbert' has no attribute 'Embeder'"):
        _ = nomicbert.Embeder


def test_help_and_completion_import_nothing_heavy() -> None:
    calls = [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]
    code = f"""
import os, sys
from nomicbert.cli import main
def call(*args):
    sys.argv = ["nomicbert", *args]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
for args in {calls}:
    call(*args)
os.environ |= {{"_NOMICBERT_COMPLETE": "complete_bash", "COMP_WORDS": "nomicbert "}}
os.environ["COMP_CWORD"] = "1"
call()
print(*sorted({{name.split(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: nomicbert") == len(calls) - 1
    assert {"info", "demo"} <= set(done.stdout.splitlines())  # the completions
    loaded = set(done.stderr.split())
    assert {"nomicbert", "typer"} <= loaded
    assert not loaded & HEAVY


def test_runs_as_a_module() -> None:
    done = run_python("-m", "nomicbert", "--version", cwd="/")
    assert (done.returncode, done.stdout) == (0, f"nomicbert {nomicbert.__version__}\n")


def complete(words: str) -> list[str]:
    """The completions of a line whose last word is incomplete."""
    settings = {
        "_NOMICBERT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = run_python("-m", "nomicbert", env=environment(**settings))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COMPLETIONS = {
    "nomicbert i": ["info"],
    "nomicbert info . --backend ": [
        "auto",
        "reference",
        "torch",
        "int8",
        "triton",
        "fp8",
        "invariant",
    ],
    "nomicbert embed . --backend i": ["int8", "invariant"],
    "nomicbert info . --backend t": ["torch", "triton"],
    "nomicbert info . --dtype b": ["bfloat16"],
    "nomicbert info --loc": ["--local-files-only"],
    "nomicbert e": ["embed", "export"],
    "nomicbert embed . --truncate ": ["end", "error", "chunk", "mean"],
}


@pytest.mark.parametrize("words", COMPLETIONS)
def test_completion_offers(words: str) -> None:
    assert complete(words) == COMPLETIONS[words]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_for_bash_works_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "nomicbert"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nomicbert "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PATH", "")])
    settings = environment(PATH=path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    script = """
set -eu
eval "$(nomicbert --show-completion bash)"
COMP_WORDS=(nomicbert inf) COMP_CWORD=1
eval "$(complete -p nomicbert | sed 's/.*-F \\([^ ]*\\).*/\\1/') nomicbert inf nomicbert"
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script], env=settings, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("info\n", "")


def raising(error: BaseException) -> None:
    def command() -> None:
        raise error

    console.run(command)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "vectors.npy")
ENDS = {
    "config": (ConfigError("config.json lacks\n  hidden_size"), 2, "config.json lacks hidden_size"),
    "hub": (HubError("no such folder"), 2, "no such folder"),
    "value": (ValueError("give one"), 2, "give one"),
    "backend": (BackendError("no triton here"), 2, "no triton here"),
    "op": (nomicbert_kernels.BackendError("no settings run"), 2, "no settings run"),
    "processes": (WorkerError("all have died"), 1, "all have died"),
    "extra": (ImportError('pip install "nomicbert[parquet]"'), 2, "nomicbert[parquet]"),
    "disk": (FULL, 1, "No space left on device: vectors.npy"),
    "right": (
        PermissionError(errno.EACCES, "Permission denied"),
        1,
        "nomicbert: Permission denied",
    ),
    "nameless": (OSError("cannot write x: full"), 1, "cannot write x: full"),
    "silent": (ValueError(), 2, "ValueError"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_an_error_is_one_line_and_a_code(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, code, line = ENDS[kind]
    with pytest.raises(SystemExit) as stopped:
        raising(error)
    assert stopped.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert line in one_line(captured.err)
    monkeypatch.setenv("NOMICBERT_TRACEBACK", "1")
    with pytest.raises(type(error)) as raised:
        raising(error)
    assert raised.value is error


@pytest.mark.parametrize("error", [TypeError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        raising(error)


def test_a_bug_ends_with_code_1() -> None:
    done = run_python("-c", "from nomicbert.cli import console; console.run(lambda: 1 + '')")
    assert done.returncode == 1
    assert "TypeError" in done.stderr


@pytest.mark.parametrize("args", [["info"], ["info", ".", "--dtype", "int4"], ["nope"]])
def test_a_wrong_command_line_is_a_usage_error(args: list[str]) -> None:
    code, out, err = run_cli(*args)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: nomicbert")
    assert "Traceback" not in err


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout(unbuffered: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = run_python(
            *("-m", "nomicbert", "--version"),
            env=environment(PYTHONUNBUFFERED=unbuffered),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert one_line(done.stderr) == "nomicbert: No space left on device: standard output\n"


PIPED = "from nomicbert.cli import console; import sys; console.run(lambda: sys.stdout.write('x'))"


@posix
@pytest.mark.parametrize("args", [["-m", "nomicbert", "--help"], ["-c", PIPED]])
def test_a_closed_pipe_ends_silently(args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run_python(*args, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


WORKING = """
import sys, time
from nomicbert.cli import console
def work():
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
console.run(work)
"""


def interrupt(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Send a signal once the process has begun its work; return how it ended."""
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def start(*args: str, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *args],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )


def heed_signals() -> None:
    """Restore default signals: a suite run by nohup or in the background ignores some."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def told(number: int) -> str:
    """The output after Ctrl-C."""
    return "nomicbert: interrupted\n" if number == signal.SIGINT else ""


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)]
)
def test_a_signal_runs_the_cleanup(number: int, code: int) -> None:
    assert interrupt(start("-c", WORKING), number) == (code, "cleaned up\n", told(number))


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)]
)
def test_a_signal_while_torch_is_imported(number: int, code: int, tmp_path: Path) -> None:
    slow = "import time\nprint('started', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(slow)
    (tmp_path / "config.json").write_text("{}")
    paths = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    process = start("-m", "nomicbert", "info", str(tmp_path), PYTHONPATH=paths)
    assert interrupt(process, number) == (code, "", told(number))


@posix
def test_a_signal_that_is_ignored_stays_so() -> None:
    """A shell sets SIG_IGN for background jobs."""
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from nomicbert.cli import console\n"
        "def work():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('went on')\n"
        "console.run(work)"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_signal_handlers_and_log_levels_are_restored() -> None:
    loggers = [logging.getLogger(name) for name in console.LOGGERS]

    def state() -> list[object]:
        handlers = [(logger.level, [*logger.handlers]) for logger in loggers]
        return [*handlers, warnings.showwarning, *map(signal.getsignal, numbers)]

    # ignored signals stay ignored; a suite in the background has some
    numbers = [n for n in (2, 15) if signal.getsignal(n) is not signal.SIG_IGN]
    before, during = state(), []

    def command() -> None:
        console.be_verbose()
        during.extend(state())

    console.run(command)
    assert all(a != b for a, b in zip(before, during, strict=True))
    assert state() == before


def speak() -> None:
    logging.getLogger("nomicbert.loading.hub").warning("no connection:\n  using the %s", "cache")
    logging.getLogger("nomicbert_kernels.backend").info("backend torch")
    logging.getLogger("elsewhere").info("not ours")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("3 texts\nwere cut", UserWarning, stacklevel=1)


@pytest.mark.parametrize("verbose", [False, True])
def test_log_messages_and_warnings_are_lines(
    verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if verbose:
            console.be_verbose()
        speak()

    console.run(command)
    assert capsys.readouterr().err.splitlines() == [
        "nomicbert: no connection: using the cache",
        *(["nomicbert: backend torch"] if verbose else []),
        "nomicbert: 3 texts were cut",
    ]


def test_a_line_is_printed_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    def command() -> None:
        with tqdm(total=2, desc="Embedding", file=sys.stderr, mininterval=0) as bar:
            bar.update(1)
            console.say("3 texts were cut")
            bar.update(1)

    console.run(command)
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n")]
    assert "nomicbert: 3 texts were cut" in lines
    assert any(line.startswith("Embedding: 100%") for line in lines)


@pytest.mark.parametrize("words", [("--verbose", "info"), ("info", "-v"), ("info", "--verbose")])
def test_verbose_logs_decisions(words: tuple[str, ...], tmp_path: Path) -> None:
    """Before the command and after it."""
    (tmp_path / "config.json").write_text("{}")
    brief = run_cli("info", str(tmp_path))
    code, out, err = run_cli(*words, str(tmp_path))
    assert (code, out) == (2, "")
    assert one_line(brief[2]) == err.splitlines(keepends=True)[-1]
    assert "nomicbert: backend torch for cpu" in err
