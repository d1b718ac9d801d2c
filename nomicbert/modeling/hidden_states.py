"""The hidden states that a call returns, padded, with the gradients passing through them.

A caller may call `hidden_states[i].retain_grad()`, as in transformers: so the layers that follow
compute with what was returned.
"""

import torch
from torch import Tensor

from nomicbert.modeling.context import Hidden
from nomicbert.modeling.packing import Padding
from nomicbert_kernels import values


class PaddedStates(list[Tensor]):
    """Hidden states of a padded batch, each (batch, seq_len, hidden_size)."""

    def __init__(self, padding: Padding, dtype: torch.dtype) -> None:
        """`dtype`: of what is returned, which may be narrower than that of the computation."""
        super().__init__()
        self.padding = padding
        self.dtype = dtype

    def note(self, x: Hidden) -> Hidden:
        """Add a packed state; return the same values, with gradients by way of what was added."""
        packed = values(x)
        padded = self.padding.pad(packed).to(self.dtype)
        self.append(padded)
        if not padded.requires_grad:
            return x
        back = padded.flatten(0, 1)[self.padding.places]
        # where the returned state is rounded, the computation is not
        return packed.detach() + (back - back.detach()).to(packed.dtype)


def noted(states: list[Tensor], x: Hidden) -> Hidden:
    """Add a packed state to a list, packed or padded; return what to go on with."""
    if isinstance(states, PaddedStates):
        return states.note(x)
    states.append(values(x))
    return x
