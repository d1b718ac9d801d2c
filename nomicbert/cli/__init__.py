"""The command line: one file a command, put together here.

Where in the flow: the outermost room; it calls the package and nothing calls it. A command is a
function in a file of its own with `EXAMPLES` beside it, and one line in the table below adds it.
typer is imported in this folder only.

A user's mistake (USER_ERRORS) becomes one line on stderr and exit code 2, Ctrl-C
exit code 130; NOMICBERT_TRACEBACK=1 shows the whole traceback instead.
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer

from nomicbert import __version__
from nomicbert.cli import demo
from nomicbert.errors import NomicBertError
from nomicbert_kernels import BackendError

USAGE_ERROR = 2
INTERRUPTED = 130
USER_ERRORS = (NomicBertError, BackendError, ValueError)

Arguments = ParamSpec("Arguments")

app = typer.Typer(
    name="nomicbert",
    help="Text embeddings with NomicBERT and BERT checkpoints.",
    epilog="Set NOMICBERT_TRACEBACK=1 to see the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _one_line_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make a command end with one line and an exit code where a user's mistake raises."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except USER_ERRORS as error:
            if os.environ.get("NOMICBERT_TRACEBACK"):
                raise
            typer.echo(f"nomicbert: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(USAGE_ERROR) from None

    return guarded


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo.demo, demo.EXAMPLES),
}
for _name, (_command, _examples) in COMMANDS.items():
    app.command(_name, epilog=_examples)(_one_line_errors(_command))


def _print_version(wanted: bool) -> None:
    """Print the installed version and stop."""
    if wanted:
        typer.echo(f"nomicbert {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say on stderr what the library decides, and why.")
    ] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")


def main() -> None:
    """Run the command line: the entry point of the `nomicbert` script."""
    # A warning is for the person at the terminal: its text, without the line of code it came from.
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"nomicbert: {message}\n"
    app(prog_name="nomicbert")
