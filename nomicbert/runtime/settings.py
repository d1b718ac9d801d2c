"""The settings of `Embedder` and `CrossEncoder` that may change after loading, checked when set.

Where in the flow: base classes of the facades. A checkpoint's own settings are the first values;
`save_pretrained` keeps what was set.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from nomicbert.arguments import as_whole
from nomicbert.config import EncoderConfig
from nomicbert.loading.model_card import Card
from nomicbert.loading.origin import Origin
from nomicbert.loading.publishing import Publishing
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.cards import embedder_card
from nomicbert.runtime.known_names import KnownNames
from nomicbert.text.max_length import check_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.user_warnings import ConfigWarning, warn
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.saving import save_modules
from nomicbert.vectors.similarity import (
    VectorRows,
    similarity,
    similarity_name,
    similarity_pairwise,
)


class FacadeSettings(KnownNames, Publishing):
    """Settings that both facades have."""

    _prompts: Prompts
    _tokenizer: Tokenizer
    _max_seq_length: int

    @property
    def _module(self) -> nn.Module:
        """Encoder and all that follows it."""
        raise NotImplementedError

    @property
    def _encoder(self) -> NomicBert:
        raise NotImplementedError

    @property
    def _encoder_config(self) -> EncoderConfig:
        return self._encoder.config

    @property
    def _least_length(self) -> int:
        """The smallest `max_seq_length`."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        """Text -> token ids; may be replaced by another `Tokenizer` of this package."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Tokenizer) -> None:
        if not isinstance(value, cast("Any", Tokenizer)):
            kind = type(value)
            raise TypeError(
                f"tokenizer must be a Tokenizer of nomicbert, not {kind.__module__}."
                f"{kind.__qualname__}: save yours into the checkpoint's folder and load that"
            )
        self._tokenizer = value

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens per input, special ones included."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        least, config = self._least_length, self._encoder_config
        self._max_seq_length = check_limit(value, least, config, "max_seq_length")

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> text put before an input."""
        return self._prompts.by_name

    @prompts.setter
    def prompts(self, value: dict[str, str]) -> None:
        self._prompts = self._prompts.replaced(value, self._prompts.default)

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt that is used when a call gives none; None for no prompt."""
        return self._prompts.default

    @default_prompt_name.setter
    def default_prompt_name(self, value: str | None) -> None:
        self._prompts = self._prompts.replaced(self._prompts.by_name, value)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: Sequence[str] | None = None,
        safe_serialization: bool | None = True,
    ) -> None:
        """Write the hub layout, for this class or sentence-transformers.

        A reranker's activation that torch.nn does not have is not saved, with a ConfigWarning.

        Args:
            folder: made if it does not exist.
            model_name: id of the model for its card, as "organization/name".
            create_model_card: write a card into a folder without a README.md.
            train_datasets: data sets that are added to `model_card_data`.
            safe_serialization: True; weights are always written as safetensors.

        Raises: ValueError, TypeError: invalid argument or prompts, before anything is written.
        """
        self._prompts.check()
        self._note_for_card(model_name, train_datasets, safe_serialization)
        with self._carded(folder) if create_model_card else nullcontext():
            self._save_all(folder)

    def _save_all(self, folder: str | os.PathLike[str]) -> None:
        """Write model, tokenizer and settings."""
        raise NotImplementedError


class EmbedderSettings(FacadeSettings):
    """Those of `Embedder`."""

    embedding_model: EmbeddingModel
    _facade = "embedder"
    _similarity: str
    _truncate_dim: int | None = None

    @property
    def model(self) -> NomicBert:
        """The encoder."""
        return self.embedding_model.encoder

    @property
    def pooling(self) -> Pooling:
        """The modules after the encoder."""
        return self.embedding_model.pooling

    @property
    def _module(self) -> EmbeddingModel:
        return self.embedding_model

    @property
    def _encoder(self) -> NomicBert:
        return self.embedding_model.encoder

    @property
    def _least_length(self) -> int:
        return self._tokenizer.shortest

    def _card(self) -> Card:
        parts = (self.embedding_model, self._prompts, self._max_seq_length)
        return embedder_card(*parts, self._similarity, self._truncate_dim)

    def _origin(self) -> Origin:
        return self.embedding_model.encoder.loaded_from

    @property
    def similarity_fn_name(self) -> str:
        """The function of `similarity`: "cosine", "dot", "euclidean" or "manhattan"."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        self._similarity = similarity_name(value)

    def similarity(self, embeddings1: VectorRows, embeddings2: VectorRows) -> Tensor:
        """Similarity of all rows of one to all of the other, (n, m), by `similarity_fn_name`."""
        return similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: VectorRows, embeddings2: VectorRows) -> Tensor:
        """Similarity of each row of one to the row of the other next to it, (n,)."""
        return similarity_pairwise(embeddings1, embeddings2, self.similarity_fn_name)

    @property
    def truncate_dim(self) -> int | None:
        """Columns that `encode` keeps if a call gives no width; None for all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        pooling = self.embedding_model.pooling
        if value is not None and as_whole("truncate_dim", value) > pooling.embedding_dimension:
            full = pooling.embedding_dimension
            warn(
                f"truncate_dim = {value} is more than the {full} columns of a vector: all are kept",
                ConfigWarning,
            )
            value = full
        pooling.check(Finish(truncate_dim=value))
        self._truncate_dim = None if value is None else int(value)

    @property
    def needs_prompt(self) -> bool:
        """Whether the checkpoint's card requires a prompt before every input."""
        return self._prompts.required

    def prompt_text(self, name: str | None = None) -> str:
        """The text that a prompt's name, or without one the default, puts before an input.

        Raises: ValueError: unknown name; it lists those of the checkpoint.
        """
        return self._prompts.choose(name, None)

    def _save_all(self, folder: str | os.PathLike[str]) -> None:
        self.embedding_model.encoder.save_files(folder)
        self.save_settings(folder)

    def save_settings(self, folder: str | os.PathLike[str]) -> None:
        """Write all that `save_pretrained` writes but the encoder, into a folder that exists.

        Raises: ValueError, TypeError: invalid prompts, before anything is written.
        """
        self._prompts.check()
        parts = (self.embedding_model, self._tokenizer, self._prompts)
        settings = (self._max_seq_length, self._similarity, self._truncate_dim)
        save_modules(Path(folder), *parts, *settings)

    def _limit(self, max_length: int | None) -> int:
        """The limit of a call: its own, or `max_seq_length`."""
        limit = self._max_seq_length if max_length is None else max_length
        return check_limit(limit, self._least_length, self._encoder_config)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors of `encode`, if a call gives none."""
        return self._truncate_dim or self.embedding_model.pooling.embedding_dimension

    def fingerprint(
        self,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        matryoshka_dim: int | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
    ) -> str:
        """The name of the vector space of `encode` with these arguments, to store with vectors.

        Every call reads all parameters, which may have been trained since the last one: about a
        second per 2 GB. The parts of a fingerprint are those of `nomicbert.vectors.fingerprint`.

        >>> len(embedder.fingerprint(prompt_name="search_query"))
        41

        Raises: ValueError, TypeError: invalid argument; an adapter or a hook in the model.
        """
        if matryoshka_dim is None and truncate_dim is None:
            truncate_dim = self.truncate_dim
        finish = Finish(matryoshka_dim, truncate_dim, normalize_embeddings)
        self.embedding_model.pooling.check(finish)
        text = self._prompts.choose(prompt_name, prompt)
        return Fingerprint.of(self.embedding_model, self._tokenizer).of_call(finish, text)
