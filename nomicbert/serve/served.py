"""The record of a loaded model: what all kinds have in common, and embedding models.

Where in the flow: `models` makes them, `service` finds the one of a request, dialects read them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nomicbert.cross_encoder import CrossEncoder
from nomicbert.embedder import Embedder
from nomicbert.modeling.model import NomicBert
from nomicbert.serve.engine.jobs import Group, Job
from nomicbert.serve.settings import ServeSettings
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.linear_torch import onednn_packs

SELF_TEST = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, kw_only=True)
class ServedModel(ABC):
    """One loaded model.

    Attributes:
        task: what it is, for errors.
        index: its place among the models.
        name: how metrics and lists call it.
        max_length: tokens per text, or per pair.
        default_prompt: prompt of requests that name none.
        self_test: row of the self-test when it was loaded.
    """

    task: ClassVar[str]
    index: int
    name: str
    max_length: int
    default_prompt: str
    self_test: Tensor

    @property
    @abstractmethod
    def facade(self) -> Embedder | CrossEncoder:
        """The facade of the copy on the first device."""

    @property
    @abstractmethod
    def encoder(self) -> NomicBert:
        """The encoder on the first device."""

    @property
    @abstractmethod
    def space(self) -> str:
        """Fingerprint of the vectors of a request that asks for nothing else; "" without any."""

    @abstractmethod
    def prompt_text(self, name: str) -> str:
        """The prompt of this name.

        Raises: ValueError: the checkpoint has none.
        """

    @abstractmethod
    def self_test_job(self) -> Job:
        """What must give the row `self_test`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text -> token ids."""
        return self.facade.tokenizer

    def is_same(self, row: Tensor) -> bool:
        """Whether a row of the self-test is that of load time.

        Up to rounding where bits depend on the batch: on a GPU, and without oneDNN.
        """
        encoder = self.encoder
        if encoder.device.type == "cpu" and onednn_packs(encoder.compute_dtype):
            return torch.equal(row, self.self_test)
        return bool(torch.allclose(row, self.self_test, rtol=1e-2, atol=1e-2))


@dataclass(frozen=True, kw_only=True)
class ServedEmbedder(ServedModel):
    """Texts -> vectors.

    Attributes:
        embedder: the facade.
        fingerprint: names its vector space.
    """

    task = "an embedding"
    embedder: Embedder
    fingerprint: Fingerprint

    @property
    def facade(self) -> Embedder:
        """See ServedModel."""
        return self.embedder

    @property
    def encoder(self) -> NomicBert:
        """See ServedModel."""
        return self.embedder.model

    @property
    def width(self) -> int:
        """Columns of a whole vector."""
        return self.embedder.pooling.embedding_dimension

    @property
    def space(self) -> str:
        """See ServedModel: without a prompt."""
        finish = Finish(truncate_dim=self.embedder.truncate_dim, normalize=True)
        return self.fingerprint.of_call(finish, "").partition(".")[0]

    def prompt_text(self, name: str) -> str:
        """See ServedModel."""
        return self.embedder.prompt_text(name)

    def self_test_job(self) -> Job:
        """See ServedModel."""
        ids, _ = self.tokenizer.encode([SELF_TEST], self.max_length)
        return Job(Group(self.index), ids, Finish(truncate_dim=self.embedder.truncate_dim))


def serve_embedder(
    index: int, name: str, embedder: Embedder, settings: ServeSettings
) -> ServedEmbedder:
    """The record of a loaded embedder.

    Raises: ValueError: --max-length or --default-prompt-name does not fit the checkpoint.
    """
    if settings.max_length is not None:
        embedder.max_seq_length = settings.max_length
    if settings.default_prompt is not None:
        prompt = settings.default_prompt
    else:
        prompt = embedder.prompt_text(settings.default_prompt_name)
    vector = embedder.encode(SELF_TEST, prompt="", convert_to_tensor=True)
    assert isinstance(vector, Tensor)
    return ServedEmbedder(
        index=index,
        name=name,
        max_length=embedder.max_seq_length,
        default_prompt=prompt,
        self_test=vector.float().cpu(),
        embedder=embedder,
        fingerprint=Fingerprint.of(embedder.embedding_model, embedder.tokenizer),
    )
