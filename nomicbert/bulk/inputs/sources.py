"""Arguments -> the sources they name.

Where in the flow: the first step of a bulk job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nomicbert.bulk.inputs.formats import Compression, InputFormat, format_of_name
from nomicbert.bulk.places import Place, place


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows.

    Attributes:
        name: the path as the user gave it; for a file of a folder the folder's and the rest.
        place: where it is.
        format: of its rows.
        compression: of the whole file.
        sniffed: whether the format was recognised by content.
    """

    name: str
    place: Place
    format: InputFormat
    compression: Compression | None
    sniffed: bool


def find_sources(inputs: Sequence[str], input_format: InputFormat | None) -> list[Source]:
    """The sources of inputs, in their order."""
    found = []
    for name in inputs:
        form, compression = format_of_name(name)
        form = input_format or form or InputFormat.text
        found.append(Source(name, place(name), form, compression, False))
    return found
