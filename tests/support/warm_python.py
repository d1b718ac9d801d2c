"""Python programs in forks of one process that has imported the package, which takes seconds.

A program runs as `python -c` would run it: as `__main__`, in a folder and an environment of its
own. What the process has imported before is torch, and what the public names need with it; no
library that reads the environment of a program, such as huggingface_hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `python -m MODULE`, as a program: the module's name is the first argument.
MODULE = """
import runpy, sys
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class WarmPython:
    """The process; one program at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def run(
        self,
        code: str,
        *arguments: str,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Args:
            code: of the program; MODULE runs a module.
            arguments: of the program.
            cwd: folder in which it runs.
            env: its environment, except for PYTHONPATH and what torch reads when it is imported;
                default: that of the tests.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="warm-") as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            order = {
                "code": code,
                "arguments": arguments,
                "cwd": str(cwd),
                "out": str(out),
                "err": str(err),
                "env": dict(environment() if env is None else env),
            }
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            returncode = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(
                arguments, returncode, out.read_text("utf-8"), err.read_text("utf-8")
            )

    def stop(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def environment() -> dict[str, str]:
    """Where the code of this checkout is imported, on one thread: tests run in parallel."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def _serve() -> None:
    # The names of the package are imported when they are asked for.
    exec("from nomicbert import *", {})
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            return _become(order)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(order: dict[str, object]) -> None:
    """Run a program in this process, a fork; its errors and exit code are those of Python."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for place, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(str(order[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
    os.environ.clear()
    os.environ.update(order["env"])  # type: ignore[call-overload]
    os.chdir(str(order["cwd"]))
    sys.argv = ["-c", *order["arguments"]]  # type: ignore[misc]
    sys.path[0] = ""  # was the folder of this file
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(str(order["code"]), "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    _serve()
