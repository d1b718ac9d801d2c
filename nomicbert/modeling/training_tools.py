"""What tools of training ask of a model: transformers' Trainer, accelerate and peft.

Base class of `NomicBert` and of the heads. Names and meanings are those of PreTrainedModel.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nomicbert.arguments import as_whole
from nomicbert.loading.given_tensors import own_tensors
from nomicbert.modeling.model_config import ModelConfig

if TYPE_CHECKING:
    import torch


class TrainedModule(nn.Module):
    """A model that such tools train.

    Attributes:
        main_input_name: of `forward`, whose elements Trainer counts.
        accepts_loss_kwargs: whether `forward` takes num_items_in_batch.
    """

    main_input_name: ClassVar[str] = "input_ids"
    base_model_prefix: ClassVar[str] = ""
    accepts_loss_kwargs: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = True
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None
    _input_hook: RemovableHandle | None = None

    if TYPE_CHECKING:

        @property
        def dtype(self) -> torch.dtype:
            """Dtype of the parameters."""

    def _config(self) -> ModelConfig:
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table."""
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        """The layer that gives a logit per word; None: there is none."""
        return None

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace that layer.

        Raises: TypeError: there is none.
        """
        raise TypeError(f"{type(self).__name__} has no layer that gives a logit per word")

    def tie_weights(self) -> None:
        """Share what config.json says is shared: nothing but the words of a masked LM head."""

    @classmethod
    def can_generate(cls) -> bool:
        """False: an encoder generates no text."""
        return False

    @property
    def base_model(self) -> nn.Module:
        """The encoder under a head; an encoder is its own."""
        found: nn.Module = getattr(self, self.base_model_prefix) if self.base_model_prefix else self
        return found

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Elements of all parameters.

        Args:
            only_trainable: leave out parameters that need no gradient.
            exclude_embeddings: leave out the tables of words, token types and positions.
        """
        tables = {
            f"{name}.weight"
            for name, module in self.named_modules()
            if exclude_embeddings and isinstance(module, nn.Embedding)
        }
        return sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if name not in tables and (parameter.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all parameters, and of buffers; prepared weights are not counted."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def enable_input_require_grads(self) -> None:
        """Let the embeddings need gradients though their table does not, as for adapters.

        The hook on the table makes torch compute it, whatever the backend.
        """
        if self._input_hook is None:
            self._input_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._input_hook is not None:
            self._input_hook.remove()
            self._input_hook = None

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, object] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, keep each layer's input only and compute the layer again going back.

        Args:
            activation_checkpointing_kwargs: {"use_reentrant": ...} is accepted for existing call
                sites: torch's newer form, which is not reentrant, always runs.
            every_n_layers: checkpoint only one layer in so many, the first one included.
            offload: not supported; False.

        Raises: TypeError, ValueError: anything else.
        """
        for name in activation_checkpointing_kwargs or ():
            if name != "use_reentrant":
                raise TypeError(f"checkpointing takes use_reentrant only, not {name!r}")
        if offload:
            raise ValueError("offload=True is not supported: inputs of layers stay on the device")
        if as_whole("every_n_layers", every_n_layers) < 1:
            raise ValueError(f"every_n_layers must be at least 1, not {every_n_layers}")
        self._checkpoint(every_n_layers)

    def activation_checkpointing_disable(self) -> None:
        """Keep all that going back needs, which is faster."""
        self._checkpoint(0)

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, object] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether layers are computed again going back."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The older name of `is_activation_checkpointing`."""
        return self.is_activation_checkpointing

    def _checkpoint(self, every: int) -> None:
        """Checkpoint one layer in so many; 0: none."""
        raise NotImplementedError

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch, also from tensors in a layout of the hub, as `save_pretrained` writes them.

        Raises: CheckpointError: tensors in such a layout that do not fit, whatever `strict`.
            RuntimeError: others, as in torch.
        """
        own = own_tensors(state_dict, self._config(), self, self.dtype)
        return super().load_state_dict(own, strict=strict, assign=assign)


def _require_grad(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)
