"""Calls of `predict` and `rank` as sentence-transformers' users write them -> keywords.

Where in the flow: decorates both methods, before their keywords are checked.
Source: CrossEncoder in sentence-transformers 2 to 6. Releases before 6 had the batch size second.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from nomicbert.arguments import checks_keywords
from nomicbert.runtime.positions import takes_positions

Constructor = TypeVar("Constructor", bound=Callable[..., None])

logger = logging.getLogger(__name__)

ORDER = (
    "prompt_name", "prompt", "batch_size", "show_progress_bar", "activation_fn", "apply_softmax",
    "convert_to_numpy", "convert_to_tensor", "device", "pool", "chunk_size",
)  # fmt: skip
# Where the second argument is a number.
OLD_ORDER = (
    "batch_size", "show_progress_bar", "activation_fn", "apply_softmax", "convert_to_numpy",
    "convert_to_tensor",
)  # fmt: skip
# Behind them the releases disagree.
RANK_ORDER = ("top_k", "return_documents")
CONSTRUCTOR_ORDER = ("num_labels", "max_length", "activation_fn", "device")
RENAMED = {"activation_fct": "activation_fn"}
RENAMED_INPUTS = {"sentences": "inputs", **RENAMED}
THREADS = {"num_workers": "the tokenizer has threads of its own"}
FLOATS = dict.fromkeys(("convert_to_numpy", "convert_to_tensor"), "scores are always float")


def takes_constructor_positions(method: Constructor) -> Constructor:
    """Decorate the constructor."""
    order = CONSTRUCTOR_ORDER
    return cast("Constructor", takes_positions(method, order, order))


def as_called(method: Callable[..., object]) -> Callable[..., object]:
    """Decorate `predict`."""
    known = checks_keywords(method)
    return _with_old_names(takes_positions(known, ORDER, OLD_ORDER), RENAMED_INPUTS, THREADS)


def as_ranked(method: Callable[..., object]) -> Callable[..., object]:
    """Decorate `rank`."""
    known = takes_positions(method, RANK_ORDER, RANK_ORDER, after=2)
    return _with_old_names(known, RENAMED, {**THREADS, **FLOATS})


def _with_old_names(
    method: Callable[..., object], renamed: Mapping[str, str], without_effect: Mapping[str, str]
) -> Callable[..., object]:
    """Accept old names of keywords, and keywords that have no effect any more."""

    @functools.wraps(method)
    def call(self: object, *inputs: Any, **keywords: Any) -> object:
        called = f"{type(self).__name__}.{method.__name__}"
        for old in renamed.keys() & keywords.keys():
            new = renamed[old]
            if new in keywords or (new == "inputs" and inputs):
                raise TypeError(f"{called} was given {new} and {old} (its old name): give {new}")
            keywords[new] = keywords.pop(old)
            _say_once(f"{called}: `{old}` is the old name of `{new}`")
        for name in without_effect.keys() & keywords.keys():
            del keywords[name]
            _say_once(f"{called}: `{name}` has no effect: {without_effect[name]}")
        return method(self, *inputs, **keywords)

    return call


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
