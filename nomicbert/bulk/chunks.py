"""Texts -> the vectors of their chunks, and a row for each chunk.

Where in the flow: in place of `encoding.EmbedderEncoder`, for `nomicbert embed --chunks`; `blocks`
turns each row that it takes from the feed into those of its chunks.
"""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from nomicbert.bulk.encoding import Window
from nomicbert.bulk.inputs.rows import CHUNK_END, CHUNK_ROW, CHUNK_START, ArrowCells, Row, Taken
from nomicbert.embedder import Embedder
from nomicbert.runtime.chunks import CHUNK_KEYWORDS, ChunkEncoder
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request
from nomicbert.vectors import quantization

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.encode_keywords import AllEncodeKeywords

Place = tuple[int, int]


class ChunkedEncoder:
    """An Encoder whose windows have a vector for each chunk of each text."""

    refusal: str | None = None

    def __init__(
        self,
        embedder: Embedder,
        *,
        chunk_tokens: int,
        overlap: int = 0,
        **keywords: "Unpack[AllEncodeKeywords]",
    ) -> None:
        """Check the keywords.

        Args:
            embedder: the model.
            chunk_tokens: of `Embedder.encode_chunks`.
            overlap: of it.
            **keywords: of it too, and `precision` and `ranges` of `Embedder.encode`.

        Raises: TypeError, ValueError: one is invalid, or not for chunks; the message names it.
        """
        request = Request(**keywords).with_default(embedder.truncate_dim)
        for name, value in keywords.items():
            known = name in CHUNK_KEYWORDS or name in ("precision", "ranges")
            if not known and value != getattr(Request(), name):
                raise ValueError(f"{name} does not go with chunks")
        self._request = request
        self._encoder = ChunkEncoder(embedder.task(request), request, chunk_tokens, overlap, None)
        width = request.width(embedder.pooling)
        self._ranges = request.fixed_ranges(width)
        self.empty = self._converted(torch.empty(0, width))

    @property
    def identity(self) -> dict[str, Any]:
        """See Encoder: only folders ask for it, and they hold no chunks."""
        raise NotImplementedError

    description = identity

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator[Window, None, None]:
        """See Encoder."""
        for rows, found in self._encoder.windows(texts, progress):
            lengths = [len(text.ids) for text in found]
            yield Window(self._converted(rows), lengths, [], [text.characters for text in found])

    def _converted(self, rows: torch.Tensor) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = (
            quantization.convert(rows, self._request.form, self._ranges).cpu().numpy()
        )
        return array


def in_chunks(taken: list[Taken], places: list[list[Place]], field: str) -> list[Taken]:
    """A row for each chunk of each row; what was left out before a row stays before its first one.

    Args:
        taken: rows.
        places: (start, end) of the chunks of each.
        field: name of the field that holds the text, which becomes that of the chunk.
    """
    found = []
    for one, chunks in zip(taken, places, strict=True):
        rows = [_chunk(one.row, place, field) for place in chunks]
        sizes = np.diff(np.linspace(0, one.row.size, len(rows) + 1).astype(np.int64))
        rows = [replace(row, size=int(size)) for row, size in zip(rows, sizes, strict=True)]
        found += [one._replace(row=rows[0]), *(Taken(row, 0, []) for row in rows[1:])]
    return found


def _chunk(row: Row, place: Place, field: str) -> Row:
    fields = row.fields
    if isinstance(fields, ArrowCells):
        (fields,) = fields.batch.slice(fields.row, 1).to_pylist()
    text = row.text[slice(*place)]
    own = {CHUNK_ROW: row.number, CHUNK_START: place[0], CHUNK_END: place[1]}
    fields = {**fields, **({field: text} if field in fields else {}), **own}
    return replace(row, text=text, fields=fields, line=None)
