"""Methods that `Embedder` has because SentenceTransformer has them, each in terms of others.

Where in the flow: a base class of `Embedder`.
Source: the public names of SentenceTransformer in sentence-transformers 2 to 6.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from nomicbert.arguments import as_devices
from nomicbert.config import EncoderConfig
from nomicbert.loading.card_data import ModelCardData
from nomicbert.runtime import encode_types
from nomicbert.runtime.encode_types import Vectors
from nomicbert.runtime.features import (
    TextOutputs,
    all_outputs,
)
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request
from nomicbert.runtime.token_ids import TokenIds
from nomicbert.runtime.workers import AnyStream
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.similarity import SIMILARITIES

# Processes of a pool on a machine without a GPU.
CPU_PROCESSES = 4


class SentenceTransformersNames(TokenIds):
    """The names that are not needed for anything else."""

    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar[tuple[str, ...]] = tuple(SIMILARITIES)

    if TYPE_CHECKING:
        encode: encode_types.Encode

        def save_pretrained(
            self,
            folder: str | os.PathLike[str],
            model_name: str | None = None,
            create_model_card: bool = True,
            train_datasets: Sequence[str] | None = None,
            safe_serialization: bool = True,
        ) -> None:
            """Of `Embedder`."""

        def stream(self, request: Request) -> tuple[AnyStream, int]:
            """Of `Embedder`."""

    @property
    def config(self) -> EncoderConfig:
        """The encoder's configuration."""
        return self._encoder_config

    @property
    def processor(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer

    @property
    def modalities(self) -> list[str]:
        """What can be embedded: texts."""
        return ["text"]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Whether inputs of this kind can be embedded."""
        return modality in self.modalities

    def is_singular_input(self, inputs: object) -> bool:
        """Whether `encode` returns one vector for these inputs, and not a list of them."""
        return isinstance(inputs, str)

    def get_model_kwargs(self) -> list[str]:
        """Further keywords of `encode` that the checkpoint's modules take: none."""
        return []

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

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

    def save(
        self,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: Sequence[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Old name of `save_pretrained`, with its arguments."""
        given = (model_name, create_model_card, train_datasets, safe_serialization)
        self.save_pretrained(path, *given)

    def _note_for_card(
        self, model_name: str | None, train_datasets: Sequence[str] | None, safe: bool
    ) -> None:
        """Keep what a call of `save_pretrained` says of the model; raises as that."""
        if not safe:
            raise ValueError(
                "safe_serialization must be True, not False: weights are written as safetensors"
            )
        data = self.model_card_data
        if model_name is not None and not data.model_id and not os.path.exists(model_name):
            data.model_id = model_name
        if train_datasets is not None:
            names: Any = [*train_datasets]
            data.train_datasets = [
                *data.train_datasets,
                *ModelCardData(train_datasets=names).train_datasets,
            ]

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

    def start_multi_process_pool(
        self, target_devices: Sequence[torch.device | str] | None = None
    ) -> WorkerPool:
        """Start a process on each device, for several calls of `encode(..., pool=pool)`.

        The script needs `if __name__ == "__main__":`. The model stays where it is; the processes
        get it with the first call, and again when it has changed.

        Args:
            target_devices: as ["cuda:0", "cuda:1"]; None: all GPUs, or four processes on the CPU.

        Raises: ValueError: an unavailable device, or a GPU listed twice.
        """
        if target_devices is None:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            target_devices = [f"cuda:{i}" for i in range(count)] or ["cpu"] * CPU_PROCESSES
        return WorkerPool(as_devices(target_devices))

    @staticmethod
    def stop_multi_process_pool(pool: WorkerPool) -> None:
        """End the processes of a pool: `pool.close()`."""
        pool.close()

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
