"""Checks of `nomicbert embed` that run before a model is loaded.

Where in the flow: between the command's options and the work. Each function raises a ValueError
that names the option to change.
"""

import importlib.util
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nomicbert.bulk.output import STDOUT, OutputFormat, label
from nomicbert.bulk.reading import STDIN, InputFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RANGES_ADVICE = (
    "the minimum and maximum of each column; make it from the vectors of a float32 run: "
    "python -c \"import numpy as np; v = np.load('vectors.npy'); "
    "np.save('ranges.npy', [v.min(0), v.max(0)])\""
)


def refuse_both(**options: object) -> None:
    """Raise if more than one of these options, named as in Python, has been given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)}, not both")


def text_field(form: InputFormat, field: str | None) -> str:
    """The JSONL field that holds the text. Plain text has no fields, so --field is refused."""
    if form is InputFormat.text and field is not None:
        raise ValueError(
            f"--field {field} is for JSONL, but the input is read as text: "
            "drop it, or pass --input-format jsonl"
        )
    return "text" if field is None else field


def output_files(output: str, form: OutputFormat, given: InputFormat) -> list[str]:
    """The output file, and for .npy from JSONL also the file for the other fields."""
    if form is not OutputFormat.npy:
        return [output]
    stem = output[:-4] if output.lower().endswith(".npy") else output
    meta = f"{stem}.meta.jsonl"
    if given is InputFormat.jsonl:
        return [output, meta]
    if os.path.exists(meta):
        raise ValueError(
            f"{meta} exists from another run and does not belong to the new vectors: "
            "remove it, or choose another --output"
        )
    return [output]


def keep_apart(outputs: list[str], inputs: list[str | None]) -> None:
    """Refuse to overwrite an input file."""
    for output in outputs:
        for path in filter(None, inputs):
            try:
                written = os.fstat(1) if output == STDOUT else os.stat(output)
                read = os.fstat(0) if path == STDIN else os.stat(path)
            except OSError:
                continue  # one of them does not exist: opening it reports that, if it matters
            if stat.S_ISREG(read.st_mode) and os.path.samestat(written, read):
                raise ValueError(
                    f"{label(output)} is an input and would be overwritten: choose another name"
                )


def need_pyarrow(output: str) -> None:
    """Refuse a Parquet output if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f'writing {output} needs pyarrow: pip install "nomicbert[parquet]"')


def read_ranges(
    path: str | None, precision: str, dim: int | None
) -> "npt.NDArray[np.float32] | None":
    """Read --ranges.

    Args:
        path: a .npy file, or None.
        precision: value of --precision.
        dim: width of the vectors, if an option sets it.

    Returns: (2, dim) fp32, or None.
    Raises: ValueError: missing, not readable, of another shape, or not used by this precision.
    """
    if path is None:
        if precision in ("int8", "uint8"):
            raise ValueError(f"--precision {precision} needs --ranges FILE.npy: {RANGES_ADVICE}")
        return None
    import numpy as np

    try:
        with Path(path).open("rb") as file:
            ranges = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"cannot read --ranges {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--ranges {path} is not a .npy file of numbers: {error}") from error
    if ranges.ndim != 2 or len(ranges) != 2 or ranges.dtype.kind not in "fiu":
        raise ValueError(
            f"--ranges {path} holds {ranges.dtype} {ranges.shape}, wanted (2, dim): {RANGES_ADVICE}"
        )
    from nomicbert.vectors.quantization import check

    found = check(precision, ranges, dim or ranges.shape[1])
    return None if found is None else found.numpy()
