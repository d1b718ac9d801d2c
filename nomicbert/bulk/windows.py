"""The vectors of a feed's texts, window by window.

Where in the flow: between `inputs.feed` and whatever writes vectors. A text that the encoder
refuses is dropped here, or ends the job.
"""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import OnError
from nomicbert.bulk.progress import BulkProgress
from nomicbert.errors import TextError

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder, Window


def windows(
    encoder: "Encoder", feed: Feed, progress: BulkProgress, on_error: OnError
) -> Generator["Window", None, None]:
    """The vectors of all texts, in order.

    The caller takes the rows of a window from the feed before it asks for the next.

    Args:
        encoder: computes the vectors.
        feed: its texts are read ahead.
        progress: of the encoder.
        on_error: "skip" drops a text that the encoder refuses, which makes it a Reject of `feed`.

    Raises: ValueError: with on_error "fail" a text that cannot be embedded; the message names its
        row. Errors of the feed and the encoder.
    """
    while not feed.finished:
        came = 0  # vectors of this stream
        try:
            with closing(encoder.windows(feed, progress)) as stream:
                for window in stream:
                    yield window
                    came += len(window.vectors)
            return
        except TextError as error:
            index = error.index - came
            if on_error == "fail":
                row = [feed.take().row for _ in range(index + 1)][-1]
                raise ValueError(f"{row.where}: it {error.problem}") from error
            feed.reject(index, f"the text {error.problem}")
            # the encoder has read more texts than it has embedded
            feed.rewind()
