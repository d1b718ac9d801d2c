"""The command line: one file a command, put together here.

Where in the flow: the outermost room; it calls the package and nothing calls it. A command is a
function in a file of its own with `EXAMPLES` beside it, and one line in the table below adds it.
Its file imports what needs torch inside functions, so that help and completion come at once.
typer is imported in this folder only. How a command ends is `console`'s.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from nomicbert import __version__
from nomicbert.cli import bench, console, demo, embed, info, tune, verify

app = typer.Typer(
    name="nomicbert",
    help="Text embeddings with NomicBERT and BERT checkpoints.",
    epilog="Set NOMICBERT_TRACEBACK=1 to see the whole traceback of an error.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "embed": (embed.embed, embed.EXAMPLES),
    "info": (info.info, info.EXAMPLES),
    "demo": (demo.demo, demo.EXAMPLES),
    "bench": (bench.bench, bench.EXAMPLES),
    "tune": (tune.tune, tune.EXAMPLES),
    "verify": (verify.verify, verify.EXAMPLES),
}
for _name, (_command, _examples) in COMMANDS.items():
    app.command(_name, epilog=_examples)(_command)


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
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say on stderr what the library decides, and why.")
    ] = False,
) -> None:
    if verbose:
        console.be_verbose()


def main() -> None:
    """Run the command line: the entry point of the `nomicbert` script."""
    console.run(lambda: app(prog_name="nomicbert"))
