"""The command line: one module per command, assembled here.

Where in the flow: the outermost layer; it calls the package and nothing calls it. Each command is a
function in its own module, next to its `EXAMPLES`, and has one line in the table below. Imports
that load torch are inside the functions, so that help and completion stay fast. Only this folder
imports typer. `console` handles errors, signals and exit codes.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from nomicbert import __version__
from nomicbert.cli import (
    bench,
    console,
    demo,
    embed,
    export,
    info,
    manual,
    search,
    serve,
    tune,
    verify,
)
from nomicbert.cli import map as map_command
from nomicbert.cli.commands import Command, Commands, Grouped, Quiet, Verbose, full_name

app = typer.Typer(
    name="nomicbert",
    cls=Commands,
    epilog="The manual of a command: nomicbert help COMMAND. NOMICBERT_TRACEBACK=1 shows the whole "
    "traceback of an error.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": full_name,
    },
)

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "embed": (embed.embed, embed.EXAMPLES),
    "search": (search.search, search.EXAMPLES),
    "map": (map_command.draw, map_command.EXAMPLES),
    "info": (info.info, info.EXAMPLES),
    "demo": (demo.demo, demo.EXAMPLES),
    "bench": (bench.bench, bench.EXAMPLES),
    "tune": (tune.tune, tune.EXAMPLES),
    "verify": (verify.verify, verify.EXAMPLES),
    "serve": (serve.serve, serve.EXAMPLES),
    "export": (export.export, export.EXAMPLES),
    "help": (manual.manual, manual.EXAMPLES),
}
# Each option of `serve` can be set by a variable, as servers in containers are.
CONTEXT = {"serve": {"auto_envvar_prefix": "NOMICBERT"}}
# `embed` has options enough for groups.
CLASSES = {"embed": Grouped}
for _name, (_command, _examples) in COMMANDS.items():
    _class, _context = CLASSES.get(_name, Command), CONTEXT.get(_name)
    app.command(_name, cls=_class, epilog=_examples, context_settings=_context)(_command)


def _print_version(wanted: bool) -> None:
    """Print the installed version and stop."""
    if wanted:
        console.put(f"nomicbert {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Text embeddings with NomicBERT and BERT checkpoints."""


def main() -> None:
    """Entry point of the `nomicbert` script."""
    console.run(lambda: app(prog_name="nomicbert"))
