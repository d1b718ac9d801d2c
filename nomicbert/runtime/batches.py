"""Cutting many texts into batches of like length by a budget of tokens."""

from collections.abc import Iterator, Sequence


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

    Raises: ValueError: a budget below 1.
    """
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
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
