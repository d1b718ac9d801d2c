"""What all commands of the command line have in common, added to typer's classes.

- `--verbose` and `--quiet` stand before or after the command.
- Short names of dtypes: `fp16` for `float16`.
- Errors name the command's options, where the library names its own arguments.

Where in the flow: `cli` makes its group and commands of these classes.
"""

import difflib
import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nomicbert.cli import console
from nomicbert.loading.hub import refuse_other_folder

# The class of all errors about the command line, which typer gets from click or brings itself.
UsageError: Any = typer.BadParameter.__base__
ERROR = "Error: "  # what is printed before them
DTYPES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}
# pydantic, which newer versions of typer convert values with, puts this before its messages.
CONVERTED = "Value error, "
# The message for a value that is none of a few, as click and typer word it.
CHOICE = re.compile(r"'(?P<given>[^']*)' is not one of (?P<known>'.*')\.?")
# Advice of the library that is about Python only -> the same for the command line.
INSTEAD = {
    r", or call encode_query and encode_document": "",
    r" \(or max_seq_length\)": "",
    r"(?<![\w-])ranges (?=must|apply)": "--ranges ",
}
# The group of options that have none.
OTHERS = "Model and computation"


def full_name(value: str) -> str:
    """The value for which a short name stands; any other value as it is."""
    return DTYPES.get(value, value)


def _verbose(wanted: bool) -> None:
    if wanted:
        console.be_verbose()


def _quiet(wanted: bool) -> None:
    if wanted:
        console.be_quiet()


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_verbose,
        expose_value=False,
        help="Log the library's decisions (backend, dtype, batch size) to stderr.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_quiet,
        expose_value=False,
        help="Nothing on stderr but warnings and errors.",
    ),
]


def _everywhere() -> list[Any]:
    """The options of every command, as typer makes them of a function's parameters."""
    made = typer.Typer(add_completion=False)

    @made.command()
    def command(verbose: Verbose = False, quiet: Quiet = False) -> None:
        """A function that is never called."""

    return typer.main.get_command(made).params


class Command(TyperCommand):
    """A command with the options of every command, whose messages name its own options."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """See TyperCommand."""
        super().__init__(*arguments, **keywords)
        self.params += _everywhere()

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless its model is a folder that is none."""
        console.reword_by(lambda message: naming_options(message, self.params))
        for name in ("model", "reranker"):
            if isinstance(model := ctx.params.get(name), str):
                refuse_other_folder(model)
        return super().invoke(ctx)


class Grouped(Command):
    """A command whose help lists its options by group, `rich_help_panel`, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section per group, in the order of the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                group = getattr(parameter, "rich_help_panel", None) or OTHERS
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


class Commands(TyperGroup):
    """The group of all commands, which words their errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if isinstance(error, typer.BadParameter):
                error.message = plain(error.message)
            message = console.filled(f"{ERROR}{error.format_message()}").removeprefix(ERROR)
            raise UsageError(message, error.ctx) from error


def plain(message: str) -> str:
    """A message about an option's value, with the nearest of the known values."""
    message = message.removeprefix(CONVERTED)
    message = message.replace("Input should be a valid", "must be a valid")
    message = message.partition(", unable to parse string as")[0]
    message = message.replace("Input should be greater than or equal to", "must be at least")
    message = message.replace("Input should be less than or equal to", "must be at most")
    if (choice := CHOICE.fullmatch(message)) is None:
        return message
    known = re.findall(r"'([^']*)'", choice["known"])
    near = difflib.get_close_matches(choice["given"], known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{choice['given']!r} is not one of {', '.join(map(repr, known))}{hint}"


def naming_options(message: str, parameters: list[Any]) -> str:
    """Name options in a message of the library, which names arguments.

    What is quoted, or part of a path, is left alone, and names of one word, which may be no names.

    Args:
        message: of an error, a warning or the log.
        parameters: of the command, each with its `name` and `opts`.
    """
    for python, here in INSTEAD.items():
        message = re.sub(python, here, message)
    for parameter in parameters:
        option = max(parameter.opts, key=len)
        if "_" in (parameter.name or "") and option.startswith("--"):
            name = rf"(?<![\w'\"/.-]){re.escape(parameter.name)}(?![\w'\"/.-])"
            message = re.sub(name, option, message)
    return message
