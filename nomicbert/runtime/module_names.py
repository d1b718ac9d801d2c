"""Methods of a torch module that people call on a whole model, handed on to `embedding_model`.

Where in the flow: a base class of `Embedder`, which is not an nn.Module itself: in
sentence-transformers the model is one.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from nomicbert.arguments import as_device
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.vectors.pooling import Pooling

Self = TypeVar("Self", bound="ModuleNames")


class ModuleNames(EmbedderSettings):
    """What `embedder.embedding_model` has under the same name; its names of parameters count."""

    @property
    def model(self) -> NomicBert:
        """The encoder."""
        return self.embedding_model.encoder

    @property
    def pooling(self) -> Pooling:
        """The modules after the encoder."""
        return self.embedding_model.pooling

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.embedding_model.encoder.dtype

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; `encode` ends it."""
        return self.embedding_model.training

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.embedding_model.parameters(recurse)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with their names."""
        return self.embedding_model.named_parameters(prefix, recurse, remove_duplicate)

    def modules(self) -> Iterator[nn.Module]:
        """All modules."""
        return self.embedding_model.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules with their names."""
        yield from self.embedding_model.named_modules()

    def children(self) -> Iterator[nn.Module]:
        """The encoder and the pooling."""
        return self.embedding_model.children()

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The encoder and the pooling with their names."""
        return self.embedding_model.named_children()

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters by name; names and layout are this package's."""
        return self.embedding_model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> None:
        """Set the parameters to those of a `state_dict`.

        Raises: RuntimeError: other shapes, or with `strict` other names.
        """
        self.embedding_model.load_state_dict(state_dict, strict=strict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        self.embedding_model.zero_grad(set_to_none)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Let all parameters have gradients, or none."""
        self.embedding_model.requires_grad_(requires_grad)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode, for calls of `embedding_model`."""
        self.embedding_model.train(mode)
        return self

    def eval(self: Self) -> Self:
        """End training mode."""
        return self.train(False)

    def to(self: Self, device: torch.device | torch.dtype | str) -> Self:
        """Move encoder and Dense layers, or cast them; ValueError: a device that cannot compute."""
        if device is None:
            raise ValueError("device must be one device's name, not None")
        place = device if isinstance(device, torch.dtype) else as_device(device)
        self.embedding_model.to(place)
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
        self.embedding_model.apply(fn)
        return self
