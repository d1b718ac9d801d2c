"""What a model computes with: the ops of a backend, and weights prepared for them.

Both are chosen at the first use, and dropped when the parameters move, are cast or are replaced.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nomicbert.loading.target import select_ops
from nomicbert.modeling.prepared_weights import Place, PreparedWeights
from nomicbert_kernels import Backend, Ops, Weight, compute_dtype

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="Computing")


class Computing(nn.Module):
    """A module whose parameters, all on one device and in one dtype, the ops compute with.

    Attributes:
        backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant".
    """

    def __init__(self, backend: Backend) -> None:
        """Choose nothing yet: the parameters may still move."""
        super().__init__()
        self.backend = backend
        self._prepared = PreparedWeights()
        self._ops: Ops | None = None
        self._said: set[torch.dtype] = set()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._first_parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self._first_parameter().dtype

    def _first_parameter(self) -> Tensor:
        """The first of `parameters()`, whose walk takes longer than a query has."""
        found = first_parameter(self)
        assert found is not None, "a model has parameters"
        return found

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the hidden states on their way through the layers."""
        return compute_dtype(self.device, self.dtype)

    @property
    def ops(self) -> Ops:
        """The functions of the backend, chosen at the first use on a device and dtype.

        Raises: BackendError: it cannot run there.
        """
        if self._ops is None:
            self._ops = select_ops(self.device, self.compute_dtype, self.backend)
            self._say_what_the_dtype_costs()
        return self._ops

    def use(self, backend: Backend) -> None:
        """Compute with another backend from now on."""
        self.backend = backend
        self._drop_prepared()

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """A linear layer behind the encoder's own: (rows, K) -> (rows, N) in `compute_dtype`."""
        return self.product(x, layer.weight, layer.bias, (id(layer), "linear"))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
        """The same for parameters of no such layer; `place` names their use."""
        prepared = self._prepared.get(self.ops, place, weight, bias, "linear", self.compute_dtype)
        y: Tensor = self.ops.linear(x, prepared)
        return y

    def _say_what_the_dtype_costs(self) -> None:
        """Once a model, and where the arithmetic runs: it may be loaded here to move to a GPU."""
        dtype = self.dtype
        if self.device.type != "cpu" or dtype in self._said:
            return
        self._said.add(dtype)
        if dtype == torch.float16:
            logger.warning("float16 on a CPU is stored as float16 and computed in float32")
        elif dtype != self.compute_dtype:
            logger.info("bfloat16 on this CPU is stored as bfloat16 and computed in float32")

    def prepared_weights(self) -> list[Weight]:
        """What has been prepared so far."""
        return self._prepared.weights()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which chooses ops of its own."""
        return {**vars(self), "_ops": None}

    def _drop_prepared(self) -> None:
        self._prepared.clear()
        self._ops = None

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Every move and cast (`to`, `half`, `cuda`) comes through here."""
        self._drop_prepared()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def train(self: Self, mode: bool = True) -> Self:
        """Switch dropout on or off; prepared weights are dropped when that changes anything."""
        if mode != self.training:
            self._drop_prepared()
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch; prepared weights are dropped."""
        self._drop_prepared()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def first_parameter(module: nn.Module) -> Tensor | None:
    """The first parameter of a module, its own before its children's."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None
