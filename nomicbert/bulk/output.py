"""Output files: choice of the format and its writer, and atomic writing.

Where in the flow: `nomicbert embed` opens its outputs here before it loads a model, so that an
output that cannot be written fails at once.
"""

import io
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from nomicbert.bulk.writing import Vectors, Write

STDOUT = "-"
BUFFER = 1 << 20


class OutputFormat(str, Enum):
    """Values of --output-format."""

    npy = "npy"
    jsonl = "jsonl"
    parquet = "parquet"


SUFFIXES = {f".{form.value}": form for form in OutputFormat} | {".ndjson": OutputFormat.jsonl}


def choose_output_format(path: str, given: OutputFormat | None) -> OutputFormat:
    """The format of an output: `given`, else by the suffix; JSONL for a stream.

    Raises: ValueError: a folder, an unknown suffix, or a format that a stream cannot take.
    """
    refuse_folder(path)
    if is_stream(path):
        if given not in (None, OutputFormat.jsonl):
            raise ValueError(
                f"{label(path)} is a stream, which supports jsonl only: {given.value} needs a file"
            )
        return OutputFormat.jsonl
    form = given or SUFFIXES.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(
            f"the output {path} has no known suffix: end it in .npy, .jsonl or .parquet, or in / "
            f"for a folder of parts, or pass --output-format {', '.join(OutputFormat)}"
        )
    return form


def refuse_folder(path: str) -> None:
    """Raise a ValueError if an output path is a folder."""
    if os.path.isdir(path):
        raise ValueError(f"the output {path} is a folder: name a file in it")


def label(path: str) -> str:
    """An output's name in messages."""
    return "standard output" if path == STDOUT else path


def is_stream(path: str) -> bool:
    """Whether an output is written directly: standard output, a pipe, a device."""
    if is_stdout(path):
        return True
    with suppress(OSError):
        mode = os.stat(path).st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def is_stdout(path: str) -> bool:
    """Whether standard output goes to this file, as it always does for /dev/stdout."""
    if path == STDOUT:
        return True
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Open an output; a file appears under its name only after the block succeeded.

    It is written to a temporary file in the same folder, so that the renaming is atomic. The
    temporary file is removed if the block fails. Streams are written directly.

    Raises: ValueError: it cannot be opened. OSError: writing failed.
    """
    refuse_folder(path)
    # replaces the target of a symbolic link, not the link
    final = None if is_stream(path) else Path(os.path.realpath(path))
    temporary = final and final.with_name(f".{final.name[:40]}.{secrets.token_hex(4)}.tmp")
    if final is not None and not final.parent.is_dir():
        raise ValueError(f"the output's folder {final.parent} does not exist: create it first")
    try:
        try:
            file = io.BufferedWriter(_open_raw(path, temporary), BUFFER)
        except OSError as error:
            raise ValueError(f"cannot write {label(path)}: {error.strerror}") from error
        try:
            yield file
            file.flush()
            if final is not None and temporary is not None:
                with _named(path):
                    if final.exists():
                        os.chmod(temporary, stat.S_IMODE(final.stat().st_mode))
                    # some filesystems report a full disk only here
                    os.fsync(file.fileno())
                    os.replace(temporary, final)
        finally:
            with suppress(OSError):
                file.close()  # may raise again, because it retries the failed write
    finally:
        if temporary is not None:
            with suppress(OSError):  # a folder that cannot be written to has no such file either
                temporary.unlink()


def _open_raw(path: str, temporary: Path | None) -> io.RawIOBase:
    if temporary is not None:
        return _NamedFile(path, temporary, "xb")
    if is_stdout(path):
        return _NamedFile(path, os.dup(1), "wb")
    return _NamedFile(path, path, "wb")


class _NamedFile(io.FileIO):
    """A file whose write errors name the file."""

    def __init__(self, path: str, target: str | Path | int, mode: str) -> None:
        super().__init__(target, mode)
        self._path = path

    def write(self, data: Any) -> int:
        with _named(self._path):
            return super().write(data)


@contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has closed the pipe: not an error to report
    except OSError as error:
        raise OSError(f"cannot write {label(path)}: {error.strerror}") from error


def open_writer(
    form: OutputFormat,
    outputs: Sequence[BinaryIO],
    empty: "Vectors",
    *,
    field: str = "text",
    whole: bool = True,
    schema: Any = None,
) -> "AbstractContextManager[Write]":
    """The writer of a format.

    Args:
        form: of the output.
        outputs: the file of the vectors; for .npy optionally a second one for the other fields.
        empty: (0, width), of the dtype of the vectors to come.
        field: name of the field that holds the text.
        whole: all fields of the input are carried.
        schema: the columns of Parquet, from `parquet.schema_of`.
    """
    if form is OutputFormat.parquet:
        from nomicbert.bulk.parquet import parquet_writer  # needs pyarrow

        return parquet_writer(outputs[0], empty, schema)
    from nomicbert.bulk.writing import jsonl_writer, npy_writer  # needs numpy

    if form is OutputFormat.jsonl:
        return jsonl_writer(outputs[0], empty, whole)
    return npy_writer(outputs[0], empty, outputs[1] if outputs[1:] else None, field)
