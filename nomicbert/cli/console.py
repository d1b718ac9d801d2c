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
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

import typer

from nomicbert.errors import NomicBertError, WorkerError

# Exit codes other than 0 and 128 + the number of the signal that ended the command.
FAILED = 1  # a fault of the machine: a full disk, a missing permission, a closed pipe
USAGE_ERROR = 2  # an argument, a file or an installation that the user can correct

# Ctrl-C, a closed terminal (SIGHUP, which Windows lacks), and `kill`.
ENDINGS = {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIGTERM}

LOGGERS = ("nomicbert", "nomicbert_kernels")

# Seconds before a progress bar appears.
DELAY = 2.0


@dataclass
class _Style:
    """How the running command reports.

    Attributes:
        quiet: only warnings and errors.
        reword: applied to each message.
    """

    quiet: bool = False
    reword: Callable[[str], str] = str


_style = _Style()


def run(command: Callable[[], object]) -> None:
    """Run the command line, and map errors to the exit codes above.

    Args:
        command: takes no argument; ends by returning or with SystemExit.

    Raises: SystemExit, and any error that is a bug of ours; with NOMICBERT_TRACEBACK=1 every error.
    """
    _close_gaps()
    _style.quiet, _style.reword = False, str
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
    """Write a warning or an error to stderr, above the progress bar if there is one.

    It is one line; a terminal gets it broken between words.
    """
    if sys.stderr is None:  # closed by whoever started the command
        return
    words = " ".join(filter(None, map(str.strip, text.splitlines())))
    line = filled(f"nomicbert: {_style.reword(words)}")
    bars = _bars()
    if bars is None:
        typer.echo(line, err=True)
    else:
        bars.write(line, file=sys.stderr)


def _bars() -> Any:
    """The class of tqdm's bars; None while it is not imported, as a signal may find it."""
    return getattr(sys.modules.get("tqdm"), "tqdm", None)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; it is None if it was closed from the start."""
    return stream is not None and stream.isatty()


def filled(line: str) -> str:
    """A line for stderr, which a terminal gets broken between words."""
    if not is_terminal(sys.stderr):
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def tell(text: str) -> None:
    """`say` what was done or found, which --quiet leaves out."""
    if not _style.quiet:
        say(text)


@contextlib.contextmanager
def open_bar(doing: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """A tqdm bar on a terminal, unless the command is quiet.

    Args:
        doing: what is shown before the bar.
        unit: of what is counted, with a space before it.
        total: if it is known.
    """
    from tqdm import tqdm

    hidden = True if _style.quiet else None  # None: shown on a terminal only
    with tqdm(total=total, desc=doing, unit=unit, disable=hidden, delay=DELAY) as bar:
        yield bar


def be_verbose() -> None:
    """Show the library's INFO messages until the command ends."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def be_quiet() -> None:
    """Show nothing but warnings and errors until the command ends."""
    _style.quiet = True
    # read when huggingface_hub is imported, which comes later
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def is_quiet() -> bool:
    """Whether the command was asked to be quiet."""
    return _style.quiet


def reword_by(change: Callable[[str], str]) -> None:
    """Apply a function to each message until the command ends."""
    _style.reword = change


def _close_gaps() -> None:
    """Give a closed stdout or stderr its number back, so that no file of ours takes it.

    It is opened for reading: writing to it stays an error.
    """
    for number in (1, 2):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDONLY)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)


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
    for bar in list(getattr(_bars(), "_instances", ())):
        bar.leave = False  # else the message would be followed by what the bar showed last
        bar.close()
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
