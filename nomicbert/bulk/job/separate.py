"""Inputs and output of a job must not overlap.

Where in the flow: the first check of `plan`. A job that reads its own parts would never end with
the rows it began with.
"""

import os
from collections.abc import Sequence

from nomicbert.bulk.inputs.sources import Source
from nomicbert.bulk.inputs.streams import STDIN
from nomicbert.bulk.places import place


def refuse_streams(inputs: Sequence[str]) -> None:
    """Refuse inputs that can be read only once.

    Raises: ValueError: the message names the input.
    """
    for name in inputs:
        if name == STDIN or (os.path.exists(name) and not _is_stored(name)):
            what = "standard input" if name == STDIN else f"the input {name}, a pipe,"
            raise ValueError(
                f"{what} cannot be read again after an interruption: write it to a file first, or "
                "choose a single file as output"
            )


def keep_apart(inputs: Sequence[str], sources: Sequence[Source], output: str) -> list[Source]:
    """Refuse inputs inside the output, an output inside an input, and names that are no Unicode.

    What a pattern matches inside the output is left out: from the second time on that may be the
    parts.

    Args:
        inputs: as given.
        sources: found for them.
        output: folder of the parts.

    Returns: the sources outside the output.
    Raises: ValueError: the message names the input.
    """
    outside = []
    for name in inputs:
        if is_inside(output, name) and place(name).kind() == "folder":
            raise ValueError(
                f"the output {output} is inside the input {name}, so its parts would be read as "
                "inputs: choose a folder elsewhere"
            )
    for source in sources:
        at = source.place.identity
        if not is_inside(at, output):
            outside.append(source)
        elif any(is_inside(at, name) for name in inputs):  # no pattern
            raise ValueError(
                f"the input {source.name} is inside the output {output}: choose another output"
            )
    if not outside:
        raise ValueError(f"all inputs are inside the output {output}: choose another output")
    refuse_names(outside)
    return outside


def refuse_names(sources: Sequence[Source]) -> None:
    """Refuse names of sources that are no Unicode, where rows name their source.

    Raises: ValueError: the message names the input.
    """
    for source in sources:
        try:
            source.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the name of the input {source.name!r} is not valid Unicode, and each row names "
                "its source: rename it"
            ) from error


def is_inside(inner: str, outer: str) -> bool:
    """Whether a path or URL is another one, or lies below it."""
    below, above = (f"{place(name).identity.rstrip('/')}/" for name in (inner, outer))
    return below.startswith(above)


def _is_stored(name: str) -> bool:
    return os.path.isfile(name) or os.path.isdir(name)
