"""The bytes of an input, decompressed.

Where in the flow: `open_rows` opens a source here and passes the file to the reader of its format.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from nomicbert.bulk.inputs.compressed import Inflated, naming_failures
from nomicbert.bulk.inputs.formats import OF_ARROW, Compression, refuse_other_content
from nomicbert.bulk.inputs.sources import Source
from nomicbert.bulk.inputs.streams import Stream

BUFFER = 1 << 18
# Bytes of a row, at most: more are surely a missing line feed or quote, and would fill the memory.
MOST_BYTES = 1 << 28


class Opened:
    """An open input.

    The size of a row, which progress counts, is `ratio` times its bytes in `file`. What skipped
    rows took counts for the next one.

    Attributes:
        file: its bytes, decompressed, from the first one on.
        name: for messages.
        offsets: whether reading can start from an offset of `file`.
    """

    def __init__(self, file: BinaryIO, name: str, offsets: bool) -> None:
        self.file, self.name, self.offsets = file, name, offsets

    @property
    def ratio(self) -> float:
        """Bytes of the input per byte of `file`, as far as is known."""
        return 1.0


class _OpenedCompressed(Opened):
    def __init__(self, raw: BinaryIO, name: str, compression: Compression) -> None:
        self._inflated = Inflated(raw, name, compression)
        super().__init__(io.BufferedReader(self._inflated, BUFFER), name, False)

    @property
    def ratio(self) -> float:
        """As in Opened."""
        return self._inflated.ratio


@contextmanager
def open_source(source: Source) -> Iterator[Opened]:
    """Open an input; errors of reading it name it.

    Raises: ValueError: it cannot be opened, or what it holds is damaged. OSError: reading failed.
    """
    at = source.place
    if isinstance(at, Stream) or source.format not in OF_ARROW:
        file = at.open()
    else:
        file = at.open_arrow()
    with file as raw, naming_failures(source.name):
        if source.compression is None:
            opened = Opened(raw, source.name, not isinstance(at, Stream))
        else:
            opened = _OpenedCompressed(raw, source.name, source.compression)
        if source.format not in OF_ARROW:
            # BinaryIO has no peek; all files that are opened here do
            head = opened.file.peek(4)  # type: ignore[attr-defined]
            try:
                refuse_other_content(head)
            except ValueError as error:
                raise ValueError(f"{source.name} {error}") from error
        yield opened
