"""Chroma: an embedding function that a collection stores and finds again, with its fingerprint.

Documents are embedded by `Embedder.encode_document`, queries by `Embedder.encode_query`. Chroma
builds a stored function anew for every query: its model stays loaded (`KEPT` in sides.py).
"""

from typing import Any

from nomicbert.errors import to_install
from nomicbert.integrations.sides import Keywords, Sides

try:
    from chromadb import Collection, Documents, EmbeddingFunction, Embeddings
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise ImportError(f"the function needs chromadb: {to_install('chroma')}") from error

SPACES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class NomicBertEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embedding function of Chroma with one checkpoint; see `Sides` for arguments and errors.

    Import this module before you open a collection: Chroma finds the function by its name. Do not
    pass a function to `get_collection`: Chroma would use it unchecked. `check` compares it.
    """

    def __init__(
        self,
        model_name: str,
        model_kwargs: Keywords | None = None,
        encode_kwargs: Keywords | None = None,
        query_encode_kwargs: Keywords | None = None,
    ) -> None:
        """Load the model and compute its fingerprint: about a second per 2 GB."""
        self._sides = Sides(model_name, model_kwargs, encode_kwargs, query_encode_kwargs)
        if (precision := self._sides.encode_kwargs.get("precision")) not in (None, "float32"):
            raise ValueError(f"Chroma stores float32 only: leave out precision={precision!r}")
        self._sides.fingerprint()  # an error in get_config would only be a warning of Chroma

    def __call__(self, input: Documents) -> Embeddings:
        """The vectors of documents: an array (dim,) each."""
        return list(self._sides.documents(input))

    def embed_query(self, input: Documents) -> Embeddings:
        """The vectors of queries: an array (dim,) each."""
        return list(self._sides.queries(input))

    @staticmethod
    def name() -> str:
        """The name under which collections store it."""
        return "nomicbert"

    def default_space(self) -> str:
        """The distance of a new collection, from the checkpoint's similarity."""
        return SPACES.get(self._sides.embedder.similarity_fn_name, "cosine")

    def get_config(self) -> dict[str, Any]:
        """What a collection stores."""
        return {"model_name": self._sides.model, **self._sides.settings()}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "NomicBertEmbeddingFunction":
        """Load the stored model. ConfigError: its vectors are not those of the collection."""
        settings = {name: value for name, value in config.items() if name != "fingerprint"}
        function = NomicBertEmbeddingFunction(**settings)
        function.validate_config_update(config, {})
        return function

    def validate_config_update(self, old_config: dict[str, Any], new_config: object) -> None:
        """Allow another folder or device. ConfigError: the vectors would be others."""
        self._sides.refuse_other(old_config.get("fingerprint"))

    def check(self, collection: Collection) -> None:
        """Compare with a collection's own function. ConfigError: the vectors would be others."""
        stored = collection.configuration_json.get("embedding_function") or {}
        self.validate_config_update(stored.get("config", {}), {})
