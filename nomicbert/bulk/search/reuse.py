"""An Encoder that computes only the texts whose vectors are not known from before.

Where in the flow: `kept` puts it around the model's when the texts of a folder have changed, so
that a line added to one note does not embed all notes again.
"""

import hashlib
import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from nomicbert.bulk.output import open_output
from nomicbert.bulk.stored import open_vectors
from nomicbert.bulk.vector_files import Float32
from nomicbert.runtime.progress import Progress

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder, Window

# Texts that are looked up at once, and embedded together as far as they are new.
GROUP = 8192
# Values of vectors that are kept in memory, at most: a gigabyte.
MOST_VALUES = 1 << 28
# Known vectors while a job is not finished: its parts do not hold them yet.
SAVED = "_known.npz"

Known = dict[bytes, Float32]


def known_vectors(folder: str, want: dict[str, Any]) -> Known:
    """The vectors of a folder by the digest of their text, if they are those that are wanted.

    Args:
        folder: of a job.
        want: what decides the vectors now; those of a job that differs in any are not known.

    Returns: those of `save_known` for a folder that is not finished; nothing for one that is
        damaged, too large, or without texts.
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
        return saved_vectors(folder, want)
    return found


def save_known(folder: str, want: dict[str, Any], known: Known) -> None:
    """Keep known vectors in a folder whose parts are deleted next.

    Raises: ValueError, OSError: it cannot be written.
    """
    digests = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    with open_output(os.path.join(folder, SAVED)) as file:
        np.savez(file, want=json.dumps(want), digests=digests, vectors=np.stack([*known.values()]))


def saved_vectors(folder: str, want: dict[str, Any]) -> Known:
    """What `save_known` has kept, if it is whole and what is wanted."""
    try:
        with (
            open(os.path.join(folder, SAVED), "rb") as file,
            np.load(file, allow_pickle=False) as saved,
        ):
            if json.loads(str(saved["want"])) != want:
                return {}
            digests, vectors = saved["digests"], saved["vectors"]
    except (OSError, ValueError, KeyError, BadZipFile):
        return {}  # everything is embedded again, which needs none of it
    return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}


def forget_known(folder: str) -> None:
    """Delete what `save_known` has kept: the parts hold all of it."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, SAVED))


class Reusing:
    """An Encoder around another one; see Encoder for the attributes."""

    def __init__(self, encoder: "Encoder", known: Known) -> None:
        """`known`: by the digest of the text, from `known_vectors`."""
        self._encoder, self._known = encoder, known
        self.empty, self.refusal = encoder.empty, encoder.refusal

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
