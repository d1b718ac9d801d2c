"""Base class of modules that a backend computes: its ops, and weights prepared for them.

Both are made at the first use, and dropped when the parameters are moved, cast or replaced.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nomicbert.loading.target import select_ops
from nomicbert.modeling.plain_layers import call, is_plain, is_plain_norm
from nomicbert.modeling.prepared_weights import Place, PreparedWeights
from nomicbert_kernels import Backend, Ops, Weight, compute_dtype, values

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="BackendModule")


class BackendModule(nn.Module):
    """An nn.Module whose parameters (one device, one dtype) are passed to a backend's ops.

    Attributes:
        backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant".
    """

    def __init__(self, backend: Backend) -> None:
        """Defer the choice of ops: the parameters may still be moved or cast."""
        super().__init__()
        self.backend = backend
        self._prepared = PreparedWeights()
        self._ops: Ops | None = None
        self._logged: set[torch.dtype] = set()

    @property
    def device(self) -> torch.device:
        """Device of the parameters; where they are computed if accelerate offloads them."""
        device = self._first_parameter().device
        return device if device.type != "meta" else execution_device(self)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self._first_parameter().dtype

    def _first_parameter(self) -> Tensor:
        """The first parameter, without the walk of `parameters()`, which is too slow per query."""
        found = first_parameter(self)
        assert found is not None, "a model has parameters"
        return found

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        return compute_dtype(self.device, self.dtype)

    @property
    def ops(self) -> Ops:
        """The ops of the backend, selected at the first use for this device and dtype.

        Raises: BackendError: the backend cannot run there.
        """
        if self._ops is None:
            self._ops = select_ops(self.device, self.compute_dtype, self.backend)
            self._log_widened_dtype()
        return self._ops

    def use(self, backend: Backend) -> None:
        """Switch to another backend."""
        self.backend = backend
        self._drop_prepared()

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Apply a layer outside of the encoder: (rows, K) -> (rows, N) in `compute_dtype`."""
        if not is_plain(layer):
            self._prepared.forget(layer)
            return call(layer, x, self.compute_dtype)
        return self.matmul(x, layer.weight, layer.bias, (id(layer), "linear"))

    def matmul(self, x: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
        """As `linear`, for parameters outside of an nn.Linear; `place` is the cache key."""
        prepared = self._prepared.get(self.ops, place, weight, bias, "linear", self.compute_dtype)
        y: Tensor = self.ops.linear(x, prepared)
        return y

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Apply a LayerNorm outside of the encoder: (rows, N), dtype of x."""
        if not is_plain_norm(norm):
            return call(norm, x, x.dtype)
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        return values(self.ops.layer_norm(x, weight, bias, norm.eps))

    @property
    def result_dtype(self) -> torch.dtype:
        """Dtype of what a linear layer outside of the encoder returns: under autocast, its own."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def _log_widened_dtype(self) -> None:
        """Log once per dtype that 16-bit parameters are computed in float32 on a CPU.

        At the first use rather than at load: a model may be loaded here and moved to a GPU.
        """
        dtype = self.dtype
        if self.device.type != "cpu" or dtype in self._logged:
            return
        self._logged.add(dtype)
        if dtype == torch.float16:
            logger.warning("float16 on a CPU is stored as float16 and computed in float32")
        elif dtype != self.compute_dtype:
            logger.info("bfloat16 on this CPU is stored as bfloat16 and computed in float32")

    def prepared_weights(self) -> list[Weight]:
        """The weights prepared so far."""
        return self._prepared.weights()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the ops: another process selects its own."""
        return {**vars(self), "_ops": None}

    def _drop_prepared(self) -> None:
        self._prepared.clear()
        self._ops = None

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Drop prepared weights: torch calls this for every move and cast (`to`, `cuda`)."""
        self._drop_prepared()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode; a change of mode drops prepared weights."""
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
    """The first parameter of a module, depth first; its own come before its children's."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None


def execution_device(module: nn.Module) -> torch.device:
    """The device that accelerate's hooks bring offloaded parameters to; without hooks "meta"."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # several are in a SequentialHook
            if (found := getattr(one, "execution_device", None)) is not None:
                return torch.device(found)
    return torch.device("meta")
