"""`nomicbert export`: a checkpoint to a folder of ONNX files for Transformers.js and onnxruntime.

Where in the flow: `nomicbert.export` does the work; this module reads the options and prints what
was written, as a table or as one JSON document.
"""

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nomicbert.cli import console, options

if TYPE_CHECKING:
    from nomicbert.export import Export

EXAMPLES = """\b
Examples:
  nomicbert export nomic-ai/nomic-embed-text-v1.5 -o nomic-onnx
  nomicbert export ./my-checkpoint -o my-onnx --dtype fp32,fp16,q8 --overwrite
  nomicbert export ./my-reranker -o reranker-onnx --dtype q8
"""


class TaskName(str, Enum):
    """What --task takes."""

    auto = "auto"
    feature_extraction = "feature-extraction"
    text_classification = "text-classification"
    token_classification = "token-classification"
    question_answering = "question-answering"
    fill_mask = "fill-mask"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or repository id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
    ],
    dtype: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="fp32, fp16 and q8 (8-bit weights), separated by commas: one file each.",
        ),
    ] = "fp32",
    task: Annotated[
        TaskName,
        typer.Option(
            metavar="NAME",
            help="feature-extraction, text-classification, token-classification, "
            "question-answering or fill-mask; auto: as Embedder or CrossEncoder loads it.",
        ),
    ] = TaskName.auto,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in DIR.")
    ] = False,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="mean, cls, ... for a checkpoint that does not state it."
        ),
    ] = None,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON document in place of the table.")
    ] = False,
) -> None:
    """Export a checkpoint to ONNX, for Transformers.js, onnxruntime and libraries on it.

    Each file is compared with the model on sample texts before the folder appears; one that
    differs is refused.
    """
    names = (name.strip() for name in dtype.split(","))
    dtypes: Any = [*dict.fromkeys(filter(None, names))]
    # Slow imports, so they follow the checks of the arguments.
    from nomicbert.export import onnx

    with console.open_bar("Exporting", " steps", 2 + 2 * len(dtypes)) as bar:

        def step(doing: str) -> None:
            bar.set_description(doing.capitalize(), refresh=False)
            bar.update()

        made = onnx(
            model,
            output,
            dtypes=dtypes,
            task=task.value,
            overwrite=overwrite,
            pooling=pooling,  # type: ignore[arg-type]  # checked where it is read
            rotary_scaling_factor=rotary_scaling_factor,
            revision=revision,
            local_files_only=local_files_only,
            step=step,
        )
    console.put(_as_json(made) if json_output else _as_table(made))


def _as_json(made: "Export") -> str:
    return json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2)


def _as_table(made: "Export") -> str:
    lines = [f"{'file':<29}{'MB':>7}  {'output':<20}{'found':>10}{'bound':>10}"]
    for file in made.files:
        name, size = file.name, f"{file.size / 1e6:.1f}"
        for one in file.differences:
            least = one.measure == "cosine"
            found = f"{one.value:.6f}" if least else f"{one.value:.1e}"
            bound = f"{'>=' if least else '<='} {one.bound:g}"
            lines.append(f"{name:<29}{size:>7}  {one.output:<20}{found:>10}{bound:>10}")
            name = size = ""
    lines += ["", f"{made.task} in {made.folder}"]
    if made.fingerprint:
        lines.append(f"fingerprint of the model's own vectors: {made.fingerprint}")
    return "\n".join(lines)
