"""LlamaIndex: an embedding model that runs in this process, with the checkpoint's prompts."""

import asyncio
from typing import Any

from nomicbert.errors import to_install
from nomicbert.integrations.sides import FORMAT, Keywords, Sides, read_state

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise ImportError(f"llama_index is missing: {to_install('llama-index')}") from error

SIDES = ("model_name", "model_kwargs", "encode_kwargs", "query_encode_kwargs", "fingerprint")
PICKLED = (*SIDES, "embed_batch_size", "num_workers")


class NomicBertEmbedding(BaseEmbedding):
    """Embedding model of LlamaIndex with one checkpoint; asynchronous calls run in a thread.

    Store `to_dict()` next to an index: `from_dict` refuses a model whose vectors are others.
    The model and its keywords are frozen: make a new object for others.

    Attributes:
        model_name: a local folder or a repository of the hub.
        embed_batch_size: texts per call of the model, 2048 at most.
        model_kwargs: keywords of `Embedder`.
        encode_kwargs: keywords of `Embedder.encode`, for documents and, but for prompts, queries.
        query_encode_kwargs: more of them, for queries.
        fingerprint: that of the stored vectors; another model raises a ConfigError.
    """

    model_config = ConfigDict(extra="forbid")
    model_name: str = Field(frozen=True)
    embed_batch_size: int = Field(default=512, gt=0, le=2048)
    model_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    encode_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    query_encode_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    fingerprint: str | None = Field(default=None, frozen=True)
    _sides: Sides = PrivateAttr()

    def __init__(self, model_name: str, **fields: object) -> None:
        """Load the model; see `Sides` for the errors."""
        super().__init__(model_name=model_name, **fields)
        self._sides = Sides(*(getattr(self, name) for name in SIDES))

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex stores it."""
        return "NomicBertEmbedding"

    def to_dict(self, **kwargs: object) -> dict[str, Any]:
        """The settings as plain values, with the fingerprint: about a second per 2 GB."""
        return {**super().to_dict(**kwargs), **self._sides.settings()}

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._sides.queries([query])[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._sides.documents(texts).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def __getstate__(self) -> dict[str, Any]:
        return {"format": FORMAT, **{name: getattr(self, name) for name in PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a pickle holds arguments: checked, and the model loaded, as when it was made
        self.__init__(**read_state(type(self), state, PICKLED))  # type: ignore[misc]
