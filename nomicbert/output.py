"""What the encoder returns: readable by attribute, key and index, as in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class EncoderOutput(Mapping[str, Value]):
    """Output of `NomicBert.forward`; what was not asked for is None and is left out of the mapping.

    Attributes:
        last_hidden_state: (batch, seq_len, hidden_size); zeros where attention_mask is 0.
        pooler_output: (batch, hidden_size) of a model with a pooling layer, or None.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def to_tuple(self) -> tuple[Value, ...]:
        """All that is there, in the order of the attributes."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        """By name, or by place among what is there."""
        if isinstance(key, str):
            value: Value | None = getattr(self, key, None) if key in _NAMES else None
            if value is None:
                raise KeyError(key)
            return value
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        """Names of what is there."""
        return (name for name in _NAMES if getattr(self, name) is not None)

    def __len__(self) -> int:
        """How many values are there."""
        return sum(1 for _ in self)


_NAMES = tuple(f.name for f in fields(EncoderOutput))
