"""Heads with labels as targets: of texts, of tokens, of masked words."""

from typing import TYPE_CHECKING

from torch import Tensor

from nomicbert.modeling.call_types import LabelledCall
from nomicbert.modeling.heads import losses
from nomicbert.modeling.heads.head import Head
from nomicbert.modeling.output import LogitsOutput, Value
from nomicbert.modeling.packing import PackedBatch, Padding
from nomicbert.modeling.tracing import refuse_tracing


class LabelledHead(Head):
    """A head with labels as targets."""

    accepts_loss_kwargs = True

    if TYPE_CHECKING:
        __call__: LabelledCall

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Value, ...]:
        """Logits of a padded batch, and the loss if labels are given.

        Args:
            input_ids: (batch, seq_len) int, padded on either side.
            attention_mask: (batch, seq_len), 1 keeps a token, 0 drops it; None keeps all.
            token_type_ids: (batch, seq_len) int; None means type 0.
            position_ids: (batch, seq_len) int in place of the column numbers.
            inputs_embeds: (batch, seq_len, hidden_size) in place of input_ids.
            labels: per token: (batch, seq_len) int, -100 to ignore, also where attention_mask is 0.
                Per text: (batch,) int, or float depending on the problem type.
            num_items_in_batch: divide the sum over all labels by this number, in place of their
                own: that of several batches whose gradients are added up.
            output_attentions: not supported; None or False.
            output_hidden_states: also return the embeddings' output and each layer's; None takes
                config.json's value, or False.
            return_dict: False returns a plain tuple; None takes config.json's value, or True.

        Returns: logits in the model's dtype, or in autocast's if that is on; the loss in fp32.
        Raises: ValueError: labels of a wrong shape or out of range, a label for a text without
            tokens; errors of `NomicBert.forward`.
        """
        refuse_tracing(input_ids, attention_mask, inputs_embeds, position_ids)
        wanted = self.encoder.defaults.asked(output_attentions, output_hidden_states, return_dict)
        logits, batch, padding, hidden = self._run(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, wanted
        )
        loss = (
            None
            if labels is None
            else self.loss(logits, labels, batch, padding, num_items_in_batch)
        )
        output = LogitsOutput(loss, self.placed(logits, padding), hidden)
        return output if wanted.return_dict else output.to_tuple()

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        batch: PackedBatch,
        padding: Padding,
        items: losses.Items = None,
    ) -> Tensor:
        """() fp32, from packed logits and the labels of `forward`; `items` as in `losses`."""
        return losses.tokens(logits, labels, padding, items)

    def placed(self, logits: Tensor, padding: Padding) -> Tensor:
        """Packed logits in the layout that `forward` returns."""
        return padding.pad(logits)
