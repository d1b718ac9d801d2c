"""The side cache of prepared weights: what a backend made of each parameter.

A prepared weight is a second copy in the form a backend likes best. It is no parameter and no
buffer, so it is not saved, moved or trained; it is made at the first use and made again when the
parameter has changed.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nomicbert_kernels import Ops, Weight, WeightKind

Stamp = tuple[Any, ...]
Place = tuple[int, str]

# Numbers of a parameter that are compared at every use.
SAMPLED = 16


class Entry(NamedTuple):
    """A prepared weight, and what its parameter looked like when it was made."""

    stamp: Stamp
    sample: Tensor
    weight: Weight


def stamp(tensor: Tensor | None) -> Stamp:
    """What changes whenever the numbers of a parameter may have changed."""
    if tensor is None:
        return ()
    # tensors made under inference_mode keep no version: they cannot be changed outside of it
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), version, tensor.dtype, tensor.device)


def sample(tensor: Tensor) -> Tensor:
    """A few of a parameter's numbers, spread over it.

    A change through `parameter.data`, as averaging and merging of weights often makes, moves no
    version; it does move these. One that leaves most of the parameter alone goes unseen.
    """
    flat = tensor.detach().flatten()
    # one more than an even share, so that the samples do not all fall into one column
    return flat[:: flat.numel() // SAMPLED + 1]


class PreparedWeights:
    """Prepared weights of one model, by parameter."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: dict[Place, Entry] = {}

    def get(
        self, ops: Ops, place: Place, source: Tensor, bias: Tensor | None, kind: WeightKind
    ) -> Weight:
        """The parameter as `ops` wants it, made now if it is new or has changed.

        Args:
            ops: of the backend.
            place: the module that uses the weight, and for what; one entry is kept for each.
            source: the parameter, (N, K) or (E, N, K).
            bias: (N,) or None.
            kind: how it is used.
        """
        # a step of training would prepare for nothing, and a compiled graph knows no packed tensors
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and source.requires_grad):
            return Weight(source, bias)
        now = (ops.name, stamp(source), stamp(bias))
        entry = self._entries.get(place)
        # an entry keeps its parameter alive, so that no other one can take its address
        if entry is None or entry.stamp != now or self._has_moved(entry, source):
            entry = Entry(now, sample(source).clone(), ops.prepare(source, bias, kind))
            self._entries[place] = entry
        return entry.weight

    def _has_moved(self, entry: Entry, source: Tensor) -> bool:
        # what is used as it is cannot be out of date; on a GPU a look would make the host wait
        if entry.weight.packed is None or source.device.type != "cpu":
            return False
        return not torch.equal(entry.sample, sample(source))

    def clear(self) -> None:
        """Forget everything; the next use makes it anew."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedWeights":
        """A copied model prepares its own: packed weights cannot be copied."""
        return PreparedWeights()

    def __reduce__(self) -> tuple[type["PreparedWeights"], tuple[()]]:
        """A pickled model takes none along, for the same reason."""
        return (PreparedWeights, ())
