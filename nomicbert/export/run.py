"""Export a checkpoint to a folder of ONNX files: load, write, check, and only then show it.

Where in the flow: the entry of the room, called by `nomicbert export` and from Python.
The folder has the layout of the hub for Transformers.js: settings and tokenizer at the top, graphs
in onnx/. It appears under its name when all of it is written and checked.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, get_args

from nomicbert import __version__
from nomicbert.errors import to_install
from nomicbert.export.check import Case, Difference, cases_of, differences
from nomicbert.export.encoder import hidden_states, mask_of
from nomicbert.export.folder import record, refuse_to_replace, shown_whole, written_to
from nomicbert.export.graph import Graph, Precision
from nomicbert.export.source import TASKS, Source, Task, load
from nomicbert.loading import hub
from nomicbert_kernels import PoolMode

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# The names that Transformers.js gives to the files of its dtypes.
FILES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "q8": "model_quantized.onnx",
}


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export.

    Attributes:
        name: within the folder.
        dtype: of the weights.
        size: in bytes.
        differences: of its outputs from the model's, all within their bounds.
    """

    name: str
    dtype: Precision
    size: int
    differences: list[Difference]


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: of the export.
        task: its kind.
        fingerprint: of the vectors that the model itself gives without a prompt; "" for logits.
        files: in the order asked for.
    """

    folder: Path
    task: Task
    fingerprint: str
    files: list[ExportedFile]


def onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtypes: Sequence[Precision] = ("fp32",),
    task: Task = "auto",
    overwrite: bool = False,
    rotary_scaling_factor: float | None = None,
    pooling: PoolMode | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    step: Callable[[str], object] | None = None,
) -> Export:
    """Export a checkpoint to ONNX files for Transformers.js, onnxruntime and what reads either.

    Args:
        model: a local folder or a repository of the hub.
        output: the folder to make.
        dtypes: "fp32", "fp16", and "q8": weights in 8 bits, with scales found while running.
        task: "auto": vectors of an embedding model, logits of a reranker; or the name of a task of
            Transformers.js, if the checkpoint has its head.
        overwrite: replace an earlier export in this folder.
        rotary_scaling_factor: alpha of dynamic NTK scaling in place of the stored one; 0: off.
        pooling: for a checkpoint without modules.json, as for `Embedder`.
        revision: branch, tag or commit of the repository.
        cache_dir: where downloads are kept, in place of Hugging Face's default.
        token: for private repositories.
        local_files_only: never reach for the network.
        step: called with a few words when a step begins: 2 steps, and 2 per dtype.

    Returns: the files with their differences from the model.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ExportError: `output` exists, and `overwrite` is off or it is no earlier export; a pooling,
            weight or size that cannot be exported; or an export that does not give the model's
            results. No folder is left then, and an earlier export stays as it was.
        NomicBertError: checkpoint missing, damaged or unsupported, or without the task's head.
        ValueError: unknown dtype or task. OSError: the folder cannot be written.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    if isinstance(dtypes, str) or not dtypes or not {*dtypes} <= {*PRECISIONS}:
        raise ValueError(
            f"dtypes (--dtype) must be a list of {', '.join(PRECISIONS)}, not {dtypes!r}"
        )
    need_packages()
    target = Path(output)
    refuse_to_replace(target, overwrite)
    note = step or (lambda _: None)
    note("loading")
    with shown_whole(target, overwrite) as part:
        folder = hub.resolve(
            model,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        source = load(folder, task, rotary_scaling_factor, pooling)
        note("computing")
        cases = cases_of(source)
        with written_to(target):
            files = [_written(part, source, cases, dtype, note) for dtype in dict.fromkeys(dtypes)]
            source.save_settings(part)
            record(part, _facts(source, files))
    return Export(target, source.task, source.fingerprint, files)


def need_packages() -> None:
    """Refuse to go on without the libraries of this room.

    Raises: ImportError: it names what is missing, and the extra that brings it.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(f"exporting needs {' and '.join(missing)}: {to_install('onnx')}")


def _written(
    part: Path, source: Source, cases: list[Case], dtype: Precision, note: Callable[[str], object]
) -> ExportedFile:
    """Write one file, and check it."""
    note(f"writing {dtype}")
    name = f"onnx/{FILES[dtype]}"
    path = part / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        _write_graph(file, source, dtype)
    note(f"checking {dtype}")
    return ExportedFile(name, dtype, path.stat().st_size, differences(path, dtype, cases))


def _write_graph(file: BinaryIO, source: Source, dtype: Precision) -> None:
    graph = Graph(dtype)
    mask = mask_of(graph)
    outputs = source.outputs(graph, hidden_states(graph, source.encoder, mask), mask)
    facts = {"dtype": dtype, "task": source.task, "fingerprint": source.fingerprint}
    graph.write(file, outputs, {f"nomicbert.{key}": value for key, value in facts.items()})


def _facts(source: Source, files: list[ExportedFile]) -> dict[str, object]:
    """What the record of an export says of it."""
    return {
        "nomicbert": __version__,
        "task": source.task,
        "fingerprint": source.fingerprint,
        "max_length": source.max_length,
        "files": [asdict(file) for file in files],
    }
