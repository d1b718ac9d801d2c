"""The arguments of `nomicbert search`: which of them is the question.

Where in the flow: `search` sorts its arguments here before anything is loaded. The last argument is
the question, unless it is a file, a folder or a pattern that matches. One that only looks like a
path is refused: it is more likely mistyped than a question.
"""

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from nomicbert.bulk.inputs.streams import STDIN
from nomicbert.bulk.place import has_wildcard
from nomicbert.bulk.places import is_url, place

# No spaces, and a separator of folders or a suffix.
PATH = re.compile(r"\S*[/\\]\S*|\S+\.\w{1,8}|[.~]\S*")
MISSING = (
    'no question: nomicbert search INPUT "question", or --questions FILE; on a terminal questions '
    "are asked for"
)


class Asked(NamedTuple):
    """What was given.

    Attributes:
        inputs: files, folders, patterns and URLs.
        questions: at least one; None: they are asked for on the terminal.
    """

    inputs: list[str]
    questions: list[str] | None


def sort_out(arguments: Sequence[str], questions: Sequence[str], file: str | None) -> Asked:
    """Tell inputs and questions apart.

    Args:
        arguments: of the command, in order.
        questions: of --question.
        file: of --questions, "-" for standard input.

    Raises: ValueError: there is no input or no question, or it cannot be told which is which.
    """
    inputs = list(arguments)
    asked = [*questions, *(_read(file) if file is not None else ())]
    if not asked and inputs and not _exists(inputs[-1]):
        last = inputs.pop()
        if PATH.fullmatch(last):
            raise ValueError(
                f"{last!r} is no file or folder here; if it is the question, pass it with "
                f"--question {last!r}"
            )
        if not inputs and last.strip():
            raise ValueError(
                f"there is no file or folder {last!r}; if it is the question, name the texts "
                f'before it: nomicbert search notes/ "{last}"'
            )
        asked = [last]
    if not inputs:
        raise ValueError(
            'name the texts to search: nomicbert search INPUT "question" (--help has examples)'
        )
    if empty := [number for number, one in enumerate(asked, 1) if not one.strip()]:
        raise ValueError(f"question {empty[0]} is empty")
    if not asked and not (sys.stdin and sys.stdin.isatty()):
        raise ValueError(MISSING)
    return Asked(inputs, asked or None)


def _read(file: str) -> list[str]:
    """The questions of a file, one per line; blank lines are none."""
    try:
        if file == STDIN:
            text = sys.stdin.read()
        else:
            with open(file, encoding="utf-8-sig") as opened:
                text = opened.read()
    except OSError as error:
        raise ValueError(f"cannot read --questions {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--questions {file} is not UTF-8: {error}") from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"--questions {file} holds no question")
    return found


def _exists(name: str) -> bool:
    """Whether an argument names an input: it exists, or is a pattern that matches, or a URL."""
    if is_url(name) or name == STDIN:
        return True
    try:
        at = place(name)
        return at.kind() is not None or (has_wildcard(name) and bool(at.glob()))
    except (OSError, ValueError):
        return False  # too long for a name, or with a NUL
