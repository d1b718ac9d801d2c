"""LangChain: embeddings that run in this process, with the checkpoint's prompts.

Documents are embedded by `Embedder.encode_document`, queries by `Embedder.encode_query`. The fields
are those of langchain-huggingface's HuggingFaceEmbeddings.
"""

from typing import Any

from nomicbert.errors import to_install
from nomicbert.integrations.sides import FORMAT, Keywords, Sides, read_state

try:
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise ImportError(f"langchain_core is missing: {to_install('langchain')}") from error


class NomicBertEmbeddings(BaseModel, Embeddings):
    """Embeddings of LangChain with one checkpoint; the asynchronous calls run in a thread.

    LangChain's vector stores keep no settings: store `compute_fingerprint()` next to yours, and
    give it as `fingerprint` when you open it again.

    Attributes: all but show_progress are frozen.
        model_name: a local folder or a repository of the hub; `model=` sets it too.
        cache_folder: where downloads are kept; `cache_dir` of `Embedder`.
        model_kwargs: keywords of `Embedder`.
        encode_kwargs: keywords of `Embedder.encode`, for documents and, but for prompts, queries.
        query_encode_kwargs: more of them, for queries.
        multi_process: must be False; give a list of devices: encode_kwargs={"device": [...]}.
        show_progress: whether to show a progress bar.
        fingerprint: that of the stored vectors; another model raises a ConfigError.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: str = Field(alias="model", frozen=True)
    cache_folder: str | None = Field(default=None, frozen=True)
    model_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    encode_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    query_encode_kwargs: Keywords = Field(default_factory=dict, frozen=True)
    multi_process: bool = Field(default=False, frozen=True)
    show_progress: bool = False
    fingerprint: str | None = Field(default=None, frozen=True)
    _sides: Sides = PrivateAttr()

    def __init__(self, **fields: object) -> None:
        """Load the model; see `Sides` for the errors."""
        super().__init__(**fields)
        if self.multi_process:
            raise ValueError('multi_process: give encode_kwargs={"device": ["cuda:0", "cuda:1"]}')
        cache = {} if self.cache_folder is None else {"cache_dir": self.cache_folder}
        keywords = (self.encode_kwargs, self.query_encode_kwargs, self.fingerprint)
        self._sides = Sides(self.model_name, {**cache, **self.model_kwargs}, *keywords)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of documents, in their order."""
        return self._sides.documents(texts, self.show_progress).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._sides.queries([text], self.show_progress)[0].tolist()

    def compute_fingerprint(self) -> str:
        """The name of the documents' vector space; see `Sides.fingerprint`."""
        return self._sides.fingerprint()

    def model_copy(self, *, update: Keywords | None = None, deep: bool = False) -> Any:
        """A copy, with the model of the updated settings; see `Sides` for the errors."""
        if not update:
            return super().model_copy(deep=deep)
        return type(self)(**{**self.model_dump(), **update})

    def __getstate__(self) -> dict[Any, Any]:
        return {"format": FORMAT, **self.model_dump()}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # a pickle holds arguments: checked, and the model loaded, as when it was made
        self.__init__(**read_state(type(self), state, type(self).model_fields))  # type: ignore[misc]
