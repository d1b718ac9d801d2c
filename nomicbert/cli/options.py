"""Options that several commands share."""

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
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Do not use the network.")]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; auto picks a GPU if there is one."),
]
Devices = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ...; auto picks a GPU if there is one. Repeat to use several.",
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        help="Dtype of the model; auto: that of the checkpoint; fastest: the device's fastest."
    ),
]
Backend = Annotated[BackendName, typer.Option(help="Implementation of the ops.")]
RotaryScalingFactor = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="ALPHA", help="Factor of dynamic NTK scaling. Default: the checkpoint's."
    ),
]
