"""What all commands have in common: options, wording of errors, width of the help."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nomicbert import arguments, cli
from nomicbert.bulk.output import open_output
from nomicbert.cli import console
from nomicbert.cli.commands import plain
from nomicbert.loading import known_ids
from tests.cli.embed_cases import checkpoint, no_model, texts  # noqa: F401
from tests.support.command_line import environment, one_line, run_cli

# An imported fixture is named again as an argument.
# ruff: noqa: F811


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            "Value error, 'tritn' is not one of 'auto', 'triton'.",
            "'tritn' is not one of 'auto', 'triton'; did you mean 'triton'?",
        ),
        ("'x' is not one of 'auto', 'triton'.", "'x' is not one of 'auto', 'triton'."),
        ("Input should be greater than or equal to 1", "must be at least 1"),
        ("Input should be less than or equal to 65535", "must be at most 65535"),
        (
            "Input should be a valid integer, unable to parse string as an integer",
            "must be a valid integer",
        ),
        ("anything else", "anything else"),
    ],
)
def test_messages_about_values(given: str, wanted: str) -> None:
    assert plain(given) == wanted


def test_an_unknown_value_is_answered_with_the_nearest(texts: Path, no_model: None) -> None:
    code, _, err = run_cli("embed", str(texts), "-m", "m", "-o", "v.npy", "--dtype", "float61")
    assert code == 2
    assert "Value error" not in err
    assert err.endswith("'auto', 'fastest'; did you mean 'float16'?\n")


@pytest.mark.parametrize("name", ["fp16", "half", "float16"])
def test_short_names_of_dtypes(name: str, texts: Path, checkpoint: Path, tmp_path: Path) -> None:
    args = ("-m", str(checkpoint), "--prompt", "", "--dtype", name)
    code, _, err = run_cli("embed", str(texts), *args, "-o", f"{tmp_path}/half.npy")
    assert (code, "float16 on a CPU" in err) == (0, True)
    wide = (*args[:-1], "float32")
    assert run_cli("embed", str(texts), *wide, "-o", f"{tmp_path}/wide.npy")[0] == 0
    half, full = (np.load(tmp_path / f"{file}.npy") for file in ("half", "wide"))
    assert 0 < np.abs(half - full).max() < 0.02  # the weights are rounded to float16


@pytest.mark.parametrize("where", ["before", "after"])
def test_quiet_leaves_warnings_and_errors(
    where: str, texts: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ("embed", str(texts), "-m", str(checkpoint), "--prompt", "", "-o", f"{tmp_path}/v.npy")
    words = ("-q", *words) if where == "before" else (*words, "--quiet")
    assert run_cli(*words) == (0, "", "")
    assert "exists: pass --overwrite" in one_line(run_cli(*words)[2])
    loud = [word for word in words if word not in ("-q", "--quiet")]
    assert "vectors of" in one_line(run_cli(*loud, "--overwrite")[2])  # quiet has ended


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run_cli(*filter(None, [command]), "--help")
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "--verbose" in out
    assert "--quiet" in out


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("gpu", "did you mean 'cuda'?"),
        ("GPU", "did you mean 'cuda'?"),
        ("cdua", "did you mean 'cuda'?"),
        ("abacus", "known are cpu, cuda, mps, xpu, auto and cuda:N"),
    ],
)
def test_unknown_devices(given: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown device") as found:
        arguments.as_device(given)
    assert str(found.value) == f"unknown device {given!r}: {hint}"


def test_a_folder_with_almost_this_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my-model", "models/large", "my-models-notes"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("my-model", "models/large"):
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert known_ids.near_folder("mymodel") == "my-model"
    assert known_ids.near_folder("models/larg") == "models/large"
    assert known_ids.near_folder("models/tiny") is None
    assert known_ids.near_folder("nowhere/large") is None
    code, _, err = run_cli("info", "mymodel", "--local-files-only")
    assert code == 2
    assert one_line(err).endswith("Did you mean the folder 'my-model'?\n")
    code, _, err = run_cli("info", "./my-modl")
    assert (code, err.endswith("Did you mean the folder './my-model'?\n")) == (2, True)


def test_a_folder_that_is_no_checkpoint_is_refused_before_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nomicbert import cli\n"
        f"sys.argv = ['nomicbert', 'info', {str(tmp_path)!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 False\n"
    assert "config.json is missing: is" in one_line(done.stderr)


def test_a_file_that_cannot_be_created_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only file system removing the temporary file fails too."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("nomicbert.bulk.output._open_raw", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    place = f"{tmp_path}/v.npy"
    with pytest.raises(ValueError, match=r"v\.npy: Read-only") as found, open_output(place):
        pass
    assert str(found.value) == f"cannot write {place}: Read-only file system"


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_takes_no_line(closed: int, tmp_path: Path) -> None:
    """Without it a file of ours would get its number, and what is printed would go there."""
    code = f"""
import os
os.close({closed})
import sys
sys.std{"out" if closed == 1 else "err"} = None
from nomicbert.cli import console
def work():
    import tqdm
    with open({str(tmp_path / "out")!r}, "w") as file:
        assert file.fileno() > 2, file.fileno()
        console.say("a line")
        os.system("echo noise >&{closed}")
        file.write("content")
console.run(work)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "content"
    assert done.stdout == ""


def test_a_command_without_standard_output(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So Python finds a descriptor that was closed from the start."""
    for words in (("help", "info"), ("info", str(checkpoint))):
        monkeypatch.setattr(sys, "argv", ["nomicbert", *words])
        with monkeypatch.context() as without:
            without.setattr(sys, "stdout", None)
            with pytest.raises(SystemExit, match="0"):
                cli.main()


def test_a_signal_closes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """It is not drawn again below the message."""
    from tqdm import tqdm

    def work() -> None:
        with tqdm(total=9, file=sys.stderr, mininterval=0, desc="Working") as bar:
            bar.update(3)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit, match="130"):
        console.run(work)
    err = capsys.readouterr().err
    assert "Working:  33%" in err
    assert err.endswith("nomicbert: interrupted\n")


def test_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run_cli("help")
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert listed["embed"] == "nomicbert embed"
    assert listed["backends"] == "Backends"
    assert set(cli.COMMANDS) - {"help"} <= set(listed)
    code, out, _ = run_cli("help", "embed")
    assert (code, out.splitlines()[0]) == (0, "# nomicbert embed")
    code, _, err = run_cli("help", "embd")
    assert code == 2
    assert one_line(err) == "nomicbert: the manual has no page 'embd': did you mean 'embed'?\n"


def test_the_pager_gets_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the command would end before it, and the shell and the pager share the keyboard."""
    before, seen = signal.getsignal(signal.SIGINT), list[object]()
    monkeypatch.setattr("pydoc.pager", lambda _: seen.append(signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "argv", ["nomicbert", "help", "info"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert seen == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_message_while_tqdm_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    with pytest.raises(SystemExit, match="130"):
        console.run(lambda: signal.raise_signal(signal.SIGINT))
    assert capsys.readouterr().err == "nomicbert: interrupted\n"


def test_a_terminal_gets_lines_of_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nomicbert", "embed", "t.txt", "--dtype", "float61"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    console.say("a message of more than forty characters is broken between its words")
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Error: "))
    assert max(map(len, lines[start:])) <= 40
    joined = " ".join(lines[start:])
    assert "did you mean 'float16'? nomicbert: a message of more than forty" in joined
