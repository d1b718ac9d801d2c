"""Cut a stream of texts into windows, and a window into batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

from nomicbert.errors import TextError

Item = TypeVar("Item")

# Limits of one window, which is read, tokenised and sorted as a whole: texts; characters that can
# affect the result; characters held in memory.
WINDOW_TEXTS = 8192
WINDOW_CHARACTERS = 1 << 20
WINDOW_HELD = 1 << 24


def as_iterator(inputs: Any) -> Iterator[Any]:
    """Iterate over the inputs; a TypeError if they are not iterable or have no defined order."""
    if isinstance(inputs, bytes | Mapping | Set) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"inputs must be a str or an ordered collection of str, not {type(inputs).__name__}"
        )
    return iter(inputs)


def as_texts(inputs: Any, sentences: Any) -> tuple[list[str], bool]:
    """The checked texts of a call of `encode`, and whether it was given a single text.

    Args:
        inputs: one text or any number of them, or None.
        sentences: old name of `inputs`.

    Raises: TypeError: neither, both, or not texts. TextError: a text is not valid Unicode.
    """
    if inputs is None and sentences is None:
        raise TypeError("encode needs inputs: one text or any number of them")
    if inputs is not None and sentences is not None:
        raise TypeError("give inputs or sentences (its old name), not both")
    given = sentences if inputs is None else inputs
    lone = isinstance(given, str)
    return list(checked([given] if lone else as_iterator(given))), lone


def checked(inputs: Iterable[Any]) -> Iterator[str]:
    """Yield the inputs unchanged; the error for an invalid one holds its index."""
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(f"input {index} must be a str, not {type(text).__name__}: {text!r:.80}")
        check_text(index, text)
        yield text


def check_text(index: int, text: str) -> None:
    """Raise a TextError if a text cannot be encoded as UTF-8."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            index,
            f"is not valid Unicode: a lone surrogate, {text[error.start]!r}, at character "
            f"{error.start}",
        ) from error


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
