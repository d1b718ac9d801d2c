"""A state dict given by the caller, in place of the weight files of a folder."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.tensor_names import WORDS
from nomicbert.loading.weights import hub_tensors, load_state

# The word embedding table under the name that a model of this package has for it.
_OWN_NAME = re.compile(r"(encoder\.)?embeddings\.word\.weight")


def has_own_names(names: Iterable[str]) -> bool:
    """Whether these are names of parameters here, and not of tensors on the hub."""
    return any(map(_OWN_NAME.fullmatch, names))


def own_tensors(
    state: Mapping[str, Tensor], config: EncoderConfig, model: nn.Module, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """A state dict under the names of the model's parameters.

    Args:
        state: under these names, which returns it as it is; or in a layout of the hub.
        config: of the encoder.
        model: to be loaded.
        dtype: of tensors that are renamed.

    Raises: CheckpointError: tensors in a layout of the hub that do not fit.
    """
    if has_own_names(state) or not any(name.endswith(WORDS) for name in state):
        return state
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return load_state(GivenTensors(state, config), config, shapes, dtype=dtype)


class GivenTensors(TensorFiles):
    """Tensors by name, as `TensorFiles` reads them from disk."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        config: EncoderConfig,
        folder: Path = Path("state_dict"),
    ) -> None:
        """Take over the tensors; those of a model of this package get their names on the hub.

        Args:
            state: name -> tensor, in a layout of the hub or as `state_dict()` of a model here.
            config: of the encoder.
            folder: where they are from, for errors.

        Raises: TypeError: not a mapping of tensors. CheckpointError: a layer was replaced.
        """
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
        ):
            raise TypeError(f"state_dict must map names to tensors, not {state!r:.80}")
        empty = [name for name, tensor in state.items() if tensor.is_meta]
        if empty:
            raise CheckpointError(f"state_dict has no values for {empty[0]}: it is on 'meta'")
        tensors = {name: tensor.detach() for name, tensor in state.items()}
        if has_own_names(tensors):
            tensors = hub_tensors(config, tensors)
        self.folder = folder
        self._open = dict.fromkeys(tensors, tensors)
        self._views = dict.fromkeys(tensors)  # the caller's tensors are copied
