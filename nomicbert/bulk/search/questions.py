"""Questions -> vectors of the space that stored ones are in.

Where in the flow: `nomicbert search` calls this with the model that a folder's manifest names, or
another one that the user says it is. The manifest has the fingerprint of its vectors but not the
options of the call: they are those with which the model has that fingerprint.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from nomicbert.bulk.stored import StoredVectors
from nomicbert.bulk.vector_files import Float32
from nomicbert.vectors.fingerprint import Fingerprint, matches
from nomicbert.vectors.pooling import Finish

if TYPE_CHECKING:
    from nomicbert.embedder import Embedder


class Call(TypedDict, total=False):
    """Keywords of `Embedder.encode` that decide a vector's space."""

    matryoshka_dim: int
    truncate_dim: int
    normalize_embeddings: bool


def call_of(embedder: "Embedder", stored: StoredVectors) -> Call:
    """The keywords with which a model has the fingerprint of stored vectors.

    Vectors of another backend are accepted: they differ in rounding.

    Raises: ValueError: there are none: it is another model, or the same with other options.
    """
    full = embedder.embedding_model.pooling.embedding_dimension
    if "vectors" not in stored.want:  # a lone file: nothing but its width can be compared
        if stored.width > full:
            raise ValueError(f"{_other(embedder, stored)}: its vectors have {full} values")
        return {} if stored.width == full else {"truncate_dim": stored.width}
    space = str(stored.want["vectors"]).partition(".")[0]
    backend = stored.description.get("backend")
    model = Fingerprint.of(embedder.embedding_model, embedder.tokenizer, backend)
    for call in _calls(stored.width, full) if stored.width <= full else ():
        finish = Finish(
            call.get("matryoshka_dim"),
            call.get("truncate_dim"),
            call.get("normalize_embeddings", False),
        )
        if matches(space, model.of_call(finish, "")):
            return call
    raise ValueError(
        f"{_other(embedder, stored)}: the weights, their dtype or the tokenizer differ. Those of "
        f"the vectors: {stored.description.get('checkpoint') or 'unknown'}, "
        f"{stored.description.get('model', 'not described')}"
    )


def embed_questions(embedder: "Embedder", questions: Sequence[str], call: Call) -> Float32:
    """The vectors of questions, with the checkpoint's prompt for queries.

    Args:
        embedder: the model.
        questions: texts.
        call: from `call_of`.

    Returns: (q, width) float32.
    """
    found = embedder.encode_query(list(questions), show_progress_bar=False, **call)
    return np.asarray(found, np.float32)


def _calls(width: int, full: int) -> Iterator[Call]:
    """What may have made vectors of this width."""
    for normalize in (False, True):
        last: Call = {"normalize_embeddings": True} if normalize else {}
        if width == full:
            yield {**last}
        yield {"truncate_dim": width, **last}
        yield {"matryoshka_dim": width, **last}


def _other(embedder: "Embedder", stored: StoredVectors) -> str:
    name = embedder.model.loaded_from.name or repr(embedder)
    return f"{name} is not the model of {stored.name}, whose vectors have {stored.width} values"
