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
import types
from collections.abc import Mapping
from pathlib import Path


class WarmPython:
    """The process; one program at a time.

    Args:
        environment: of the process, with the import path of the package.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
        )

    def run(
        self, code: str, *arguments: str, cwd: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = cwd / ".stdout", cwd / ".stderr"
        order = {"code": code, "arguments": arguments, "cwd": str(cwd), "out": str(out),
                 "err": str(err), "environment": dict(environment)}  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        returncode = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(
            arguments, returncode, out.read_text("utf-8"), err.read_text("utf-8")
        )

    def stop(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def _serve() -> None:
    # The names of the package are imported when they are asked for.
    exec("from nomicbert import *", {})
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            return _become(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, object]) -> None:
    """Run a program in this process, a fork; its errors and exit code are those of Python."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for place, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(str(order[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    os.chdir(str(order["cwd"]))
    sys.argv = ["-c", *order["arguments"]]  # type: ignore[misc]
    sys.path[0] = ""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(str(order["code"]), "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    _serve()
