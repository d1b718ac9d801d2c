"""The side cache of prepared weights: what a backend made of each parameter, never out of date.

A prepared weight is a second copy in the form a backend likes best. It is no parameter and no
buffer, so it is not saved, moved or trained; it is made at the first use and made again when the
parameter has changed. (A change through `parameter.data` goes unseen, by torch's own design:
after one, call `model.train(model.training)`.)
"""

from typing import Any

from torch import Tensor

from nomicbert_kernels import Ops, Weight, WeightKind

Stamp = tuple[Any, ...]


def stamp(tensor: Tensor | None) -> Stamp:
    """What changes whenever the numbers of a parameter may have changed."""
    if tensor is None:
        return ()
    # tensors made under inference_mode keep no version: they cannot be changed outside of it
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), version, tensor.dtype, tensor.device)


class PreparedWeights:
    """Prepared weights of one model, by parameter."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: dict[int, tuple[Stamp, Weight]] = {}

    def get(self, ops: Ops, source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
        """The parameter as `ops` wants it, made now if it is new or has changed."""
        now = (ops.name, stamp(source), stamp(bias))
        # the entry keeps its parameter alive, so an id cannot come to mean another one
        made, weight = self._entries.get(id(source), ((), None))
        if weight is None or made != now:
            weight = ops.prepare(source, bias, kind)
            self._entries[id(source)] = (now, weight)
        return weight

    def clear(self) -> None:
        """Forget everything; the next use makes it anew."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedWeights":
        """A copied model prepares its own: packed weights cannot be copied."""
        return PreparedWeights()

    def __reduce__(self) -> tuple[type["PreparedWeights"], tuple[()]]:
        """A pickled model takes none along, for the same reason."""
        return (PreparedWeights, ())
