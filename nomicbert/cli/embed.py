"""`nomicbert embed`: a file of texts of any size -> a file of vectors.

Where in the flow: this module checks the options and opens the files before a model is loaded.
`bulk.blocks` does the work, in memory that does not grow with the input.
"""

import time
from contextlib import ExitStack, closing
from enum import Enum
from typing import Annotated

import typer

from nomicbert.bulk.output import OutputFormat, choose_output_format, label, open_output
from nomicbert.bulk.reading import STDIN, InputFormat, choose_input_format, open_reader
from nomicbert.cli import checks, console, options
from nomicbert.cli.options import BackendName, DtypeName

EXAMPLES = """\b
Examples:
  nomicbert embed texts.txt -m ./my-checkpoint --prompt-name search_document -o vectors.npy
  nomicbert embed docs.jsonl --field body -m ./my-checkpoint -o docs.parquet
  zcat docs.jsonl.gz | nomicbert embed --input-format jsonl -m ./my-checkpoint -o docs.npy
  nomicbert embed queries.txt -m ./my-checkpoint -o - | jq -c .embedding
"""


class Precision(str, Enum):
    """What --precision takes."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


class Truncate(str, Enum):
    """What --truncate takes."""

    end = "end"
    error = "error"
    chunk = "chunk"
    mean = "mean"


def embed(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="PATH_OR_ID", help="A checkpoint's folder or repository id."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .npy, .jsonl or .parquet file; - for stdout."
        ),
    ],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="One text per line, or JSONL; - for stdin.")
    ] = STDIN,
    input_format: Annotated[
        InputFormat | None,
        typer.Option(help="Default: jsonl for .jsonl and .ndjson, else text.", show_default=False),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="JSONL field that holds the text. Default: text.",
            show_default=False,
        ),
    ] = None,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option(help="Default: by the output's suffix.", show_default=False),
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A prompt of the checkpoint to prepend to each text."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Your own prompt to prepend to each text.")
    ] = None,
    matryoshka_dim: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Shorten vectors as the checkpoint prescribes."),
    ] = None,
    truncate_dim: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Keep only the first N values of a vector."),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale the final vectors to length 1.")
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="Type of the written vectors.")
    ] = Precision.float32,
    ranges: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npy",
            help="(2, dim): minimum and maximum of each column, for int8 and uint8.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens per text. Default: the checkpoint's limit."),
    ] = None,
    truncate: Annotated[
        Truncate,
        typer.Option(help="Longer texts: cut, refuse, pool over all chunks, or average windows."),
    ] = Truncate.end,
    dtype: options.Dtype = DtypeName.float32,
    device: options.Devices = ["auto"],  # noqa: B006
    backend: options.Backend = BackendName.auto,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tokens per batch at most. Default: chosen for the device."
        ),
    ] = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="Progress bar on stderr. Default: only on a terminal."
        ),
    ] = None,
) -> None:
    """Embed a file of texts: one vector per line, in input order.

    A blank line of a text file is a text too: row i is line i. The fields of JSONL objects are
    kept; a .npy output puts them, without the text, into a .meta.jsonl file next to it. An output
    file gets its final name only when it is complete.
    """
    form = choose_input_format(source, input_format)
    out_form = choose_output_format(output, output_format)
    field = checks.text_field(form, field)
    checks.refuse_both(prompt_name=prompt_name, prompt=prompt)
    checks.refuse_both(matryoshka_dim=matryoshka_dim, truncate_dim=truncate_dim)
    outputs = checks.output_files(output, out_form, form)
    checks.keep_apart(outputs, [source, ranges])
    limits = checks.read_ranges(ranges, precision.value, matryoshka_dim or truncate_dim)
    if out_form is OutputFormat.parquet:
        checks.need_pyarrow(output)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(open_reader(source, form, field)))
        reader.check_first_line()
        opened = [stack.enter_context(open_output(path)) for path in outputs]

        # Slow imports, so they follow the checks of the arguments.
        from nomicbert.bulk.blocks import embed_all
        from nomicbert.embedder import Embedder

        embedder = Embedder(
            model,
            revision=revision,
            local_files_only=local_files_only,
            dtype=dtype.value,
            device=device[0],
            backend=backend.value,
            rotary_scaling_factor=rotary_scaling_factor,
        )
        started = time.perf_counter()
        written = embed_all(
            embedder,
            reader,
            out_form,
            opened,
            field,
            show_progress_bar=progress,
            device=device if len(device) > 1 else None,
            prompt_name=prompt_name,
            prompt=prompt,
            matryoshka_dim=matryoshka_dim,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize,
            precision=precision.value,
            ranges=limits,
            batch_tokens=batch_tokens,
            max_length=max_length,
            truncate=truncate.value,
        )
        seconds = time.perf_counter() - started
    if written.broken:
        console.say(
            f"{written.broken:,} vectors contain NaN or infinity; the first is that of "
            f"{written.first_broken}"
        )
    console.say(
        f"{written.vectors:,} vectors of {written.width:,} {written.dtype} values in "
        f"{seconds:.1f} s: {' and '.join(map(label, outputs))}"
    )
