"""Texts of a feed -> windows of vectors with the rows they belong to.

Where in the flow: between `inputs.feed` and whatever writes vectors. A text that the encoder
refuses is dropped here, or ends the job.
"""

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

from nomicbert.bulk.encoding import Encoder, Window
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import OnError, Taken
from nomicbert.bulk.progress import BulkProgress
from nomicbert.errors import TextError


class TakenWindow(NamedTuple):
    """Consecutive rows and their vectors.

    Attributes:
        taken: the rows, with what was left out before each.
        window: their vectors.
    """

    taken: list[Taken]
    window: Window


def windows(
    encoder: Encoder, feed: Feed, progress: BulkProgress, on_error: OnError
) -> Generator[TakenWindow, None, None]:
    """The vectors of all rows of a feed, in order.

    Args:
        encoder: computes the vectors.
        feed: its texts are read ahead.
        progress: counts rows; the encoder counts tokens.
        on_error: "skip" drops a text that the encoder refuses, which makes it a Reject of `feed`.

    Raises: ValueError: with on_error "fail" a text that cannot be embedded; the message names its
        row. Errors of the feed and the encoder.
    """
    while True:
        done = 0  # of the texts that this pass of the encoder has read
        try:
            with closing(encoder.windows(feed, progress)) as found:
                for window in found:
                    taken = [feed.take() for _ in range(len(window.vectors))]
                    done += len(taken)
                    size = sum(one.row.size for one in taken)
                    progress.passed(len(taken), size, sum(window.lengths))
                    yield TakenWindow(taken, window)
            return
        except TextError as error:
            index = error.index - done
            if on_error == "fail":
                rows = [feed.take().row for _ in range(index + 1)]
                raise ValueError(f"{rows[-1].where}: it {error.problem}") from error
            feed.reject(index, f"it {error.problem}")
            # the encoder has read more texts than it has embedded
            feed.rewind()
