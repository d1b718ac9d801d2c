"""Methods that `Embedder` has because SentenceTransformer has them, each in terms of others.

Where in the flow: a base class of `Embedder`.
Source: the public names of SentenceTransformer in sentence-transformers 2 to 6.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from nomicbert.runtime import encode_types
from nomicbert.runtime.encode_types import Vectors
from nomicbert.runtime.features import TextOutputs, all_outputs
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request
from nomicbert.runtime.shared_names import SharedNames
from nomicbert.runtime.token_ids import TokenIds
from nomicbert.runtime.workers import AnyStream
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.similarity import SIMILARITIES


class SentenceTransformersNames(TokenIds, SharedNames):
    """The names that are not needed for anything else."""

    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar[tuple[str, ...]] = tuple(SIMILARITIES)

    if TYPE_CHECKING:
        encode: encode_types.Encode

        def stream(self, request: Request) -> tuple[AnyStream, int]:
            """Of `Embedder`."""

    # indexing is refused with a hint below, and would make it iterable
    __iter__: ClassVar[None] = None

    def __getitem__(self, index: int) -> NoReturn:
        """Refuse: the modules are not sentence-transformers'."""
        raise TypeError(
            f"{type(self).__name__} is no list of modules: in place of model[0].auto_model take "
            "embedder.model, of model[0].tokenizer embedder.tokenizer, and of model[1] and those "
            "after it embedder.pooling"
        )

    def is_singular_input(self, inputs: object) -> bool:
        """Whether `encode` returns one vector for these inputs, and not a list of them."""
        return isinstance(inputs, str)

    def get_sentence_embedding_dimension(self) -> int:
        """Old name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Whether the tokens of a prompt count in pooling."""
        self.embedding_model.pooling.include_prompt = bool(include_prompt)

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Set `truncate_dim` for a `with` block.

        Raises: TypeError, ValueError: as when it is set.
        """
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    @contextmanager
    def truncate_sentence_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Old name of `truncate_embeddings`."""
        with self.truncate_embeddings(truncate_dim):
            yield

    def _all_outputs(self, texts: list[str], request: Request) -> list[TextOutputs]:
        """What `encode` returns for output_value None: two runs, with the warnings of the first."""
        request.check(self.embedding_model.pooling)
        for_vectors = request.for_vectors()
        (vectors, width), (hidden, _) = self.stream(for_vectors), self.stream(request.for_tokens())
        rows: Any = for_vectors.gather(vectors.run(iter(texts)), len(texts), width)
        states = [one for window in hidden.run(iter(texts), Progress(False)) for one in window.rows]
        prompt = self._prompts.choose(request.prompt_name, request.prompt)
        limit = self._limit(request.max_length)
        ids, _ = self._tokenizer.encode([prompt + text for text in texts], limit)
        return all_outputs([self._features([one], prompt, limit) for one in ids], states, rows)

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: WorkerPool,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        chunk_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """Old name of `encode(sentences, pool=pool)`; returns an array (n, dim)."""
        found: Any = self.encode(
            sentences,
            pool=pool,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            chunk_size=chunk_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        vectors: Vectors = found
        return vectors
