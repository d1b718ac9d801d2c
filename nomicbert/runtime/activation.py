"""The activation that turns a reranker's logits into scores, and its name in a checkpoint.

Source: `activation_fn` of sentence-transformers' CrossEncoder, in config_sentence_transformers.json
and, in older checkpoints, config.json.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nomicbert.errors import ConfigError
from nomicbert.vectors.saving import activation_path
from nomicbert.vectors.steps import ACTIVATIONS

Activation = Callable[[Tensor], Tensor]


def stated_activation(stated: Any, num_labels: int) -> Activation:
    """The activation that a checkpoint names, or sentence-transformers' default.

    Raises: ConfigError: it is not supported.
    """
    if stated is None:
        return ACTIVATIONS["Sigmoid" if num_labels == 1 else "Identity"]
    name = str(stated).rpartition(".")[2]
    if not str(stated).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise ConfigError(
            f"activation_fn = {stated!r:.80} is not supported; supported are "
            + ", ".join(ACTIVATIONS)
        )
    return ACTIVATIONS[name]


def check_activation(given: object) -> Activation:
    """Accept a function of a tensor, such as torch.nn.Tanh().

    Raises: TypeError: not callable, or a class of modules in place of a module.
    """
    if isinstance(given, type):
        raise TypeError(f"activation_fn must be a function: {given.__name__}(), not the class")
    if not callable(given):
        raise TypeError(
            f"activation_fn must be a function, such as torch.nn.Identity(), not {given!r}"
        )
    return given


def activation_name(activation: Activation) -> str | None:
    """The path that `stated_activation` reads back; None if torch.nn does not have it."""
    names = [name for name, known in ACTIVATIONS.items() if activation is known]
    kind = type(activation)
    # a GELU may be another formula than the default
    exact = getattr(activation, "approximate", "none") == "none"
    if exact and getattr(nn, kind.__name__, None) is kind and kind.__name__ in ACTIVATIONS:
        names.append(kind.__name__)
    return activation_path(names[0]) if names else None
