"""Arguments of a call by their position -> keywords; the orders of `encode`.

Where in the flow: decorates the methods of `Embedder` that embed; `reranker_calls` uses it too.
Source: the order of `SentenceTransformer.encode` in sentence-transformers 2.4 to 6; releases before
2.4 had the batch size second, and calls in that order are still common.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ORDER = (
    "prompt_name", "prompt", "batch_size", "show_progress_bar", "output_value", "precision",
    "convert_to_numpy", "convert_to_tensor", "device", "normalize_embeddings", "truncate_dim",
    "pool", "chunk_size",
)  # fmt: skip
# Where the second argument is a number.
OLD_ORDER = (
    "batch_size", "show_progress_bar", "output_value", "convert_to_numpy", "convert_to_tensor",
    "device", "normalize_embeddings",
)  # fmt: skip


def takes_positions(
    method: Callable[..., object],
    order: Sequence[str] = ORDER,
    old_order: Sequence[str] = OLD_ORDER,
    after: int = 1,
) -> Callable[..., object]:
    """Let a method with keywords take them by their position.

    Args:
        method: to decorate.
        order: of the keywords.
        old_order: their order where the first of them is a number; may be the same.
        after: arguments of the method before them.
    """

    @functools.wraps(method)
    def call(self: object, *inputs: Any, **keywords: Any) -> object:
        if len(inputs) > after:
            called = f"{type(self).__name__}.{method.__name__}"
            keywords = by_name(called, inputs[after:], keywords, order, old_order)
        return method(self, *inputs[:after], **keywords)

    return call


def by_name(
    called: str,
    given: tuple[Any, ...],
    keywords: dict[str, Any],
    new_order: Sequence[str] = ORDER,
    old_order: Sequence[str] = OLD_ORDER,
) -> dict[str, Any]:
    """The keywords, with the arguments that follow the inputs by position.

    Raises: TypeError: too many, or an argument that is also a keyword.
    """
    old = isinstance(given[0], int | np.integer) and not isinstance(given[0], bool)
    order = old_order if old else new_order
    if len(given) > len(order):
        raise TypeError(
            f"{called} takes at most {len(order)} arguments by position after the inputs, "
            f"{', '.join(order)}, not {len(given)}: give the others as keywords"
        )
    named = dict(zip(order, given, strict=False))
    if twice := sorted(named.keys() & keywords.keys()):
        raise TypeError(f"{called} was given {twice[0]} twice, by its position and as a keyword")
    return {**keywords, **named}
