"""A state dict given by the caller, in place of the weight files of a folder."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.weights import hub_tensors

# The word embedding table under the name that a model of this package has for it.
_OWN_NAME = re.compile(r"(encoder\.)?embeddings\.word\.weight")


class GivenTensors(TensorFiles):
    """Tensors by name, as `TensorFiles` reads them from disk."""

    def __init__(self, state: Mapping[str, Tensor], config: EncoderConfig) -> None:
        """Take over the tensors; those of a model of this package get their names on the hub.

        Args:
            state: name -> tensor, in a layout of the hub or as `state_dict()` of a model here.
            config: of the encoder.

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
        if any(map(_OWN_NAME.fullmatch, tensors)):
            tensors = hub_tensors(config, tensors)
        self.folder = Path("state_dict")
        self._open = dict.fromkeys(tensors, tensors)
