"""The APIs that are measured: bodies of requests, vectors of answers.

Source: POST /v1/embeddings of OpenAI, /embed and /rerank of text-embeddings-inference,
/v1/embedding/text of the hosted nomic API, /v2/embed of Cohere, /api/embed of ollama.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

PATHS = {
    "openai": "/v1/embeddings",
    "tei": "/embed",
    "nomic": "/v1/embedding/text",
    "cohere": "/v2/embed",
    "ollama": "/api/embed",
    "rerank": "/rerank",
}
FORMATS = ("float", "base64")
# The query of all requests to rerank.
QUERY = "a question about the old house"
TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d+)')

Vectors = npt.NDArray[np.float32]


class WrongAnswer(ValueError):
    """An answer of status 200 without the vectors that were asked for."""


@dataclass(frozen=True)
class Variant:
    """How a text is asked for.

    Attributes:
        dialect: a key of PATHS.
        format: of the vectors; base64 exists for OpenAI only.
        dimensions: of the vectors; None: all. Without a meaning for "rerank", whose vectors are
            the score of each text beside QUERY.
        prompt: nomic's task_type, TEI's prompt_name, Cohere's input_type; None: none is sent, but
            Cohere's API needs one, which is then search_document.
        normalize: TEI's flag.
        lone: send a single text as a string instead of a list.
    """

    dialect: str = "openai"
    format: str = "float"
    dimensions: int | None = None
    prompt: str | None = None
    normalize: bool = True
    lone: bool = False

    def __str__(self) -> str:
        parts = [self.dialect, self.format if self.dialect == "openai" else ""]
        parts += [f"dimensions={self.dimensions}" if self.dimensions else "", self.prompt or ""]
        parts += ["" if self.normalize else "normalize=false", "lone" if self.lone else ""]
        return " ".join(part for part in parts if part)

    def body(self, model: str, texts: Sequence[str]) -> bytes:
        """The JSON of a request."""
        asked: str | Sequence[str] = texts[0] if self.lone and len(texts) == 1 else texts
        found: dict[str, object]
        if self.dialect == "openai":
            found = {"model": model, "input": asked, "encoding_format": self.format}
            if self.dimensions:
                found["dimensions"] = self.dimensions
        elif self.dialect == "tei":
            found = {"inputs": asked, "normalize": self.normalize}
            if self.dimensions:
                found["dimensions"] = self.dimensions
            if self.prompt:
                found["prompt_name"] = self.prompt
        elif self.dialect == "cohere":
            found = {"model": model, "texts": texts, "embedding_types": ["float"]}
            found |= {"input_type": self.prompt or "search_document"}
            if self.dimensions:
                found["output_dimension"] = self.dimensions
        elif self.dialect == "ollama":
            found = {"model": model, "input": asked}
            if self.dimensions:
                found["dimensions"] = self.dimensions
        elif self.dialect == "rerank":
            found = {"query": QUERY, "texts": texts}
        else:
            # this API has no lone string
            found = {"model": model, "texts": texts, "long_text_mode": "truncate"}
            found |= {"dimensionality": self.dimensions, "task_type": self.prompt}
            found = {key: value for key, value in found.items() if value is not None}
        return orjson.dumps(found)

    def vectors(self, body: bytes, count: int) -> Vectors:
        """The (count, dimensions) vectors of an answer.

        Raises: WrongAnswer: no JSON, other keys, another number of vectors, unequal dimensions,
            dimensions that were not asked for, values that are not finite.
        """
        try:
            answer = orjson.loads(body)
            if self.dialect == "openai":
                data = answer["data"]
                if [one["index"] for one in data] != list(range(count)):
                    raise WrongAnswer(f"the indices are not 0 to {count - 1}")
                rows = [one["embedding"] for one in data]
            elif self.dialect == "rerank":
                ordered = sorted(answer, key=lambda one: one["index"])
                if [one["index"] for one in ordered] != list(range(count)):
                    raise WrongAnswer(f"the indices are not 0 to {count - 1} in some order")
                rows = [[one["score"]] for one in ordered]
            elif self.dialect == "cohere":
                rows = answer["embeddings"]["float"]
            else:
                rows = answer if self.dialect == "tei" else answer["embeddings"]
            found = np.stack([_row(row) for row in rows])
        except (ValueError, KeyError, TypeError) as error:
            raise WrongAnswer(f"not an answer of {self}: {error!r}") from error
        if len(found) != count:
            raise WrongAnswer(f"{len(found)} vectors for {count} texts")
        wanted = 1 if self.dialect == "rerank" else self.dimensions
        if found.ndim != 2 or (wanted and found.shape[1] != wanted):
            raise WrongAnswer(f"vectors of shape {found.shape[1:]}, asked for {wanted}")
        if not np.isfinite(found).all():
            raise WrongAnswer("a value is not finite")
        return found


def _row(row: str | list[float]) -> Vectors:
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
    with np.errstate(over="ignore"):  # beyond float32: found not to be finite
        return np.asarray(row, np.float32)


def usage(body: bytes) -> int | None:
    """`usage.total_tokens` of an answer, without parsing its vectors; None if it has none."""
    place = body.rfind(b'"total_tokens"')
    found = TOTAL.match(body, place) if place >= 0 else None
    return int(found[1]) if found else None


def differing_bits(first: Vectors, second: Vectors) -> int:
    """Number of bits in which two arrays of one shape differ."""
    both = np.ascontiguousarray(first).view(np.uint8) ^ np.ascontiguousarray(second).view(np.uint8)
    return int(np.unpackbits(both).sum())
