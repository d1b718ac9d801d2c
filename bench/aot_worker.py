"""Compile the kernels that the ops would launch on an architecture, without such a GPU.

The real launchers run, on CPU tensors of a model's shapes. Only the launch itself is replaced by
compilation, so specialisation, descriptors and settings are those of a real launch. Triton gets a
driver that only knows the name of the target. The results stay zero and are not used.
"""

import contextlib
import functools
import importlib
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench.aot_cases import Task, cases
from bench.aot_machine import examine
from nomicbert_kernels import launch
from nomicbert_kernels.tensors import Activation

# Errors of a compiler that rejects a kernel: errors of the language, a failed pass, a failed
# internal check, an option that a backend does not know.
REFUSALS = (triton.TritonError, RuntimeError, AssertionError, ValueError, KeyError)


class Driver:
    """The part of a driver that compilation uses: the target, and a device as key of the cache."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return hash((self.target.backend, self.target.arch)) & 0xFFFF

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def target_of(arch: str) -> GPUTarget:
    """The compiler's target for an architecture such as sm_90 or gfx942."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


class Recorder:
    """Replaces kernel launches and the look-up of their settings, and records both.

    Attributes:
        task: what is compiled.
        examines: also disassemble each kernel, which takes as long as compiling it.
    """

    def __init__(self, task: Task, examines: bool = True) -> None:
        self.task, self.examines = task, examines
        self.records: dict[str, dict[str, Any]] = {}
        self.asked: set[tuple[str, int]] = set()
        self.rows: set[tuple[str, int, int]] = set()
        self.library = False
        self.looked_up: dict[tuple[str, int, int], launch.Row] = {}
        self.case = ""
        self.look_up = launch.settings
        self.run = JITFunction.run

    def settings(
        self, kernel: str, device: torch.device, dtype: torch.dtype, **sizes: int
    ) -> launch.Settings:
        """The row for a launch on the architecture; its fused kernel unless `library` is set."""
        found = self.look_up(kernel, device, dtype, **sizes)
        rows = launch.table(self.task.table)[kernel, dtype.itemsize]
        index = next(i for i, row in enumerate(rows) if row.settings is found)
        self.asked.add((kernel, dtype.itemsize))
        # the latest last: see `launch`
        self.looked_up.pop((kernel, dtype.itemsize, index), None)
        self.looked_up[kernel, dtype.itemsize, index] = rows[index]
        return replace(found, library=self.library and found.library)

    def launch(self, function: JITFunction, *args: Any, grid: Any, **keywords: Any) -> None:
        """Compile instead of launching, and record the result."""
        keywords.pop("warmup")
        start = time.perf_counter()
        error, kernel = "", None
        try:
            kernel = self.run(function, *args, grid=grid, warmup=True, **keywords)
        except REFUSALS as refusal:
            error = f"{type(refusal).__name__}: {refusal}".strip()
        seconds = time.perf_counter() - start
        # plan and launch may read different rows with the same settings: count both as reached
        served = {
            key: row
            for key, row in self.looked_up.items()
            if {**row.settings.constants, **row.settings.options}.items() <= keywords.items()
        }
        self.rows.update(served)
        bound = dict(zip(function.arg_names, args, strict=False)) | keywords
        settings = {
            name: value
            for name, value in bound.items()
            if name in launch.OPTIONS or (name.isupper() and isinstance(value, (bool, int, str)))
        }
        key = kernel.hash if kernel is not None else repr((function.__name__, settings, error))
        # what is launched is from the row looked up last
        stated = [*served.values()][-1].programs if served else 1
        if key in self.records:
            known = self.records[key]
            known["ctas_stated"] = max(known["ctas_stated"], stated)
            return
        self.records[key] = {
            "kernel": function.__name__,
            "op": self.task.op,
            "rows": [*served],
            "ctas_stated": stated,
            "table": self.task.table,
            "arch": self.task.arch,
            "dtype": self.task.dtype,
            "case": self.case,
            "settings": settings,
            "seconds": round(seconds, 2),
            "error": error,
            **({} if kernel is None else self.examined(kernel)),
        }

    def examined(self, kernel: Any) -> dict[str, Any]:
        """The full report of a kernel, or only its shared memory, which needs no disassembly."""
        return examine(kernel) if self.examines else {"shared": kernel.metadata.shared}


def zero_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Replaces F.linear, which is slow in fp16 on a CPU, and whose inputs are zeros anyway."""
    return x.new_zeros(*x.shape[:-1], weight.shape[0])


def zero_matmul(x: Tensor, other: Tensor) -> Tensor:
    """Replaces x @ other in the same way."""
    return x.new_zeros(*x.shape[:-1], other.shape[-1])


@contextlib.contextmanager
def compiling(recorder: Recorder) -> Iterator[None]:
    """Record launches, skip torch's matmuls, and zero all memory, since no kernel fills it."""
    task = recorder.task
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(Driver(target_of(task.arch)))

    @functools.wraps(recorder.run)
    def run(function: JITFunction, *args: Any, **keywords: Any) -> None:
        recorder.launch(function, *args, **keywords)

    patches = [
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(launch, "architecture", return_value=task.table),
        mock.patch.object(launch, "settings", recorder.settings),
        mock.patch.object(launch, "TABLES", task.tables),
        mock.patch.object(launch, "PDL", task.pdl),
        mock.patch.object(torch.nn.functional, "linear", zero_linear),
        mock.patch.object(Tensor, "__matmul__", zero_matmul),
        mock.patch.object(torch, "empty", torch.zeros),
        mock.patch.object(torch, "empty_like", torch.zeros_like),
        mock.patch.object(Tensor, "new_empty", Tensor.new_zeros),
    ]
    launch.table.cache_clear()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        try:
            yield
        finally:
            driver._active = before
    launch.table.cache_clear()


def module_of(op: str) -> types.ModuleType:
    """The op's Triton module."""
    return importlib.import_module(f"nomicbert_kernels.{op}_triton")


def launch_all(call: Callable[[], Tensor | Activation], recorder: Recorder) -> None:
    """Run a call with and without cuBLAS GEMMs, then with gradients for the backward kernels."""
    for recorder.library in (True, False):
        with torch.no_grad():
            call()
    result = call()
    if isinstance(result, Tensor) and result.requires_grad:
        result.backward(torch.zeros_like(result))


def compile_task(task: Task) -> dict[str, Any]:
    """Compile every kernel that the op launches; also return the rows of its table it reached."""
    torch.set_num_threads(1)
    recorder = Recorder(task)
    with compiling(recorder):
        module, dtype = module_of(task.op), getattr(torch, task.dtype)
        for name, call in cases(task.op, module, dtype, task.quick):
            recorder.case = name
            launch_all(call, recorder)
    return {
        "records": list(recorder.records.values()),
        "asked": sorted(recorder.asked),
        "rows": sorted(recorder.rows),
        "triton": triton.__version__,
    }
