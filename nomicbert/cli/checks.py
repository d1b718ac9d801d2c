"""Checks of `nomicbert embed` that run before a model is loaded.

Where in the flow: between the command's options and the work. Each function raises a ValueError
that names the option to change.
"""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.streams import STDIN
from nomicbert.bulk.job.separate import is_inside
from nomicbert.bulk.output import STDOUT, is_stdout, is_stream, label
from nomicbert.bulk.places import LocalPlace, is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from nomicbert.bulk.inputs.sources import Source

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


def required(**options: str | None) -> list[str]:
    """The values of options that must be given, named as in Python."""
    for name, value in options.items():
        if value is None:
            raise ValueError(f"the option --{name} is missing (nomicbert embed --help)")
    return [value for value in options.values() if value is not None]


def is_folder(output: str) -> bool:
    """Whether an output is a folder of parts.

    Raises: ValueError: a URL that is none.
    """
    if is_url(output) and not output.endswith("/"):
        raise ValueError(
            f"the output {output} is a URL, and only a folder of parts can be one: end it in /"
        )
    return output.endswith("/") or os.path.isdir(output)


def refuse_other_kind(output: str, to_folder: bool, given: dict[str, object]) -> None:
    """Refuse options of the other kind of output.

    Args:
        output: file or folder.
        to_folder: which of the two.
        given: options of the other kind; those that are not None have been given.
    """
    for name in (name for name, value in given.items() if value is not None):
        option = f"--{name.replace('_', '-')}"
        if name == "overwrite":
            advice = f"to begin {output} anew, pass --restart"
        elif name == "chunks":
            advice = f"end {output} in .jsonl or .parquet instead of /"
        elif name == "restart":
            advice = f"to replace {output}, pass --overwrite"
        elif to_folder:
            advice = f"{output} is a folder of Parquet files"
        else:
            advice = f"end {output} in / to write a folder of parts"
        kind = "a file" if to_folder else "a folder"
        raise ValueError(f"{option} is for an output that is {kind}: {advice}")


def refuse_with_check(inputs: list[str] | None, given: list[str]) -> None:
    """Refuse --check without a folder, or with options of a job.

    Args:
        inputs: as given.
        given: the options on the command line, named as in Python.
    """
    if not inputs:
        raise ValueError("--check needs the folder to read: nomicbert embed --check FOLDER")
    for name in (name for name in given if name not in ("inputs", "check", "json")):
        raise ValueError(
            f"--{name.replace('_', '-')} does not go with --check, which reads a folder back: "
            "nomicbert embed --check FOLDER"
        )


def refuse_json_on_stdout(output: str, json: bool) -> None:
    """Refuse two outputs in one stream."""
    if json and is_stdout(output):
        raise ValueError(
            "--json and the vectors would both be written to standard output: name a file with "
            "--output, or drop --json"
        )


def refuse_without_chunks(
    chunks: int | None, overlap: int | None, truncate: str, devices: list[str]
) -> None:
    """Refuse options that go with --chunks only, or not with it."""
    if chunks is None and overlap is not None:
        raise ValueError("--chunk-overlap is of the chunks that --chunks asks for: give both")
    if chunks is None:
        return
    if truncate != "end":
        raise ValueError(f"--truncate {truncate} is for a vector per text: drop it or --chunks")
    if len(devices) > 1:
        raise ValueError("--chunks runs on one device: give --device once")


def column_names(columns: str) -> tuple[str, ...] | None:
    """The fields that --columns names; None for all."""
    if columns in ("all", "none"):
        return None if columns == "all" else ()
    names = tuple(name.strip() for name in columns.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"--columns {columns!r} must be all, none, or different names with commas between them"
        )
    return names


def refuse_field_of_text(sources: "Sequence[Source]", field: str | None) -> None:
    """Plain text has no fields, so --field is refused where all inputs are text."""
    if field is not None and all(source.format is InputFormat.text for source in sources):
        raise ValueError(
            f"--field {field} is for inputs with fields, but {sources[0].name} is read as text: "
            "drop it, or pass --input-format jsonl"
        )


def refuse_inside(output: str, inputs: list[str]) -> None:
    """Refuse an output inside an input folder, where another run would read it."""
    for name in inputs:
        if os.path.isdir(name) and is_inside(output, name):
            raise ValueError(
                f"the output {output} is inside the input {name}, so another run would read it as "
                "an input: choose a place elsewhere"
            )


def refuse_existing(outputs: list[str], overwrite: bool) -> None:
    """Refuse to replace files without --overwrite."""
    for output in outputs:
        if not overwrite and not is_stream(output) and os.path.exists(output):
            raise ValueError(f"the output {output} exists: pass --overwrite to replace it")


def refuse_left_over(companions: list[str]) -> None:
    """Refuse files that would seem to belong to the new output."""
    for path in companions:
        if os.path.exists(path):
            raise ValueError(
                f"{path} exists from another run and does not belong to the new vectors: "
                "remove it, or choose another --output"
            )


def keep_apart(
    outputs: list[str], inputs: list[str], sources: "Sequence[Source]", ranges: str | None
) -> None:
    """Refuse to overwrite an input file.

    Args:
        outputs: files to write.
        inputs: as given.
        sources: found for them.
        ranges: file of --ranges.
    """
    written = {_identity(output, 1): output for output in outputs}
    read = [source.place.path for source in sources if isinstance(source.place, LocalPlace)]
    read += [path for path in (ranges, STDIN if STDIN in inputs else None) if path]
    for path in read:
        found = _identity(path, 0)
        if found is not None and found in written:
            raise ValueError(
                f"{label(written[found])} is an input and would be overwritten: choose another name"
            )


def _identity(path: str, standard: int) -> tuple[int, int] | None:
    """Device and inode of a regular file, "-" being a standard stream; None if there is none."""
    try:
        found = os.fstat(standard) if path in (STDIN, STDOUT) else os.stat(path)
    except OSError:
        return None  # opening it reports that, if it matters
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


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
