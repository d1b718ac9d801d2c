"""The options of `nomicbert embed`, in the groups that its help shows."""

from enum import Enum
from typing import Annotated, Any

import typer

from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.output import OutputFormat

INPUT, OUTPUT, FOLDER = "Input", "Output", "Output to a folder"
VECTORS, LONG = "Vectors", "Long texts"


class OnErrorName(str, Enum):
    """What --on-error takes."""

    fail = "fail"
    skip = "skip"


class OnNullName(str, Enum):
    """What --on-null takes."""

    error = "error"
    empty = "empty"
    skip = "skip"


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


def _option(group: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=group, show_default=False, **settings)


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Files, folders, globs or URLs; - for stdin, the default.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
Input = Annotated[
    InputFormat | None,
    _option(INPUT, "--input-format", help="Default: by the suffix, else by content."),
]
Field = Annotated[
    str | None,
    _option(INPUT, metavar="NAME", help="Field or column that holds the text. Default: text."),
]
Columns = Annotated[
    str, _option(INPUT, metavar="LIST", help="Fields to keep: all (default), none, or id,title.")
]
OnError = Annotated[
    OnErrorName,
    _option(INPUT, help="A row that cannot be used: fail (default), or note it and go on."),
]
OnNull = Annotated[
    OnNullName,
    _option(INPUT, help="A null text: error (default), an empty text, or leave the row out."),
]

Place = Annotated[
    str | None,
    _option(
        OUTPUT,
        "--output",
        "-o",
        metavar="PLACE",
        help="A .npy, .jsonl or .parquet file; - for stdout; a folder or URL that ends in /. "
        "Required.",
    ),
]
Output = Annotated[
    OutputFormat | None, _option(OUTPUT, "--output-format", help="Default: by the suffix.")
]
Overwrite = Annotated[bool, _option(OUTPUT, "--overwrite", help="Replace an existing file.")]
Progress = Annotated[
    bool | None,
    _option(
        OUTPUT,
        "--progress/--no-progress",
        help="A bar on stderr. Default: on a terminal, elsewhere a line every 30 s.",
    ),
]
Json = Annotated[
    bool, _option(OUTPUT, "--json", help="Progress and summary as JSON lines on stdout.")
]

PartRows = Annotated[int | None, _option(FOLDER, min=1, metavar="N", help="Rows per part.")]
PartSeconds = Annotated[
    float | None, _option(FOLDER, min=0, metavar="S", help="Seconds until a part is closed.")
]
Task = Annotated[
    str | None,
    _option(FOLDER, metavar="I/N", help="Do the I-th of N shares; I from 1, same N in all."),
]
Restart = Annotated[
    bool, _option(FOLDER, "--restart", help="Delete the parts of another job and begin anew.")
]
Check = Annotated[
    bool, _option(FOLDER, "--check", help="Read the folder INPUT back and check every row.")
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH_OR_ID",
        help="A checkpoint's folder or repository id. Required.",
        show_default=False,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Tokens per batch at most. Default: chosen for the device."
    ),
]

PromptName = Annotated[
    str | None,
    _option(VECTORS, metavar="NAME", help="A prompt of the checkpoint to prepend to each text."),
]
Prompt = Annotated[
    str | None, _option(VECTORS, metavar="TEXT", help="Your own prompt to prepend to each text.")
]
MatryoshkaDim = Annotated[
    int | None,
    _option(VECTORS, min=1, metavar="N", help="Shorten vectors as the checkpoint prescribes."),
]
TruncateDim = Annotated[
    int | None,
    _option(VECTORS, min=1, metavar="N", help="Keep only the first N values of a vector."),
]
Normalize = Annotated[
    bool, _option(VECTORS, "--normalize", help="Scale the final vectors to length 1.")
]
VectorPrecision = Annotated[
    Precision,
    _option(VECTORS, "--precision", help="Type of the written vectors. Default: float32."),
]
Ranges = Annotated[
    str | None,
    _option(
        VECTORS,
        metavar="FILE.npy",
        help="(2, dim): minimum and maximum of each column, for int8 and uint8.",
    ),
]
ChunkTokens = Annotated[
    int | None,
    _option(
        LONG,
        "--chunks",
        min=1,
        metavar="N",
        help="A row and a vector for each chunk of at most N tokens, with its characters.",
    ),
]
ChunkOverlap = Annotated[
    int | None,
    _option(LONG, min=0, metavar="N", help="Tokens that a chunk shares with the one before."),
]
MaxLength = Annotated[
    int | None,
    _option(LONG, min=1, metavar="N", help="Tokens per text. Default: the checkpoint's limit."),
]
Truncation = Annotated[
    Truncate,
    _option(
        LONG,
        "--truncate",
        help="Longer texts: cut at the end (default), refuse, pool over all chunks, or average "
        "windows.",
    ),
]
