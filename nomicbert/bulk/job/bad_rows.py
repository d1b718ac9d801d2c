"""What to do about a row that cannot be used, in the message that ends a job at it.

Where in the flow: around the places of `plan` and `run` that read rows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from nomicbert.bulk.inputs.rows import OnError

# `Source.message` and `Row.where`: the message is about one row.
_OF_A_ROW = re.compile(r", (line|row) \d+: ")


@contextmanager
def advising(on_error: OnError) -> Iterator[None]:
    """Add the way to go on to the errors of rows, with on_error "fail".

    Raises: ValueError: that of the block, with the advice.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or on_error == "skip" or not _OF_A_ROW.search(str(error)):
            raise
        raise ValueError(
            f'{error}: on_error="skip" (--on-error skip) leaves such rows out, and goes on behind '
            "the parts that are there"
        ) from error
