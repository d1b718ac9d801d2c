"""Question answering head: the first and the last token of the answer.

Source: Devlin et al. 2018, arXiv:1810.04805, section 4.2.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.call_types import SpanCall
from nomicbert.modeling.heads import losses
from nomicbert.modeling.heads.head import Head
from nomicbert.modeling.output import SpanOutput, Value
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.tracing import refuse_tracing
from nomicbert_kernels import Backend


class NomicBertForQuestionAnswering(Head):
    """Logits of each token for being the first and the last of an answer."""

    task = "QuestionAnswering"

    if TYPE_CHECKING:
        __call__: SpanCall

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None = None, backend: Backend = "auto"
    ) -> None:
        """See `Head`; `num_labels` can only be 2, the start and the end."""
        if num_labels not in (None, 2):
            raise ValueError(f"an answer has a start and an end: num_labels is 2, not {num_labels}")
        super().__init__(config, num_labels=2, backend=backend)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self._initialise()

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """(T, 2) of packed texts."""
        hidden = self.encoder.encode_packed(batch, states=states)
        return self.encoder.linear(hidden, self.qa_outputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SpanOutput | tuple[Value, ...]:
        """Logits of a padded batch, and the loss if both positions are given.

        Padding is excluded from the softmax; in transformers it is not.

        Args:
            input_ids: (batch, seq_len) int, padded on either side.
            attention_mask: (batch, seq_len), 1 keeps a token, 0 drops it; None keeps all.
            token_type_ids: (batch, seq_len) int; None means type 0.
            position_ids: (batch, seq_len) int in place of the column numbers.
            inputs_embeds: (batch, seq_len, hidden_size) in place of input_ids.
            start_positions: (batch,) int, the column of the answer's first token; seq_len or more
                if there is no answer, which leaves the row out of the loss.
            end_positions: the same for its last token.
            output_attentions: not supported; None or False.
            output_hidden_states: also return the embeddings' output and each layer's; None takes
                config.json's value, or False.
            return_dict: False returns a plain tuple; None takes config.json's value, or True.

        Raises: ValueError: a position below 0 or on padding, or as in `NomicBert.forward`.
        """
        refuse_tracing(input_ids, attention_mask, inputs_embeds, position_ids)
        wanted = self.encoder.defaults.asked(output_attentions, output_hidden_states, return_dict)
        logits, _, padding, hidden = self._run(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, wanted
        )
        shape = (padding.rows, padding.columns)
        low = torch.finfo(logits.dtype).min
        starts, ends = (
            logits.new_full((padding.rows * padding.columns,), low)
            .index_copy(0, padding.places, column)
            .view(shape)
            for column in logits.unbind(1)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = losses.spans(starts, ends, start_positions, end_positions, padding)
        output = SpanOutput(loss, starts, ends, hidden)
        return output if wanted.return_dict else output.to_tuple()
