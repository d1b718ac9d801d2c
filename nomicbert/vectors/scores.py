"""Rerankers as a list of modules: an encoder, Pooling, and steps whose last gives the scores.

Source: what CrossEncoder of sentence-transformers 6 loads and saves.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nomicbert.errors import ConfigError
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.json_settings import naming
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.labels import Labels
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, at_rows
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.saving import save_pooling
from nomicbert.vectors.step_files import SCORES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.pretrained import ModelKeywords


class ModularReranker(NomicBertForSequenceClassification):
    """Classify whole texts by modules after the encoder, in place of pooler and classifier.

    Attributes:
        pooling: hidden states -> logits.
    """

    def __init__(self, encoder: NomicBert, pooling: Pooling, labels: Labels) -> None:
        """Keep references: nothing is copied or moved."""
        nn.Module.__init__(self)
        self.encoder = encoder
        self.pooling = pooling
        self.labels = labels

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """(B, num_labels) of packed texts; zeros for an empty text."""
        filled, kept = batch.without_empty()
        ctx = self.encoder.context(filled)
        rows = self.pooling.rows(filled) if states is None else None
        hidden = self.encoder.core(ctx, rows, states)
        logits: Tensor = self.pooling(hidden, ctx, rows, Finish())
        return logits if filled is batch else at_rows(logits, kept, len(batch.lengths))

    def save_files(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the encoder as the hub has it, and the modules as sentence-transformers has them.

        Raises: ValueError: a state dict, whose modules have no names on the hub.
        """
        if state_dict is not None:
            raise ValueError("state_dict is not supported for a reranker of modules: load it first")
        self.encoder.save_files(folder)
        save_pooling(Path(folder), self.pooling, self.config.hidden_size, SCORES)


def load_modular(
    checkpoint: CheckpointFolder,
    *,
    num_labels: int | None = None,
    problem_type: str | None = None,
    ignore_mismatched_sizes: bool = False,
    **keywords: "Unpack[ModelKeywords]",
) -> ModularReranker:
    """Load a reranker as a list of modules.

    Args:
        checkpoint: its settings.
        num_labels: must be what the modules give, or None.
        problem_type: as for `NomicBertForSequenceClassification.from_pretrained`.
        ignore_mismatched_sizes: accepted as there; modules are never replaced by new ones.
        **keywords: those of `NomicBert.from_pretrained`.

    Raises: ConfigError, CheckpointError: damaged, not supported, or of another `num_labels`.
    """
    encoder = NomicBert.from_pretrained(checkpoint, **keywords)
    pooling = read_pooling(checkpoint, encoder.dtype, output=SCORES).to(encoder.device)
    given = pooling.embedding_dimension
    if num_labels not in (None, given):
        raise ConfigError(
            f"{checkpoint.folder} gives {given} scores a pair by its modules, not num_labels = "
            f"{num_labels}: leave num_labels out"
        )
    with naming(checkpoint.encoder / "config.json"):
        labels = Labels.read(encoder.config.source).counting(given)
    return ModularReranker(encoder, pooling, labels.meant_as(problem_type or labels.problem_type))
