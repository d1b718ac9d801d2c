"""`nomicbert embed`: files of texts of any size -> a file of vectors, or a folder of them.

Where in the flow: this module sorts the options. `embed_file` and `embed_folder` check the rest and
open inputs and outputs before a model is loaded.
"""

import typer

from nomicbert.bulk.inputs.streams import STDIN
from nomicbert.cli import checks, embed_file, embed_folder, options
from nomicbert.cli import embed_options as own
from nomicbert.cli.embed_options import OnErrorName, OnNullName, Precision, Truncate
from nomicbert.cli.embed_request import Request
from nomicbert.cli.options import BackendName, DtypeName

EXAMPLES = """\b
Examples:
  nomicbert embed texts.txt -m ./my-checkpoint -o vectors.npy
  nomicbert embed docs/ '*.jsonl.gz' --field body -m ./my-checkpoint -o out/
  nomicbert embed docs.csv --columns id -m ./my-checkpoint -o docs.parquet
  nomicbert embed queries.txt -m ./my-checkpoint -o - | jq -c .embedding
  nomicbert embed --check out/
"""


def embed(
    context: typer.Context,
    inputs: own.Inputs = None,
    input_format: own.Input = None,
    field: own.Field = None,
    columns: own.Columns = "all",
    on_error: own.OnError = OnErrorName.fail,
    on_null: own.OnNull = OnNullName.error,
    output: own.Place = None,
    output_format: own.Output = None,
    overwrite: own.Overwrite = False,
    progress: own.Progress = None,
    json: own.Json = False,
    part_rows: own.PartRows = None,
    part_seconds: own.PartSeconds = None,
    task: own.Task = None,
    restart: own.Restart = False,
    check: own.Check = False,
    model: own.Model = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    dtype: options.Dtype = DtypeName.float32,
    device: options.Devices = ["auto"],  # noqa: B006
    backend: options.Backend = BackendName.auto,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
    batch_tokens: own.BatchTokens = None,
    prompt_name: own.PromptName = None,
    prompt: own.Prompt = None,
    matryoshka_dim: own.MatryoshkaDim = None,
    truncate_dim: own.TruncateDim = None,
    normalize: own.Normalize = False,
    precision: own.VectorPrecision = Precision.float32,
    ranges: own.Ranges = None,
    max_length: own.MaxLength = None,
    truncate: own.Truncation = Truncate.end,
    chunk_tokens: own.ChunkTokens = None,
    chunk_overlap: own.ChunkOverlap = None,
) -> None:
    """Embed texts: one vector per row of the inputs, in their order.

    Inputs are text (one text per line, blank lines included), JSONL, CSV, TSV, JSON, Parquet,
    Arrow, and .gz and .zst of them. Their other fields are kept.

    A file appears under its name when it is complete. A folder is filled part by part; after a
    crash the same command goes on.
    """
    of_folders: dict[str, object] = {
        "part_rows": part_rows,
        "part_seconds": part_seconds,
        "task": task,
        "restart": restart or None,
    }
    of_files: dict[str, object] = {
        "output_format": output_format,
        "overwrite": overwrite or None,
        "chunks": chunk_tokens,
    }
    if check:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = [name for name, source in sources.items() if source and source.name != "DEFAULT"]
        checks.refuse_with_check(inputs, given)
        folder, *others = inputs or []
        embed_folder.check_folder(folder, others or None, json)
        return
    model, output = checks.required(model=model, output=output)
    to_folder = checks.is_folder(output)
    checks.refuse_other_kind(output, to_folder, of_files if to_folder else of_folders)
    checks.refuse_both(prompt_name=prompt_name, prompt=prompt)
    checks.refuse_both(matryoshka_dim=matryoshka_dim, truncate_dim=truncate_dim)
    checks.refuse_json_on_stdout(output, json)
    checks.refuse_without_chunks(chunk_tokens, chunk_overlap, truncate.value, device)
    chunking = None
    if chunk_tokens is not None:
        chunking = {"chunk_tokens": chunk_tokens, "chunk_overlap": chunk_overlap or 0}
    request = Request(
        inputs=inputs or [STDIN],
        output=output,
        reading={
            "input_format": input_format,
            "field": field,
            "columns": checks.column_names(columns),
            "on_error": on_error.value,
            "on_null": on_null.value,
        },
        loading={
            "path_or_repo_id": model,
            "revision": revision,
            "local_files_only": local_files_only,
            "dtype": dtype.value,
            "device": device[0],
            "backend": backend.value,
            "rotary_scaling_factor": rotary_scaling_factor,
        },
        encoding={
            "device": device if len(device) > 1 else None,
            "prompt_name": prompt_name,
            "prompt": prompt,
            "matryoshka_dim": matryoshka_dim,
            "truncate_dim": truncate_dim,
            "normalize_embeddings": normalize,
            "precision": precision.value,
            "ranges": checks.read_ranges(ranges, precision.value, matryoshka_dim or truncate_dim),
            "batch_tokens": batch_tokens,
            "max_length": max_length,
            "truncate": truncate.value,
        },
        chunking=chunking,
        progress=progress,
        json=json,
    )
    if to_folder:
        embed_folder.embed_folder(
            request,
            part_rows=part_rows,
            part_seconds=part_seconds,
            task=task,
            restart=restart,
        )
    else:
        embed_file.embed_file(request, output_format, overwrite, ranges)
