"""`nomicbert help`: a page of the manual in the terminal.

Where in the flow: the pages are the Markdown files of docs/, which a wheel holds next to the code.
"""

import difflib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from nomicbert.cli import console

EXAMPLES = """\b
Examples:
  nomicbert help
  nomicbert help embed
  nomicbert help backends | grep int8
"""
WIDTH = 100


def pages() -> dict[str, Path]:
    """All pages: name -> file."""
    return {path.stem: path for path in sorted(folder().glob("*.md"))}


def manual(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="PAGE",
            help="A command, or another page of the list.",
            autocompletion=lambda: list(pages()),
        ),
    ] = None,
) -> None:
    """Show a page of the manual; without PAGE, list all pages.

    On a terminal the page is formatted and shown by the pager, elsewhere it is Markdown.
    """
    known = pages()
    if page is None:
        width = max(map(len, known))
        for name, path in known.items():
            console.put(f"{name:<{width}}  {_title(path)}")
        return
    if page not in known:
        near = difflib.get_close_matches(page, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"the manual has no page {page!r}: {hint}")
    text = known[page].read_text(encoding="utf-8")
    if not console.is_terminal(sys.stdout):
        console.put(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "FRX")  # show colours, and end after a page that fits
    # Ctrl-C is the pager's: Python waits for it, if the signal is a KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    terminal = Console()
    with terminal.pager(styles=True):
        terminal.print(Markdown(text, code_theme="ansi_dark"), width=min(WIDTH, terminal.width))


def folder() -> Path:
    """The folder of the pages: in a clone next to the package, in a wheel inside of it.

    Raises: ImportError: there is none.
    """
    package = Path(__file__).parents[1]
    for place in (package / "docs", package.parent / "docs"):
        if (place / "embed.md").is_file():
            return place
    raise ImportError("the pages of the manual are not installed: install nomicbert again")


def _title(path: Path) -> str:
    """The first heading of a page."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
