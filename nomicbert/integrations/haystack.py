"""Haystack: components that embed documents and queries, with the checkpoint's prompts."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from nomicbert.errors import to_install
from nomicbert.integrations.sides import PROMPTS, TAKEN, Keywords, Sides, plain_keywords

try:
    from haystack import Document, component, default_to_dict
except ImportError as error:
    raise ImportError(f"the embedders need haystack: {to_install('haystack')}") from error


@dataclass(eq=False)
class _Embedder:
    """Settings; `warm_up` or the first run loads the model. See `Sides` for them and its errors."""

    model: str
    model_kwargs: Keywords | None = None
    encode_kwargs: Keywords | None = None
    fingerprint: str | None = None
    progress_bar: bool = False
    _queries_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.model_kwargs = plain_keywords("model_kwargs", self.model_kwargs)
        self.encode_kwargs = plain_keywords("encode_kwargs", self.encode_kwargs, TAKEN)

    def warm_up(self) -> None:
        """Load the model. ConfigError: its fingerprint is another one."""
        _ = self._sides

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; once the model is loaded, with the fingerprint."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        if "_sides" in vars(self):
            found["fingerprint"] = self._sides.fingerprint()
        return default_to_dict(self, **found)

    @cached_property
    def _sides(self) -> Sides:
        prompts = {k: v for k, v in (self.encode_kwargs or {}).items() if k in PROMPTS}
        keywords = (self.model_kwargs, self.encode_kwargs, prompts, self.fingerprint)
        return Sides(self.model, *keywords, queries_only=self._queries_only)


@component
class NomicBertTextEmbedder(_Embedder):
    """Embeds a query."""

    _queries_only = True

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """The vector of a query, as "embedding"."""
        return {"embedding": self._sides.queries([text], self.progress_bar)[0].tolist()}


@component
@dataclass(eq=False)
class NomicBertDocumentEmbedder(_Embedder):
    """Embeds documents: their contents, after the values of `meta_fields_to_embed`."""

    meta_fields_to_embed: list[str] = field(default_factory=list)
    embedding_separator: str = "\n"

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Copies with vectors, as "documents"."""
        rows = self._sides.documents([*map(self._text, documents)], self.progress_bar).tolist()
        return {"documents": [replace(d, embedding=rows[i]) for i, d in enumerate(documents)]}

    def _text(self, document: Document) -> str:
        if not isinstance(document, Document):
            raise TypeError(f"documents must be a list of Documents, but it has {document!r}")
        found = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in found if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])
