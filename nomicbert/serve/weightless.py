"""A checkpoint without its weights: tokenizer, prompts, limits, labels and shapes.

Where in the flow: with --isolate the workers load the weights, and the server needs all else.
Parameters are on torch's meta device, as in `describe`: no file of weights is opened but those of
modules after pooling.
"""

from pathlib import Path

import torch

from nomicbert.loading.folder import CheckpointFolder, read_folder
from nomicbert.loading.json_settings import naming
from nomicbert.loading.purpose import (
    is_modular,
    is_reranker,
    refuse_unless_embedder,
    refuse_unless_reranker,
)
from nomicbert.loading.weights import Unfilled
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.labels import Labels
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.activation import stated_activation
from nomicbert.runtime.reranker_settings import CrossEncoderSettings
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.text.max_length import stated_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.scores import ModularReranker
from nomicbert.vectors.stated import stated_similarity, stated_truncate_dim
from nomicbert.vectors.step_files import SCORES


class Weightless(EmbedderSettings):
    """The settings of an Embedder, which cannot encode."""

    def __init__(self, checkpoint: CheckpointFolder) -> None:
        """Take the settings of a checkpoint.

        Raises: NomicBertError: as `Embedder`.
        """
        refuse_unless_embedder(checkpoint)
        config = checkpoint.config
        with torch.device("meta"), Unfilled():
            encoder = NomicBert(config)
        with torch.device("meta"):
            pooling = read_pooling(checkpoint, torch.float32)
        self.embedding_model = EmbeddingModel(encoder, pooling)
        self._prompts = Prompts.of(checkpoint.prompts, config)
        self._similarity = stated_similarity(checkpoint)
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, config.vocab_size)
        self._max_seq_length = stated_limit(checkpoint, self._tokenizer.shortest)
        self._truncate_dim = stated_truncate_dim(checkpoint, pooling)


class WeightlessReranker(CrossEncoderSettings):
    """The settings of a CrossEncoder, which cannot predict."""

    def __init__(self, checkpoint: CheckpointFolder) -> None:
        """Take the settings of a checkpoint.

        Raises: NomicBertError: as `CrossEncoder`.
        """
        refuse_unless_reranker(checkpoint, None)
        config = checkpoint.config
        with torch.device("meta"), Unfilled():
            if is_modular(checkpoint):
                encoder = NomicBert(config)
                pooling = read_pooling(checkpoint, torch.float32, output=SCORES)
                labels = Labels.read(config.source).counting(pooling.embedding_dimension)
                self.model = ModularReranker(encoder, pooling, labels)
            else:
                self.model = NomicBertForSequenceClassification(config)
        self._prompts = Prompts.of_reranker(checkpoint.prompts)
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, config.vocab_size)
        self._max_seq_length = checkpoint.limit.tokens
        stated_limit(checkpoint, self._tokenizer.rust.num_special_tokens_to_add(True) + 1)
        with naming(checkpoint.folder):
            self._activation = stated_activation(
                checkpoint.activation, len(self.model.labels.names)
            )


def read_weightless(
    folder: Path, rotary_scaling_factor: float | None
) -> Weightless | WeightlessReranker:
    """Read a checkpoint as what `models.open_model` loads it as.

    Raises: NomicBertError.
    """
    checkpoint = read_folder(folder, rotary_scaling_factor)
    return WeightlessReranker(checkpoint) if is_reranker(checkpoint) else Weightless(checkpoint)
