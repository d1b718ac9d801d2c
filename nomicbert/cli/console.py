"""How the command line speaks on stderr and how it ends: one line each, and an exit code.

Where in the flow: around the whole command. Errors, log messages and Python's warnings come out as
one line that begins with "nomicbert:". What is no user's mistake and no trouble of the machine
keeps its traceback, which is Python's own way to end: exit code 1.

Source: 128 + the signal's number is how shells count; SIG_IGN is what nohup and a script's
background jobs hand down.
"""

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer

from nomicbert.errors import NomicBertError, WorkerError

# Exit codes beside 0, and 128 + the number of the signal that ended the command.
FAILED = 1  # the machine refused: a full disk, a missing right, a pipe that nobody reads any more
USAGE_ERROR = 2  # an argument, a file or an installation that the user can put right

# Ctrl-C, a closed terminal (which Windows does not know), and `kill`.
ENDINGS = (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIGTERM)

LOGGERS = ("nomicbert", "nomicbert_kernels")


def run(command: Callable[[], object]) -> None:
    """Run the command line, and end as the table above says.

    Args:
        command: takes no argument; ends by returning or with SystemExit.

    Raises: SystemExit, and whatever can only be a fault of ours; with NOMICBERT_TRACEBACK=1 every
        error.
    """
    try:
        with _signals_as_exits(), _notices_as_lines():
            try:
                command()
            finally:
                _flush_stdout()
    except (NomicBertError, ImportError, OSError, RuntimeError, ValueError) as error:
        code = _exit_code(error)
        if code is None or os.environ.get("NOMICBERT_TRACEBACK"):
            raise
        if not isinstance(error, BrokenPipeError):  # as when `head` has seen enough
            say(_describe(error))
        sys.exit(code)


def put(text: str) -> None:
    """Write text to standard output."""
    with _naming_stdout():
        typer.echo(text)


def say(text: str) -> None:
    """Write one line to stderr, above a progress bar where one is shown."""
    line = f"nomicbert: {' '.join(filter(None, map(str.strip, text.splitlines())))}"
    bars: Any = sys.modules.get("tqdm")
    if bars is None:
        typer.echo(line, err=True)
    else:
        bars.tqdm.write(line, file=sys.stderr)


def be_verbose() -> None:
    """Say what the library decides, too, until the command ends."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def _exit_code(error: Exception) -> int | None:
    """The code that an error ends with; None for a fault of ours."""
    if isinstance(error, WorkerError):
        return FAILED
    if isinstance(error, OSError) and not isinstance(error, NomicBertError | ValueError):
        return FAILED
    if isinstance(error, RuntimeError) and not isinstance(error, NomicBertError):
        import torch

        from nomicbert_kernels import BackendError

        if isinstance(error, torch.OutOfMemoryError):
            return FAILED
        # from within an op, or the search of `tune`, it comes as the kernels raise it
        return USAGE_ERROR if isinstance(error, BackendError) else None
    return USAGE_ERROR


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        return error.strerror + name
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def _flush_stdout() -> None:
    if sys.stdout is None:  # closed before we began, as a daemon's may be
        return
    try:
        with _naming_stdout():
            sys.stdout.flush()
    except OSError:
        # Python would try the rest again at its end, and complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _exit_by(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        say("interrupted")
    sys.exit(128 + number)


@contextlib.contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Let these signals end the command as sys.exit does: what cleans up behind it runs."""
    wanted = [
        number for number in ENDINGS if signal.getsignal(number) not in (signal.SIG_IGN, None)
    ]
    before = {number: signal.signal(number, _exit_by) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Lines(logging.Handler):
    """Log messages as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def _notices_as_lines() -> Iterator[None]:
    """Show log messages and Python's warnings without the line of code that they come from."""
    lines, show = _Lines(), warnings.showwarning
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    warnings.showwarning = lambda message, *_args, **_kwargs: say(str(message))
    for name in LOGGERS:
        logging.getLogger(name).addHandler(lines)
    try:
        yield
    finally:
        warnings.showwarning = show
        for name, level in levels.items():
            logging.getLogger(name).removeHandler(lines)
            logging.getLogger(name).setLevel(level)
