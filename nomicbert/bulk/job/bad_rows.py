"""What to do about a row that cannot be used, in the message that ends a job at it.

Where in the flow: around the places of `plan` and `run` that read rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from nomicbert.bulk.inputs.rows import RowError


@contextmanager
def advising() -> Iterator[None]:
    """Add the way to go on to a RowError."""
    try:
        yield
    except RowError as error:
        raise RowError(
            f'{error}: on_error="skip" (--on-error skip) leaves such rows out, and goes on behind '
            "the parts that are there"
        ) from error
