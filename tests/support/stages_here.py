"""Runs the children of `bench.gpu.runner.supervise` in this process, which has imported torch."""

from __future__ import annotations

import json
import os
import threading
import types
from typing import Any
from unittest import mock

import pytest
import torch

from bench.gpu.runner import child, supervise
from nomicbert_kernels.backend import fp8_ops


class Here:
    """Stands in for the `subprocess.Popen` of a child: it has ended when it is made.

    A stage in the background has a thread of its own; but there is one environment, so children run
    one after the other.
    """

    pid = os.getpid()
    alone = threading.Lock()

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        *module, spec = command[1:]
        assert module == ["-m", "bench.gpu.runner.child"], command
        assert json.loads(spec)["stage"]
        with self.alone, mock.patch.dict(os.environ, env):
            self.code = child.main([spec])

    def poll(self) -> int:
        return self.code


def failed(code: int) -> None:
    raise AssertionError(f"a case has failed, and its child ends with {code}")


def install(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone. A failed case is an error here, for it would end the process."""
    # before a stage that does not interpret them: later ones may
    fp8_ops(torch.device("cpu"))
    popen = types.SimpleNamespace(Popen=Here, PIPE=None, STDOUT=None)
    patch.setattr(supervise, "subprocess", popen)
    patch.setattr(supervise, "_kill", lambda process: process.code)
    patch.setattr(child, "end_with_parent", lambda: None)
    patch.setattr(child, "os", types.SimpleNamespace(getpid=os.getpid, _exit=failed))
