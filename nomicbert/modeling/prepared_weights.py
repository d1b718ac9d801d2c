"""Cache of prepared weights: parameters in the form that a backend computes with.

A prepared weight may be a second copy, such as a packed one. It is neither a parameter nor a
buffer, so it is not saved, moved or trained. It is made at the first use and remade when the
parameter has changed.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nomicbert.loading.mapped_weights import reading
from nomicbert_kernels import Ops, Weight, WeightKind

Stamp = tuple[Any, ...]
Place = tuple[int, str]

# Upper bound on the elements of a parameter that are compared at every use.
SAMPLED = 16


class Sample(NamedTuple):
    """A few elements of a parameter, spread over it.

    A change through `parameter.data`, common in weight averaging and merging, does not increase
    the version, but it changes these values. A change to a small part of the parameter is missed.

    Attributes:
        kept: the elements when the weight was made.
        live: the same elements in the parameter's own memory; None if they are not regularly
            placed there.
    """

    kept: Tensor
    live: Tensor | None

    @classmethod
    def of(cls, parameter: Tensor) -> "Sample":
        """Take a sample now."""
        now = elements(parameter)
        return cls(now.clone(), now if parameter.is_contiguous() else None)

    def holds(self, parameter: Tensor) -> bool:
        """Whether the parameter still has these values; its stamp has been compared."""
        return torch.equal(self.kept, elements(parameter) if self.live is None else self.live)


class Entry(NamedTuple):
    """A prepared weight, with the data that tells whether it is out of date.

    Attributes:
        stamp: of both parameters when the weight was made.
        parameters: kept alive, so that a new tensor cannot reuse their addresses.
        samples: of the parameters that the weight copies, None for the others.
        weight: the prepared weight.
    """

    stamp: Stamp
    parameters: tuple[Tensor, Tensor | None]
    samples: tuple[Sample | None, Sample | None]
    weight: Weight


def stamp(tensor: Tensor | None) -> Stamp:
    """Identify a parameter's storage and version, to detect that its values may have changed."""
    if tensor is None:
        return ()
    # inference tensors have no version counter; they cannot be changed outside inference_mode
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), version, tensor.dtype, tensor.device)


def elements(tensor: Tensor) -> Tensor:
    """Up to SAMPLED elements of a parameter: a view of it if it is contiguous."""
    flat = tensor.detach().flatten()
    # + 1, so that the stride is mostly no multiple of the row, and samples cover several columns
    return flat[:: flat.numel() // SAMPLED + 1]


def same(sample: Sample | None, now: Tensor | None) -> bool:
    """Whether a parameter still matches its sample; True if there is no sample."""
    return sample is None or now is None or sample.holds(now)


def widened(
    source: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in `dtype`, the compute dtype: mostly their own, so no copy is made."""
    return source.to(dtype), None if bias is None else bias.to(dtype)


def prepare(
    ops: Ops,
    now: Stamp,
    source: Tensor,
    bias: Tensor | None,
    kind: WeightKind,
    dtype: torch.dtype,
) -> Entry:
    """Prepare a weight; `now` is the stamp of its parameters."""
    # an inference tensor could not be used in a later training step
    with torch.inference_mode(False), torch.no_grad():
        # Packing a view of a file must not make its pages resident next to the packed copy. But in
        # bfloat16 the plain form may be kept too (BlockedWeight), and that is the parameter itself.
        read = source if dtype == torch.bfloat16 else reading(source)
        weight = ops.prepare(*widened(read, bias, dtype), kind)
    if weight.source is read:
        weight = replace(weight, source=source)
    if weight.packed is not None:
        if source.is_cuda:
            # another thread may use the weight at once on a stream of its own
            torch.cuda.current_stream(source.device).synchronize()
        # next to the packed copy, a cast copy would only take memory: refer to the parameter
        weight = replace(weight, source=source, computed_in=weight.dtype)
    # a weight that is not a copy cannot be out of date; comparing on a GPU would block the host
    cast, compared = source.dtype != weight.dtype, source.device.type == "cpu"
    with torch.inference_mode(False):
        samples = (
            Sample.of(source) if compared and (cast or weight.packed is not None) else None,
            Sample.of(bias) if compared and cast and bias is not None else None,
        )
    return Entry(now, (source, bias), samples, weight)


class PreparedWeights:
    """Prepared weights of one model, by parameter."""

    def __init__(self) -> None:
        """Create an empty cache."""
        self._entries: dict[Place, Entry] = {}
        # weights forgotten so far: if there are more, those who keep weights have to ask again
        self.forgotten = 0

    def get(
        self,
        ops: Ops,
        place: Place,
        source: Tensor,
        bias: Tensor | None,
        kind: WeightKind,
        dtype: torch.dtype,
    ) -> Weight:
        """The prepared weight of a parameter, made now if it is new or has changed.

        Args:
            ops: of the backend.
            place: key of the entry: id of the module that uses the weight, and the use.
            source: the parameter, (N, K) or (E, N, K).
            bias: (N,) or None.
            kind: how it is used.
            dtype: of the hidden states; passed in, because a compiled graph cannot query the CPU.

        Returns: the weight; its `dtype` is the one passed in.
        """
        trained = source.requires_grad or (bias is not None and bias.requires_grad)
        # a training step changes the parameter anyway; a compiled graph cannot use packed tensors
        direct = torch.compiler.is_compiling() or (torch.is_grad_enabled() and trained)
        # a parameter that vmap runs over has no storage
        if direct or (type(source) is Tensor and torch._C._functorch.is_batchedtensor(source)):
            return Weight(*widened(source, bias, dtype))
        now = (ops.name, dtype, stamp(source), stamp(bias))
        entry = self._entries.get(place)
        if entry is None or entry.stamp != now or not all(map(same, entry.samples, (source, bias))):
            entry = self._entries[place] = prepare(ops, now, source, bias, kind, dtype)
        return entry.weight

    def weights(self) -> list[Weight]:
        """All cached weights."""
        return [entry.weight for entry in self._entries.values()]

    def forget(self, layer: nn.Module) -> None:
        """Drop the weights of a layer and its parts, which are called and not prepared.

        When the layer is plain again, its weight may have changed unnoticed, as by a merged LoRA.
        """
        owners = set(map(id, layer.modules()))
        for place in [place for place in list(self._entries) if place[0] in owners]:
            self._entries.pop(place, None)
            self.forgotten += 1

    def clear(self) -> None:
        """Drop all weights; the next use prepares them again."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedWeights":
        """A copied model prepares its own: packed weights cannot be copied."""
        return PreparedWeights()

    def __reduce__(self) -> tuple[type["PreparedWeights"], tuple[()]]:
        """Pickle as an empty cache, for the same reason."""
        return (PreparedWeights, ())
