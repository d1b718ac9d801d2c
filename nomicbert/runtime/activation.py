"""The activation that turns a reranker's logits into scores, and its name in a checkpoint.

Where in the flow: `settings` holds it as a module of torch.nn, as sentence-transformers does;
`predict` applies the function of `vectors.activations` that has the module's name.
Source: `activation_fn` of sentence-transformers' CrossEncoder, in config_sentence_transformers.json
and, in older checkpoints, config.json.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from nomicbert.errors import ConfigError
from nomicbert.vectors.activations import ACTIVATIONS, name_in, name_of, path_of

Activation = Callable[[Tensor], Tensor]


def stated_activation(stated: Any, num_labels: int) -> Activation:
    """The activation that a checkpoint names, or sentence-transformers' default.

    Raises: ConfigError: it is not supported.
    """
    if stated is None:
        return nn.Sigmoid() if num_labels == 1 else nn.Identity()
    name = name_in(str(stated))
    if name is None:
        raise ConfigError(f"activation_fn = {stated!r:.80} is not supported; {_supported()}")
    return _module(name)


def check_activation(given: object) -> Activation:
    """Accept a function of a tensor, such as torch.nn.Tanh(), or its path, "torch.nn.Tanh".

    Raises: TypeError: not callable, or a class of modules in place of a module.
        ValueError: a path that is not one of `vectors.activations`.
    """
    if isinstance(given, type):
        raise TypeError(f"activation_fn must be a function: {given.__name__}(), not the class")
    if isinstance(given, str):
        name = name_in(given)
        if name is None:
            raise ValueError(
                f"activation_fn = {given!r:.80} cannot be found by its path: give the function "
                f"itself; {_supported()}"
            )
        return _module(name)
    if not callable(given):
        raise TypeError(
            f"activation_fn must be a function, such as torch.nn.Identity(), not {given!r}"
        )
    return given


def function_of(activation: Activation) -> Activation:
    """What to call: for a plain module of torch.nn the function of equal bits in any batch."""
    name = name_of(activation)
    hooked = getattr(activation, "_forward_hooks", None) or getattr(
        activation, "_forward_pre_hooks", None
    )
    return activation if name is None or hooked else ACTIVATIONS[name]


def activation_name(activation: Activation) -> str | None:
    """The path that `stated_activation` reads back; None if torch.nn does not have it."""
    name = name_of(activation)
    return None if name is None else path_of(name)


def _module(name: str) -> Activation:
    return cast("Activation", getattr(nn, name)())


def _supported() -> str:
    return "supported are " + ", ".join(f"torch.nn.{name}" for name in ACTIVATIONS)
