"""An Encoder that computes only the texts whose vectors are not known from before.

Where in the flow: `kept` puts it around the model's when the texts of a folder have changed, so
that a line added to one note does not embed all notes again.
"""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from nomicbert.bulk.stored import open_vectors
from nomicbert.bulk.vector_files import Float32
from nomicbert.runtime.progress import Progress

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder, Window

# Texts that are looked up at once, and embedded together as far as they are new.
GROUP = 8192
# Values of vectors that are kept in memory, at most: a gigabyte.
MOST_VALUES = 1 << 28
ROWS = 8192

Known = dict[bytes, Float32]


def known_vectors(folder: str, want: dict[str, Any]) -> Known:
    """The vectors of a folder by the digest of their text, if they are those that are wanted.

    Args:
        folder: of a job.
        want: what decides the vectors now; those of a job that differs in any are not known.

    Returns: nothing for a folder that is not finished, damaged, too large, or without texts.
    """
    found: Known = {}
    try:
        stored = open_vectors(folder)
        if stored.want != want or not stored.field or stored.rows * stored.width > MOST_VALUES:
            return {}
        at = 0
        for block in stored.blocks():
            rows = range(at, at + len(block))
            for row, vector in zip(stored.take(rows, [stored.field]), block, strict=True):
                found[_digest(str(row[stored.field]))] = vector
            at += len(block)
    except (ValueError, OSError):
        return {}  # everything is embedded again, which needs none of it
    return found


class Reusing:
    """An Encoder around another one; see Encoder for the attributes.

    Attributes:
        reused: texts whose vectors were known.
    """

    def __init__(self, encoder: "Encoder", known: Known) -> None:
        """`known`: by the digest of the text, from `known_vectors`."""
        self._encoder, self._known = encoder, known
        self.empty, self.refusal = encoder.empty, encoder.refusal
        self.reused = 0

    @property
    def identity(self) -> dict[str, Any]:
        """See Encoder."""
        return self._encoder.identity

    @property
    def description(self) -> dict[str, Any]:
        """See Encoder."""
        return self._encoder.description

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator["Window", None, None]:
        """See Encoder; a text whose vector was known has no tokens."""
        while group := list(islice(texts, GROUP)):
            digests = [_digest(text) for text in group]
            new = [index for index, digest in enumerate(digests) if digest not in self._known]
            self.reused += len(group) - len(new)
            yield self._group(group, digests, new, progress)

    def _group(
        self, texts: list[str], digests: list[bytes], new: list[int], progress: Progress
    ) -> "Window":
        from nomicbert.bulk.encoding import Window

        vectors = np.empty((len(texts), self.empty.shape[1]), self.empty.dtype)
        lengths, cut = [0] * len(texts), list[int]()
        is_new = set(new)
        for index, digest in enumerate(digests):
            if index not in is_new:
                vectors[index] = self._known[digest]
        left = iter(new)
        with closing(self._encoder.windows((texts[index] for index in new), progress)) as found:
            for window in found:
                places = list(islice(left, len(window.lengths)))
                vectors[places] = window.vectors
                cut += [places[index] for index in window.cut]
                for place, length in zip(places, window.lengths, strict=True):
                    lengths[place] = length
        return Window(vectors, lengths, sorted(cut))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
