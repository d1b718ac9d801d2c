"""One call of an op: its input, the exact result and the error bound of a kernel.

The GPU tests check such calls and the benchmarks time them. The exact result is the reference's on
the same values in fp64; the error of plain torch in the dtype gives the bound.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from nomicbert_kernels import Ops, select_ops
from nomicbert_kernels.backend import TORCH

Tensors = dict[str, Tensor]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """A call of one op.

    Attributes:
        op: its name in `Ops`.
        tensors: its inputs, by name.
        bind: (ops, tensors) -> the call, with weights prepared and the batch planned.
        leaves: names of the tensors that have a gradient.
        tokens: tokens of all texts, without padding.
        flops: of the matmuls; 0 if there is none.
        bytes: of every input and the result, once each.
    """

    op: str
    tensors: Tensors
    bind: Callable[[Ops, Tensors], Call]
    leaves: tuple[str, ...]
    tokens: int
    flops: float
    bytes: float

    def run(self, ops: Ops) -> Tensor:
        """The result with these ops."""
        return self.bind(ops, self.tensors)()

    def truth(self, **changed: Tensor) -> Tensor:
        """The reference's result in fp64, with some tensors replaced."""
        exact = doubled(self.tensors | changed)
        device = next(iter(exact.values())).device
        return self.bind(select_ops(device, torch.float64, "reference"), exact)()

    def plain(self) -> Tensor:
        """The result of torch's functions in the dtype."""
        return self.run(TORCH)

    def copy(self) -> Tensors:
        """Copies of the tensors with the same strides."""
        return {name: moved(t) for name, t in self.tensors.items()}

    def gradients(self, ops: Ops, upstream: Tensor) -> Tensors:
        """The gradient of each leaf, given the gradient of the result."""
        return self.differentiate(ops, self.tensors, upstream)

    def true_gradients(self, upstream: Tensor) -> Tensors:
        """The gradients of the reference in fp64."""
        ops = select_ops(upstream.device, torch.float64, "reference")
        return self.differentiate(ops, doubled(self.tensors), upstream)

    def differentiate(self, ops: Ops, tensors: Tensors, upstream: Tensor) -> Tensors:
        """The gradient of each leaf, computed from these tensors."""
        mine = {name: tensors[name].detach().requires_grad_() for name in self.leaves}
        result = self.bind(ops, tensors | mine)()
        found = torch.autograd.grad(result, list(mine.values()), upstream.to(result.dtype))
        return dict(zip(mine, found, strict=True))


@dataclass
class Draw:
    """Draws tensors of one dtype on one device, reproducibly from a seed.

    Attributes:
        apart: columns of NaN between the rows of every activation.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    apart: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.seed)

    def __call__(self, *shape: int, scale: float = 1.0, middle: float = 0.0) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, device=self.device)
        return (drawn * scale + middle).to(self.dtype)

    def rows(self, *shape: int, scale: float = 1.0) -> Tensor:
        """An activation, strided if `apart` is set."""
        drawn = self(*shape, scale=scale)
        return spread(drawn, self.apart) if self.apart else drawn

    def weight(self, *shape: int) -> Tensor:
        """A weight that keeps the scale of its input."""
        return self(*shape, scale=shape[-1] ** -0.5)

    def ids(self, limit: int, count: int) -> Tensor:
        shape = (count,)
        return torch.randint(limit, shape, generator=self.generator, device=self.device)


def spread(x: Tensor, columns: int) -> Tensor:
    """The same values, with `columns` columns of NaN between the rows."""
    width = math.prod(x.shape[1:])
    wide = x.new_full((x.shape[0], width + columns), float("nan"))
    return wide[:, :width].unflatten(1, x.shape[1:]).copy_(x)


def moved(t: Tensor) -> Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)


def doubled(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same values in fp64."""
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def size_of(*tensors: Tensor) -> float:
    """Bytes of the values."""
    return float(sum(t.numel() * t.element_size() for t in tensors))


def offsets_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """cu_seqlens."""
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return ends.to(device)


def error_and_bound(got: Tensor, truth: Tensor, plain: Tensor) -> tuple[float, float]:
    """The largest error of a kernel, and its bound.

    The bound is twice the error of plain torch in the same dtype, plus 4 eps of the largest value.
    """
    if got.dtype != plain.dtype or got.shape != truth.shape:
        raise ValueError(
            f"the result is {got.dtype} {tuple(got.shape)}, not {plain.dtype} {tuple(truth.shape)}"
        )
    if not truth.numel():
        return 0.0, 0.0
    wrong, usual = ((t.double() - truth).abs().max().item() for t in (got, plain))
    return wrong, 2 * usual + 4 * torch.finfo(got.dtype).eps * truth.abs().max().item()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill uninitialised floating-point memory with NaN, so that unwritten results show."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*given: Any, **keywords: Any) -> Tensor:
            out = make(*given, **keywords)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return made

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (Tensor, "new_empty"),
        ):
            patch: Any = mock.patch.object(owner, name, poison(getattr(owner, name)))
            stack.enter_context(patch)
        yield
