"""Methods of a torch module that people call on a whole model, handed on to the facade's module.

Where in the flow: a base class of `Embedder` and `CrossEncoder`, which are no nn.Module themselves:
in sentence-transformers the model is one.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from nomicbert.arguments import as_device
from nomicbert.runtime.settings import FacadeSettings

Self = TypeVar("Self", bound="ModuleNames")


class ModuleNames(FacadeSettings):
    """What the module has under the same name; its names of parameters count."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self._encoder.dtype

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; a call ends it."""
        return self._module.training

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self._module.parameters(recurse)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with their names."""
        return self._module.named_parameters(prefix, recurse, remove_duplicate)

    def modules(self) -> Iterator[nn.Module]:
        """All modules."""
        return self._module.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules with their names."""
        yield from self._module.named_modules()

    def children(self) -> Iterator[nn.Module]:
        """The parts: the encoder, and what follows it."""
        return self._module.children()

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts with their names."""
        return self._module.named_children()

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters by name; names and layout are this package's."""
        return self._module.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> None:
        """Set the parameters to those of a `state_dict`.

        Raises: RuntimeError: other shapes, or with `strict` other names.
        """
        self._module.load_state_dict(state_dict, strict=strict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        self._module.zero_grad(set_to_none)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Let all parameters have gradients, or none."""
        self._module.requires_grad_(requires_grad)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode, for calls of the module."""
        self._module.train(mode)
        return self

    def eval(self: Self) -> Self:
        """End training mode."""
        return self.train(False)

    def to(self: Self, device: torch.device | torch.dtype | str) -> Self:
        """Move all parameters, or cast them; ValueError: a device that cannot compute."""
        if device is None:
            raise ValueError("device must be one device's name, not None")
        place = device if isinstance(device, torch.dtype) else as_device(device)
        self._module.to(place)
        return self

    def cpu(self: Self) -> Self:
        """Move the model to the CPU."""
        return self.to("cpu")

    def cuda(self: Self, device: torch.device | int | None = None) -> Self:
        """Move the model to a GPU, by default the current one."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def half(self: Self) -> Self:
        """Cast the parameters to float16."""
        return self.to(torch.float16)

    def bfloat16(self: Self) -> Self:
        """Cast the parameters to bfloat16."""
        return self.to(torch.bfloat16)

    def float(self: Self) -> Self:
        """Cast the parameters to float32."""
        return self.to(torch.float32)

    def apply(self: Self, fn: Callable[[nn.Module], None]) -> Self:
        """Call a function with every module."""
        self._module.apply(fn)
        return self
