"""The vectors of a feed's texts, window by window.

Where in the flow: between `inputs.feed` and whatever writes vectors. A text that the encoder
refuses is dropped here, or ends the job.
"""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import OnError, RowError
from nomicbert.bulk.progress import BulkProgress

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

    Raises: RowError: with on_error "fail" a text that is refused; the message names its row.
        Errors of the feed and the encoder.
    """
    with closing(encoder.windows(feed, progress)) as stream:
        for window in stream:
            if encoder.refusal is None or not window.cut:
                yield window
            elif on_error == "skip":
                yield _without_refused(window, feed, encoder.refusal)
            else:
                row = [feed.take().row for _ in range(window.cut[0] + 1)][-1]
                raise RowError(f"{row.where}: it {encoder.refusal}")


def _without_refused(window: "Window", feed: Feed, refusal: str) -> "Window":
    for index in reversed(window.cut):
        feed.reject(index, f"the text {refusal}")
    refused = set(window.cut)
    kept = [length for index, length in enumerate(window.lengths) if index not in refused]
    return window._replace(
        vectors=np.delete(window.vectors, window.cut, axis=0), lengths=kept, cut=[]
    )
