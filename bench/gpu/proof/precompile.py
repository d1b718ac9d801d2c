"""Compiles the kernels of all later stages on the host's processors, while those stages run.

Each process runs the launchers on CPU tensors, as `make aot` does, so that Triton's cache gets the
keys that launches on the GPU look up. One process builds the checkpoint of the whole model.
"""

import concurrent.futures
import contextlib
import functools
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.aot_cases import Task
from bench.gpu.place import Place
from bench.gpu.proof import smoke, variants
from bench.gpu.proof.cases import Compiled
from bench.gpu.runner.child import Case, Facts
from bench.problem import Draw
from bench.throughput import MODELS, folder_of
from nomicbert.embedder import Embedder
from nomicbert.modeling.packing import pack
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import backend, capabilities, dtypes, launch, tiling
from nomicbert_kernels.launch import SHARED_MEMORY
from tests.support.checkpoints import build_checkpoint

# Processors left to the process that launches, and to inductor.
SPARED = 4
MOST_PROCESSES = 12
# On both sides of the limit for few rows in launch tables; nothing else depends on the number.
TOKENS, DRY_TOKENS = (17, 512), (5, 70)
WIDE: Any = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
# Runs the launchers.
Work = Callable[[], object]
# Lengths per batch of the whole model, for the kernels of short texts and of long ones.
BATCHES = ([32], [64] * 40, [300, 5], [2048, 17])


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """A single case: kernels compiled before a timeout stay in the cache."""
    found = Case("kernels", functools.partial(compile_all, options), 0.0)
    return [found] if options["match"] in found.name else []


def compile_all(options: Facts) -> Facts:
    """Compile in several processes, and list what does not compile.

    That is no failure of this case: the stage that launches such a kernel reports it.
    """
    started = time.perf_counter()
    count = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - SPARED))
    todo = names(options)
    total = {"compiled": 0, "from_cache": 0}
    refused: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, context) as pool:
        running = {pool.submit(compile_one, name, options): name for name in todo}
        for future in concurrent.futures.as_completed(running):
            try:
                found = future.result()
            except Exception as error:  # one task of many
                refused[running[future]] = f"{type(error).__name__}: {error}"[:300]
                continue
            for key in total:
                total[key] += found[key]
            if found["refused"]:
                refused[running[future]] = found["refused"]
    seconds = time.perf_counter() - started
    said = f"{total['compiled']} kernels in {count} processes, {seconds:.0f} s"
    return {**total, "processes": count, "refused": refused, "tasks": len(todo), "said": said}


def names(options: Facts) -> list[str]:
    """Names of the tasks in the order in which their kernels are needed."""
    place = Place.on_paper(options["dry"])
    found = [] if options["dry"] else ["checkpoint"]
    found += [f"smoke/{name}" for name, _ in smoke.calls(place)]
    found += ["model/bfloat16/triton", "model/bfloat16/fp8", "model/float32/triton"]
    found += [
        f"variants/{one.name}/{size}" for one in variants.contests() for size in one.sizes
    ]  # fmt: skip
    return found


def compile_one(name: str, options: Facts) -> Facts:
    """Run one task in a process of the pool."""
    torch.set_num_threads(1)
    kind, _, rest = name.partition("/")
    if kind == "checkpoint":
        folder_of(MODELS[0], Path(options["scratch"]))
        return {"compiled": 0, "from_cache": 0, "refused": ""}
    place = Place.on_paper(options["dry"])
    # problems are drawn before, because inside `on_paper` every matmul returns zeros
    work = {"smoke": smoke_op, "model": model, "variants": variant}[kind](place, rest)
    with Compiled() as counted, on_paper(options["arch"]) as recorder, torch.inference_mode():
        work()
    refused = [text for record in recorder.records.values() if (text := problem(record))]
    return {
        "compiled": counted.new,
        "from_cache": counted.cached,
        "refused": refused[0] if refused else "",
    }


def problem(record: Mapping[str, Any]) -> str:
    """Why a kernel cannot be launched on the architecture; empty if it can."""
    if record["error"]:
        return str(record["error"]).splitlines()[0][:300]
    limit = SHARED_MEMORY.get(record["arch"], math.inf)
    if record["shared"] > limit:
        return f"{record['kernel']} needs {record['shared']} bytes of shared memory of {limit}"
    return ""


@contextlib.contextmanager
def on_paper(arch: str) -> Iterator[Any]:
    """Replace launches by compilation for an architecture."""
    # it imports triton, which has to be the compiler here, and not the interpreter
    from bench.aot_worker import Recorder, compiling

    ops = ops_on_paper()
    task = Task(arch, arch, "bfloat16", "all", launch.TABLES, quick=False)
    recorder = Recorder(task, examines=False)
    # rows with "library" take cuBLAS here as on the device
    recorder.library = True
    with compiling(recorder), contextlib.ExitStack() as stack:
        for module, function, answer in (
            (dtypes, "has_bf16_instructions", True),
            (capabilities, "why_not_triton", None),
            (backend, "why_not_triton", None),
            (backend, "triton_ops", ops),
        ):
            stack.enter_context(mock.patch.object(module, function, return_value=answer))
        yield recorder


def ops_on_paper() -> Any:
    """Ops of backend triton that plan batches on the CPU."""
    found = backend.triton_ops.__wrapped__(torch.device("cuda"))

    def plan(lengths: Sequence[int], heads: int, head_dim: int, dtype: torch.dtype) -> Any:
        return tiling.plan_tiles(lengths, head_dim, dtype, "cpu")

    return replace(found, plan=plan)


def smoke_op(place: Place, name: str) -> Work:
    """An op of stage smoke."""
    make = dict(smoke.calls(place))[name]
    tokens = DRY_TOKENS if place.dry else TOKENS
    found = [make(Draw(place.device, place.dtype), count) for count in tokens]

    def work() -> None:
        for problem in found:
            problem.run(place.ops)

    return work


def variant(place: Place, name: str) -> Work:
    """The shipped form of a contest and its variants."""
    contest, size = name.split("/")
    (one,) = [one for one in variants.contests() if one.name == contest]
    many = size if " x " in size else int(size)
    problem, _ = variants.problem_of(place, one, many, Draw(place.device, place.dtype))

    def work() -> None:
        rows = dict(variants.rows_of(place, one, problem, many))
        for label, changes in {"shipped": {}, **one.variants}.items():
            variants.bound(place, one, problem, rows.get(label), changes, problem.tensors)()

    return work


def model(place: Place, name: str) -> Work:
    """Two layers of the leading model in their real width, embeddings and pooling included."""
    dtype, backend = name.split("/")
    chosen: Any = backend
    sizes: Any = {} if place.dry else WIDE
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(folder, "nomic-v1.5", num_hidden_layers=2, **sizes)
        embedder = Embedder.from_pretrained(folder, device="cpu", dtype=dtype)

    def work() -> None:
        embedder.model.use(chosen)
        for lengths in BATCHES:
            texts = [[5] * length for length in lengths]
            embedder.embedding_model(pack(texts, "cpu"), Finish())

    return work
