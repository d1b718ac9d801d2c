"""What the models return: readable by attribute, key and index, as in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]


class Output(Mapping[str, Value]):
    """A dataclass of tensors; what is None was not asked for and is left out of the mapping."""

    def to_tuple(self) -> tuple[Value, ...]:
        """All that is there, in the order of the attributes."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        """By name, or by place among what is there."""
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        """Names of what is there."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        """How many values are there."""
        return sum(1 for _ in self)


@dataclass(frozen=True, eq=False)
class EncoderOutput(Output):
    """Output of `NomicBert.forward`.

    Attributes:
        last_hidden_state: (batch, seq_len, hidden_size); zeros where attention_mask is 0.
        pooler_output: (batch, hidden_size) of a model with a pooling layer, or None.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class LogitsOutput(Output):
    """Output of a head that gives one row of logits a text or a token.

    Attributes:
        loss: () fp32, or None without labels.
        logits: (batch, num_labels), or (batch, seq_len, num_labels or vocab_size) with zeros where
            attention_mask is 0.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class SpanOutput(Output):
    """Output of the head for question answering.

    Attributes:
        loss: () fp32, or None without positions.
        start_logits: (batch, seq_len) that an answer starts there; the dtype's smallest number
            where attention_mask is 0, so that no answer does.
        end_logits: the same for its last token.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
