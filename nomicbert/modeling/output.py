"""Outputs of the models, readable by attribute, key and index, as in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal, overload

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]


class Output(Mapping[str, Value]):
    """A dataclass of tensors. The mapping leaves out fields that are None (not requested)."""

    def to_tuple(self) -> tuple[Value, ...]:
        """The fields that are not None, in the order of the attributes."""
        return tuple(self[name] for name in self)

    @overload
    def __getitem__(self, key: Literal[0]) -> Tensor: ...

    @overload
    def __getitem__(self, key: str | int) -> Value: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Value, ...]: ...

    def __getitem__(self, key: str | int | slice) -> Value | tuple[Value, ...]:
        """By name, or by index among the fields that are not None."""
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(key)
            found: Value = getattr(self, key)
            return found
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        """Names of the fields that are not None."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        """Number of fields that are not None."""
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
    """Output of a head that gives one row of logits per text or per token.

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
        start_logits: (batch, seq_len), of the first token of an answer; the dtype's lowest value
            where attention_mask is 0, so that no answer starts there.
        end_logits: the same for the last token.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
