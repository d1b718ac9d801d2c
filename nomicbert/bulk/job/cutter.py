"""A stream of vectors -> parts: where each one ends.

Where in the flow: `run` gives every window of vectors to the `Cutter` of a gap. Parts end by rows
or by time, so their borders may differ between two runs; each states in its footer where it starts
and where the next one does.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Taken
from nomicbert.bulk.job.footer import Footer
from nomicbert.bulk.job.parts import Layout, Part
from nomicbert.bulk.job.plan import Job
from nomicbert.bulk.job.resume import Gap

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Window


class Cutter:
    """Writes the parts of a gap. A context manager: an error removes the part that is open.

    Attributes:
        made: the footers of the parts that are complete.
    """

    def __init__(self, job: Job, gap: Gap, feed: Feed, layout: Layout, run: str) -> None:
        """`run`: id of the job."""
        self.made: list[Footer] = []
        self._job, self._gap, self._feed, self._layout = job, gap, feed, layout
        self._run = run
        self._part: Part | None = None
        self._opened = 0.0
        # Number and start of the next part, or of the open one; position behind its last row.
        self._number, self._start, self._next = gap.number, gap.start, gap.start
        self._ended = False

    def add(self, taken: Sequence[Taken], window: "Window", finished: bool) -> None:
        """Write the rows of a window; another thread may read the feed meanwhile.

        Args:
            taken: the rows.
            window: their vectors.
            finished: whether no row follows these in the gap.

        Raises: OSError, ValueError: see `Part.add`.
        """
        cut, last = set(window.cut), len(taken) - 1
        options = self._job.options
        for index, one in enumerate(taken):
            part = self._part or self._open()
            part.add(one, window.vectors[index], window.lengths[index], index in cut)
            self._next = one.row.after
            if part.taken >= options.part_rows and self._may_close:
                self._close(finished and index == last)
        old = self._part is not None and time.monotonic() - self._opened >= options.part_seconds
        if old and self._may_close:
            self._close(finished)

    def end_part(self) -> None:
        """End the open part here, if there is one and a number for the next one."""
        if self._part is not None and self._may_close:
            self._close(False)

    def finish(self) -> None:
        """Write what remains, once all vectors have come.

        Raises:
            RuntimeError: the encoder gave fewer vectors than it took texts.
            ValueError: an input has changed; and as `add`.
        """
        if not self._feed.finished:
            raise RuntimeError("the encoder ended before all of its texts had vectors")
        if not self._ended:
            self._close(True)

    @property
    def _may_close(self) -> bool:
        """Whether a number is left for the rows that follow."""
        return self._gap.last is None or self._number < self._gap.last

    def _open(self) -> Part:
        footer = Footer(
            run=self._run,
            task=self._job.task,
            number=self._number,
            start=self._start,
            next=self._start,
        )
        self._part = Part(self._job.folder, self._layout, footer)
        self._opened = time.monotonic()
        return self._part

    def _close(self, finished: bool) -> None:
        """End the open part, or write an empty one; `finished`: nothing follows in the gap."""
        part = self._part or self._open()
        if finished:
            rest, stop = self._feed.rest(), self._gap.stop
            self._job.refuse_changes()
            if stop is not None and rest.after[:2] != stop[:2]:
                raise ValueError(
                    f"the inputs have fewer rows than when the job began: they end at row "
                    f"{rest.after.row:,} of source {rest.after.unit}, and the next part starts at "
                    f"row {stop.row:,} of source {stop.unit}. Begin anew with restart=True "
                    "(--restart)"
                )
            footer = part.commit(stop or rest.after, rest, end=stop is None)
        else:
            footer = part.commit(self._next)
        self._part, self._ended = None, finished
        self.made.append(footer)
        self._number, self._start = self._number + 1, footer.next

    def __enter__(self) -> "Cutter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._part is not None:
            self._part.discard()
