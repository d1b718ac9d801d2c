"""Output to stdout and stderr, signals and exit codes of the command line.

Where in the flow: around the whole command. Errors, log messages and Python's warnings are printed
to stderr as one line that begins with "nomicbert:". An error that neither the user nor the machine
caused is a bug: it keeps its traceback and Python's exit code 1.

Source: shells report a signal as 128 + its number; nohup and background jobs of scripts set
SIG_IGN.
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

# Exit codes other than 0 and 128 + the number of the signal that ended the command.
FAILED = 1  # a fault of the machine: a full disk, a missing permission, a closed pipe
USAGE_ERROR = 2  # an argument, a file or an installation that the user can correct

# Ctrl-C, a closed terminal (SIGHUP, which Windows lacks), and `kill`.
ENDINGS = (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIGTERM)

LOGGERS = ("nomicbert", "nomicbert_kernels")


def run(command: Callable[[], object]) -> None:
    """Run the command line, and map errors to the exit codes above.

    Args:
        command: takes no argument; ends by returning or with SystemExit.

    Raises: SystemExit, and any error that is a bug of ours; with NOMICBERT_TRACEBACK=1 every error.
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
        if not isinstance(error, BrokenPipeError):  # normal: `head` closes its pipe early
            say(_describe(error))
        sys.exit(code)


def put(text: str) -> None:
    """Write text to standard output."""
    with _naming_stdout():
        typer.echo(text)


def say(text: str) -> None:
    """Write one line to stderr, above the progress bar if there is one."""
    line = f"nomicbert: {' '.join(filter(None, map(str.strip, text.splitlines())))}"
    bars: Any = sys.modules.get("tqdm")
    if bars is None:
        typer.echo(line, err=True)
    else:
        bars.tqdm.write(line, file=sys.stderr)


def be_verbose() -> None:
    """Show the library's INFO messages until the command ends."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def _exit_code(error: Exception) -> int | None:
    """The exit code for an error; None for a bug of ours."""
    if isinstance(error, WorkerError):
        return FAILED
    if isinstance(error, OSError) and not isinstance(error, NomicBertError | ValueError):
        return FAILED
    if isinstance(error, RuntimeError) and not isinstance(error, NomicBertError):
        import torch

        from nomicbert_kernels import BackendError

        if isinstance(error, torch.OutOfMemoryError):
            return FAILED
        # ops and the search of `tune` raise the kernels' class, which is no NomicBertError
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
    if sys.stdout is None:  # a daemon may start without one
        return
    try:
        with _naming_stdout():
            sys.stdout.flush()
    except OSError:
        # otherwise Python flushes again at exit, and prints a second error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _exit_by(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        say("interrupted")
    sys.exit(128 + number)


@contextlib.contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Turn these signals into SystemExit, so that `finally` blocks run."""
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
    """Log handler that writes each message as a line to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def _notices_as_lines() -> Iterator[None]:
    """Print log messages and Python's warnings as plain lines, without their source line."""
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
