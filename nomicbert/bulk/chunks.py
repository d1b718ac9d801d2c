"""Texts -> the vectors of their chunks, and a row for each chunk.

Where in the flow: `nomicbert embed --chunks` takes this encoder in place of its base class, and
`blocks` turns each row of the feed into those of its chunks.
"""

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from nomicbert.bulk.encoding import EmbedderEncoder, Window
from nomicbert.bulk.inputs.rows import (
    CHUNK,
    CHUNK_END,
    CHUNK_ROW,
    CHUNK_START,
    ArrowCells,
    Row,
    Taken,
    batch_of,
)
from nomicbert.embedder import Embedder
from nomicbert.runtime.chunks import CHUNK_KEYWORDS, ChunkEncoder
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.encode_keywords import AllEncodeKeywords

Place = tuple[int, int]


class ChunkedEncoder(EmbedderEncoder):
    """An Encoder whose windows have a vector for each chunk of each text."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        chunk_tokens: int,
        chunk_overlap: int = 0,
        **keywords: "Unpack[AllEncodeKeywords]",
    ) -> None:
        """Check the keywords.

        Args:
            embedder: the model.
            chunk_tokens: of `Embedder.encode_chunks`.
            chunk_overlap: of it.
            **keywords: of it too, and `precision` and `ranges` of `Embedder.encode`.

        Raises: TypeError, ValueError: one is invalid, or not for chunks; the message names it.
        """
        super().__init__(embedder, **keywords)
        for name, value in keywords.items():
            known = name in CHUNK_KEYWORDS or name in ("precision", "ranges")
            if not known and value != getattr(Request(), name):
                raise ValueError(f"{name} does not go with chunks")
        request = self._request
        task = embedder.task_of(request)
        self._chunks = ChunkEncoder(task, request, chunk_tokens, chunk_overlap, None)

    @property
    def identity(self) -> dict[str, Any]:
        """See Encoder."""
        cut = {"chunk_tokens": self._chunks.tokens, "chunk_overlap": self._chunks.overlap}
        return {**super().identity, **cut}

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator[Window, None, None]:
        """See Encoder."""
        for rows, found in self._chunks.windows(texts, progress):
            lengths = [len(text.ids) for text in found]
            yield Window(self._converted(rows), lengths, [], [text.characters for text in found])


def in_chunks(taken: list[Taken], places: list[list[Place]], field: str) -> list[Taken]:
    """A row for each chunk of each row; what was left out before a row stays before its first one.

    Args:
        taken: rows.
        places: (start, end) of the chunks of each.
        field: name of the field that holds the text, which becomes that of the chunk.
    """
    pairs = zip(taken, places, strict=True)
    fields = _fields([(one.row, place) for one, chunks in pairs for place in chunks], field)
    found = []
    for one, chunks in zip(taken, places, strict=True):
        sizes = np.diff(np.linspace(0, one.row.size, len(chunks) + 1).astype(np.int64)).tolist()
        rows = [
            replace(
                one.row, text=one.row.text[slice(*place)], fields=next(fields), line=None, size=size
            )
            for place, size in zip(chunks, sizes, strict=True)
        ]
        found += [one._replace(row=rows[0]), *(Taken(row, 0, []) for row in rows[1:])]
    return found


def _fields(chunks: list[tuple[Row, Place]], field: str) -> "Iterator[dict[str, Any] | ArrowCells]":
    """The fields of each chunk, those of Arrow as new batches: they keep their types."""
    for _, group in groupby(chunks, key=lambda chunk: batch_of(chunk[0].fields)):
        same = list(group)
        own: dict[str, list[Any]] = {
            field: [row.text[slice(*place)] for row, place in same],
            CHUNK_ROW: [row.number for row, _ in same],
            CHUNK_START: [start for _, (start, _) in same],
            CHUNK_END: [end for _, (_, end) in same],
        }
        cells: list[Any] = [row.fields for row, _ in same]
        if isinstance(cells[0], ArrowCells):
            from nomicbert.bulk.inputs.tables import repeated  # needs pyarrow

            batch = cells[0].batch
            if field not in batch.schema.names:
                del own[field]
            batch = repeated(batch, [each.row for each in cells], own)
            yield from (ArrowCells(batch, number) for number in range(len(same)))
            continue
        for number, each in enumerate(cells):
            names = own if field in each else CHUNK
            yield {**each, **{name: own[name][number] for name in names}}
