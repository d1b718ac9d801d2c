"""Cutting a stream of texts into windows, and a window into batches of like length."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

from nomicbert.errors import TextError

Item = TypeVar("Item")

# A window is read, tokenised and sorted at a time: so many texts at most, or so many letters.
WINDOW_TEXTS = 8192
WINDOW_LETTERS = 1 << 20
# And so many letters at most that are held, though no more than a few of each text count.
WINDOW_HELD = 1 << 24


def as_iterator(inputs: Any) -> Iterator[Any]:
    """What yields the inputs in their order; a TypeError if they have none."""
    if isinstance(inputs, bytes | Mapping | Set):
        raise TypeError(
            f"inputs must be a str or an ordered collection of str, not {type(inputs).__name__}"
        )
    return iter(inputs)


def as_texts(inputs: Any, sentences: Any) -> tuple[list[str], bool]:
    """What a call of `encode` was given, all of it checked; and whether it is a lone text.

    Args:
        inputs: one text or any number of them, or None.
        sentences: the same under its old name.

    Raises: TypeError: none, both, or no texts. TextError: one that is no valid Unicode.
    """
    if inputs is None and sentences is None:
        raise TypeError("encode needs inputs: one text or any number of them")
    if inputs is not None and sentences is not None:
        raise TypeError("give inputs or sentences (its old name), not both")
    given = sentences if inputs is None else inputs
    lone = isinstance(given, str)
    return list(checked([given] if lone else as_iterator(given))), lone


def checked(inputs: Iterable[Any]) -> Iterator[str]:
    """The inputs as they are; an error names the first that is no text that can be written."""
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(f"input {index} must be a str, not {type(text).__name__}: {text!r:.80}")
        check_text(index, text)
        yield text


def check_text(index: int, text: str) -> None:
    """Refuse a text that cannot be written: TextError."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            index,
            f"is not valid Unicode: a lone surrogate, {text[error.start]!r}, at letter "
            f"{error.start}",
        ) from error


def text_windows(texts: Iterable[str], useful: int | None = None) -> Iterator[list[str]]:
    """Neighbouring texts, in lists that are large enough to sort and small enough to hold.

    Args:
        texts: any number; read no further than the window that is yielded.
        useful: letters of a text that count at most, where those beyond are never tokenised.
    """
    return windows(texts, lambda text: (len(text),), useful)


def windows(
    inputs: Iterable[Item], lengths: Callable[[Item], Sequence[int]], useful: int | None = None
) -> Iterator[list[Item]]:
    """The same for inputs of several texts; `lengths` gives the letters of each of an input's."""
    window: list[Item] = []
    letters = held = 0
    for item in inputs:
        window.append(item)
        for length in lengths(item):
            held += length
            letters += length if useful is None else min(length, useful)
        if len(window) >= WINDOW_TEXTS or letters >= WINDOW_LETTERS or held >= WINDOW_HELD:
            yield window
            window, letters, held = [], 0, 0
    if window:
        yield window


def token_batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices of texts, longest first, in batches of at most `batch_tokens` tokens.

    Neighbours in a batch have like lengths, and texts of one length stand side by side. A text that
    is longer than the budget is a batch of its own.

    Args:
        lengths: tokens of each text.
        batch_tokens: budget of a batch.
        batch_size: texts in a batch at most, or None.
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
    """A batch in two parts of about as many tokens; one of a single text stays whole.

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
