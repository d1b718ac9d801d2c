"""Classification heads: of whole texts, from their first token, and of each token.

Source: Devlin et al. 2018, arXiv:1810.04805, sections 4.1 and 5.3.
"""

from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.heads import losses
from nomicbert.modeling.heads.labelled import LabelledHead
from nomicbert.modeling.packing import PackedBatch, Padding, at_rows
from nomicbert_kernels import Backend


class NomicBertForSequenceClassification(LabelledHead):
    """Classify whole texts by their first token: classifier(tanh(dense(first token)))."""

    task = "SequenceClassification"
    pooled = True
    label_keywords = ("id2label", "label2id", "problem_type", "classifier_dropout")

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None = None, backend: Backend = "auto"
    ) -> None:
        """See `Head`."""
        super().__init__(config, num_labels=num_labels, backend=backend)
        self.classifier = nn.Linear(config.hidden_size, len(self.labels.names))
        self._initialise()

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """(B, num_labels) of packed texts; zeros for an empty text."""
        encoder, (filled, kept) = self.encoder, batch.without_empty()
        first = filled.first_tokens()
        if states is None:
            hidden = encoder.encode_packed(filled, rows=first)
        else:
            hidden = encoder.encode_packed(filled, states=states)[first]
        assert encoder.pooler is not None  # built because `pooled` is set
        x = self._dropout(encoder.linear(hidden, encoder.pooler).tanh())
        logits = encoder.linear(x, self.classifier)
        if filled is batch:
            return logits
        return at_rows(logits, kept, len(batch.lengths))

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        batch: PackedBatch,
        padding: Padding,
        items: losses.Items = None,
    ) -> Tensor:
        """() fp32, from logits and the labels passed to `forward`; `items` as in `losses`."""
        if 0 in batch.lengths:
            row = batch.lengths.index(0)
            raise ValueError(f"row {row} of attention_mask keeps no token, but it has a label")
        return losses.texts(logits, labels, self.labels.problem_type, items)

    def placed(self, logits: Tensor, padding: Padding) -> Tensor:
        """Unchanged: there is one row per text, not per token."""
        return logits


class NomicBertForTokenClassification(LabelledHead):
    """Classify each token, as for named entities."""

    task = "TokenClassification"
    label_keywords = NomicBertForSequenceClassification.label_keywords

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None = None, backend: Backend = "auto"
    ) -> None:
        """See `Head`."""
        super().__init__(config, num_labels=num_labels, backend=backend)
        self.classifier = nn.Linear(config.hidden_size, len(self.labels.names))
        self._initialise()

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """(T, num_labels) of packed texts."""
        hidden = self.encoder.encode_packed(batch, states=states)
        return self.encoder.linear(self._dropout(hidden), self.classifier)
