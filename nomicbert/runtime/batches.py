"""Cut a stream of texts into windows, and a window into batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Limits of one window, which is read, tokenised and sorted as a whole: texts; characters that can
# affect the result; characters held in memory.
WINDOW_TEXTS = 8192
WINDOW_CHARACTERS = 1 << 20
WINDOW_HELD = 1 << 24


def text_windows(texts: Iterable[str], useful: int | None = None) -> Iterator[list[str]]:
    """Lists of consecutive texts, large enough for sorting by length, small enough for memory.

    Args:
        texts: any number; read no further than the window that is yielded.
        useful: characters per text that can be tokenised; None if all can.
    """
    return windows(texts, lambda text: (len(text),), useful)


def windows(
    inputs: Iterable[Item], lengths: Callable[[Item], Sequence[int]], useful: int | None = None
) -> Iterator[list[Item]]:
    """`text_windows` for inputs of several texts; `lengths` returns the characters of each text."""
    window: list[Item] = []
    characters = held = 0
    for item in inputs:
        window.append(item)
        for length in lengths(item):
            held += length
            characters += length if useful is None else min(length, useful)
        if len(window) >= WINDOW_TEXTS or characters >= WINDOW_CHARACTERS or held >= WINDOW_HELD:
            yield window
            window, characters, held = [], 0, 0
    if window:
        yield window


def token_batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices of texts, longest first, in batches of at most `batch_tokens` tokens.

    Texts of equal length are adjacent. A text longer than the budget becomes a batch of its own.

    Args:
        lengths: tokens of each text.
        batch_tokens: limit of tokens per batch.
        batch_size: limit of texts per batch, or None.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batch_size is not None and len(batch) >= batch_size
        if batch and (full or tokens + lengths[index] > batch_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def halves(indices: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Split a batch into two parts with about equal tokens; a single text stays whole.

    Args:
        indices: of the batch's texts.
        lengths: tokens of all texts.
    """
    if len(indices) == 1:
        return [indices]
    left, total = 0, sum(lengths[i] for i in indices)
    for place, index in enumerate(indices):
        if place and 2 * left >= total:
            break
        left += lengths[index]
    return [indices[:place], indices[place:]]
