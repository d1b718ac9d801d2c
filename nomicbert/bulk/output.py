"""Where vectors go: the format of an output, and files that appear whole or not at all.

Where in the flow: `nomicbert embed` opens its outputs here before it loads a model, so that one
which cannot be written is refused at once.
"""

import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

STDOUT = "-"
BUFFER = 1 << 20


class OutputFormat(str, Enum):
    """What --output-format takes."""

    npy = "npy"
    jsonl = "jsonl"
    parquet = "parquet"


SUFFIXES = {f".{form.value}": form for form in OutputFormat} | {".ndjson": OutputFormat.jsonl}


def choose_output_format(path: str, given: OutputFormat | None) -> OutputFormat:
    """The format of an output: the one given, else by the suffix; JSONL for a stream.

    Raises: ValueError: a folder, a suffix that no format has, or one that a stream cannot take.
    """
    refuse_folder(path)
    if is_stream(path):
        if given not in (None, OutputFormat.jsonl):
            raise ValueError(
                f"{label(path)} is a stream, which takes jsonl only: {given.value} needs a file"
            )
        return OutputFormat.jsonl
    form = given or SUFFIXES.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(
            f"the output {path} has no known suffix: end it in .npy, .jsonl or .parquet, or say "
            f"--output-format {', '.join(OutputFormat)}"
        )
    return form


def refuse_folder(path: str) -> None:
    """Raise a ValueError if there is a folder where a file is to be written."""
    if os.path.isdir(path):
        raise ValueError(f"the output {path} is a folder: name a file in it")


def label(path: str) -> str:
    """An output's name in messages."""
    return "standard output" if path == STDOUT else path


def is_stream(path: str) -> bool:
    """Whether an output is written straight: standard output, a pipe, a device."""
    if path == STDOUT or _is_stdout(path):
        return True
    with suppress(OSError):
        mode = os.stat(path).st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _is_stdout(path: str) -> bool:
    """Whether this is the file that standard output goes to, as /dev/stdout is by definition."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Open an output; a file stands under its name only after the block has ended well.

    It is written under another name in the same folder (so that the renaming is one step), and that
    is removed whatever ends the block. Streams are written straight.

    Raises: ValueError: it cannot be opened. OSError: it cannot be written any further.
    """
    refuse_folder(path)
    # the file that a link leads to is replaced, not the link
    final = None if is_stream(path) else Path(os.path.realpath(path))
    beside = final and final.with_name(f".{final.name[:40]}.{secrets.token_hex(4)}.tmp")
    if final is not None and not final.parent.is_dir():
        raise ValueError(f"the output's folder {final.parent} does not exist: make it first")
    try:
        try:
            file = io.BufferedWriter(_open_raw(path, beside), BUFFER)
        except OSError as error:
            raise ValueError(f"cannot write {label(path)}: {error.strerror}") from error
        try:
            yield file
            file.flush()
            if final is not None and beside is not None:
                with _named(path):
                    if final.exists():
                        os.chmod(beside, stat.S_IMODE(final.stat().st_mode))
                    # some filesystems tell only now that there was no room
                    os.fsync(file.fileno())
                    os.replace(beside, final)
        finally:
            with suppress(OSError):
                file.close()  # would try once more to write what did not fit
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def _open_raw(path: str, beside: Path | None) -> io.RawIOBase:
    if beside is not None:
        return _NamedFile(path, beside, "xb")
    if path == STDOUT or _is_stdout(path):
        return _NamedFile(path, os.dup(1), "wb")
    return _NamedFile(path, path, "wb")


class _NamedFile(io.FileIO):
    """A file whose errors in writing say which file it was."""

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
        raise  # nobody reads any more: no failure to report
    except OSError as error:
        raise OSError(f"cannot write {label(path)}: {error.strerror}") from error
