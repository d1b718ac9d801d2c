"""A checkpoint without its weights: tokenizer, prompts, limits and shapes.

Where in the flow: with --isolate the workers load the weights, and the server needs all else.
Parameters are on torch's meta device, as in `describe`: no file of weights is opened but those of
modules after pooling.
"""

from pathlib import Path

import torch

from nomicbert.loading.folder import read_folder
from nomicbert.loading.purpose import refuse_unless_embedder
from nomicbert.loading.weights import Unfilled
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.text.max_length import stated_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.stated import stated_similarity, stated_truncate_dim


class Weightless(EmbedderSettings):
    """The settings of an Embedder, which cannot encode."""

    def __init__(self, folder: Path, rotary_scaling_factor: float | None) -> None:
        """Read the settings of a checkpoint.

        Raises: NomicBertError: as `Embedder`.
        """
        checkpoint = read_folder(folder, rotary_scaling_factor)
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
