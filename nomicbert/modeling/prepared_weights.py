"""The side cache of prepared weights: what a backend made of each parameter.

A prepared weight is a second copy in the form a backend likes best. It is no parameter and no
buffer, so it is not saved, moved or trained; it is made at the first use and made again when the
parameter has changed.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nomicbert_kernels import Ops, Weight, WeightKind

Stamp = tuple[Any, ...]
Place = tuple[int, str]

# Numbers of a parameter that are compared at every use.
SAMPLED = 16


class Entry(NamedTuple):
    """A prepared weight, and what its parameters looked like when it was made.

    Attributes:
        stamp: of both parameters.
        parameters: kept alive, so that no other ones can take their addresses.
        samples: of those that the weight holds a copy of, None for the others.
        weight: what was made.
    """

    stamp: Stamp
    parameters: tuple[Tensor, Tensor | None]
    samples: tuple[Tensor | None, Tensor | None]
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


def same(kept: Tensor | None, now: Tensor | None) -> bool:
    """Whether a parameter still has the numbers of its sample, if there is one."""
    return kept is None or now is None or torch.equal(kept, sample(now))


def widened(
    source: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Both in the dtype that they are computed in, which mostly is their own."""
    return source.to(dtype), None if bias is None else bias.to(dtype)


def prepare(
    ops: Ops,
    now: Stamp,
    source: Tensor,
    bias: Tensor | None,
    kind: WeightKind,
    dtype: torch.dtype,
) -> Entry:
    """Make a weight of parameters that look so now."""
    # it may serve a step of training later, as nothing can that was made under inference_mode
    with torch.inference_mode(False), torch.no_grad():
        weight = ops.prepare(*widened(source, bias, dtype), kind)
    if weight.packed is not None:
        if source.is_cuda:
            # what another thread queues on its own stream may use it at once
            torch.cuda.current_stream(source.device).synchronize()
        # beside the packed numbers a cast of the same ones would only take memory
        weight = replace(weight, source=source, computed_in=weight.dtype)
    # what is used as it is cannot be out of date; on a GPU a look would make the host wait
    cast, looks = source.dtype != weight.dtype, source.device.type == "cpu"
    kept = (
        sample(source).clone() if looks and (cast or weight.packed is not None) else None,
        sample(bias).clone() if looks and cast and bias is not None else None,
    )
    return Entry(now, (source, bias), kept, weight)


class PreparedWeights:
    """Prepared weights of one model, by parameter."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: dict[Place, Entry] = {}

    def get(
        self,
        ops: Ops,
        place: Place,
        source: Tensor,
        bias: Tensor | None,
        kind: WeightKind,
        dtype: torch.dtype,
    ) -> Weight:
        """The parameter as `ops` wants it, made now if it is new or has changed.

        Args:
            ops: of the backend.
            place: the module that uses the weight, and for what; one entry is kept for each.
            source: the parameter, (N, K) or (E, N, K).
            bias: (N,) or None.
            kind: how it is used.
            dtype: of the hidden states; told, because a compiled graph cannot ask the CPU.

        Returns: the weight; its `dtype` is that one.
        """
        trained = source.requires_grad or (bias is not None and bias.requires_grad)
        # a step of training would prepare for nothing, and a compiled graph knows no packed tensors
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and trained):
            return Weight(*widened(source, bias, dtype))
        now = (ops.name, dtype, stamp(source), stamp(bias))
        entry = self._entries.get(place)
        if entry is None or entry.stamp != now or not all(map(same, entry.samples, (source, bias))):
            entry = self._entries[place] = prepare(ops, now, source, bias, kind, dtype)
        return entry.weight

    def weights(self) -> list[Weight]:
        """All that are kept now."""
        return [entry.weight for entry in self._entries.values()]

    def clear(self) -> None:
        """Forget everything; the next use makes it anew."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedWeights":
        """A copied model prepares its own: packed weights cannot be copied."""
        return PreparedWeights()

    def __reduce__(self) -> tuple[type["PreparedWeights"], tuple[()]]:
        """A pickled model takes none along, for the same reason."""
        return (PreparedWeights, ())
