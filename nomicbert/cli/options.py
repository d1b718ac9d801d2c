"""The options that several commands take, each with one name, one meaning and one line of help."""

from enum import Enum
from typing import Annotated

import typer


class DtypeName(str, Enum):
    """What --dtype takes."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    auto = "auto"
    fastest = "fastest"


class BackendName(str, Enum):
    """What --backend takes."""

    auto = "auto"
    reference = "reference"
    torch = "torch"
    int8 = "int8"
    triton = "triton"
    fp8 = "fp8"
    invariant = "invariant"


Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of the repository.")
]
LocalFilesOnly = Annotated[
    bool, typer.Option("--local-files-only", help="Never reach for the network.")
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one.")
]
Devices = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="NAME",
        help="As cuda:1 or cpu; auto: a GPU if there is one; given again: also on that one.",
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(help="Of the model; auto: the checkpoint's own; fastest: the device's best."),
]
Backend = Annotated[BackendName, typer.Option(help="The functions that compute.")]
RotaryScalingFactor = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="ALPHA", help="Of dynamic NTK scaling, in place of the checkpoint's own."
    ),
]
