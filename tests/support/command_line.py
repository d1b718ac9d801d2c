"""Run the command line, in this process or in a new one with the code of this checkout."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nomicbert import cli

ROOT = Path(__file__).resolve().parents[2]


def run_cli(*args: str) -> tuple[int, str, str]:
    """Run the entry point in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(sys, "argv", ["nomicbert", *args])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0), out.getvalue(), err.getvalue()


def environment(**more: str) -> dict[str, str]:
    """Environment for a new process, which finds the package without an installation."""
    paths = [str(ROOT), str(ROOT / "kernels")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def run_python(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process; `options` are subprocess.run's."""
    settings: dict[str, object] = {"env": environment(), "capture_output": True, "timeout": 300}
    return subprocess.run([sys.executable, *args], text=True, check=False, **settings | options)


def one_line(text: str) -> str:
    """Check that a message is one line of ours without a traceback, and return it."""
    assert text.count("\n") == 1, text
    assert text.startswith("nomicbert: ")
    return text
