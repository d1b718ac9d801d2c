"""The parts of a task -> the rows that are still to embed.

Where in the flow: `plan` calls this for a folder whose lock it holds. The parts are a chain: each
starts where the one before it ends. Where numbers are missing in the middle, because parts were
deleted, the rows between are embedded into these numbers.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from nomicbert.bulk.inputs.rows import Position, Span
from nomicbert.bulk.job.folder import Folder
from nomicbert.bulk.job.footer import Footer, read_footer
from nomicbert.bulk.job.names import MANIFEST, is_visible, part_name, read_name

# Footers that are read at once: an object store answers slowly.
AT_ONCE = 16


class Gap(NamedTuple):
    """Rows of a task that no part holds.

    Attributes:
        start: position of the first one.
        stop: start of the part that follows; None for the end of the task.
        number: of the first part to write.
        last: of the last part that may be written; None for any number.
    """

    start: Position
    stop: Position | None
    number: int
    last: int | None

    def spans(self, spans: Sequence[Span]) -> list[Span]:
        """The spans of the task as far as they lie before the stop."""
        if self.stop is None:
            return list(spans)
        end = spans[self.stop.unit]._replace(stop=self.stop.row)
        return [*spans[: self.stop.unit], end]


@dataclass(frozen=True)
class Progressed:
    """What the parts of a task say.

    Attributes:
        footers: of its parts, in order.
        gaps: what is still to embed, in order.
        orphans: files of rejected rows that belong to no part.
    """

    footers: list[Footer]
    gaps: list[Gap]
    orphans: list[str]


def find_progress(folder: Folder, run: str, task: int, spans: Sequence[Span]) -> Progressed:
    """Read the footers of a task's parts.

    Args:
        folder: of the job.
        run: id of the job.
        task: index of the task.
        spans: of the task.

    Raises: ValueError: a part is damaged, of another job, or not where it should be.
    """
    known = {name: own for name in folder.names() if (own := read_name(name)) is not None}
    parts = sorted(
        (own.number, name) for name, own in known.items() if own.is_part and own.task == task
    )
    footers = read_footers(folder, [name for _, name in parts])
    for (number, name), footer in zip(parts, footers, strict=True):
        refuse_stranger(folder, name, footer, run)
        if (footer.task, footer.number) != (task, number):
            own_name = part_name(footer.task, footer.number)
            raise ValueError(f"{folder.name}: {name} was {own_name}: give it its name again")
    rejects = {footer.number for footer in footers if footer.rejected}
    orphans = [
        name
        for name, own in known.items()
        if not own.is_part and own.task == task and own.number not in rejects
    ]
    return Progressed(footers, find_gaps(folder, footers, spans), orphans)


def read_footers(folder: Folder, names: Sequence[str]) -> list[Footer]:
    """The footers of parts.

    Raises: as `read_footer`.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: read_footer(folder, name), names))


def refuse_stranger(folder: Folder, name: str, footer: Footer, run: str) -> None:
    """Raise a ValueError if a part belongs to another job."""
    if footer.run != run:
        raise ValueError(
            f"{folder.name}: {name} belongs to another job (run {footer.run}, this one is {run}): "
            "move it to another folder"
        )


def refuse_foreign(folder: Folder, tasks: int) -> None:
    """Raise a ValueError if a visible file is no part: readers of the folder would read it too.

    Args:
        folder: of the job.
        tasks: number of its tasks.
    """
    for name in sorted(folder.names()):
        own = read_name(name)
        if is_visible(name) and (own is None or own.task >= tasks):
            raise ValueError(
                f"{folder.name} holds {name}, which is no part of this job: move it away, or "
                "choose another folder"
            )


def refuse_remains(folder: Folder) -> None:
    """Raise a ValueError if a folder without a manifest holds files of a job."""
    for name in sorted(folder.names()):
        if read_name(name) is not None:
            raise ValueError(
                f"{folder.name} holds {name} but no {MANIFEST}, so nothing tells which job it is "
                "of: put the manifest back, or choose another folder"
            )


def find_gaps(folder: Folder, footers: Sequence[Footer], spans: Sequence[Span]) -> list[Gap]:
    """What the parts leave out.

    Raises: ValueError: a part does not follow the one before it.
    """
    at = start_of(spans)
    number = 0
    ended = False
    gaps = []
    for footer in footers:
        if footer.start[:2] != at[:2] or ended:
            if ended or footer.number == number or footer.start[:2] < at[:2]:
                name = part_name(footer.task, footer.number)
                raise ValueError(
                    f"{folder.name}: {name} starts at row {footer.start.row:,} of source "
                    f"{footer.start.unit}, but the parts before it end at row {at.row:,} of source "
                    f"{at.unit}: delete it to embed its rows again"
                )
            gaps.append(Gap(at, footer.start, number, footer.number - 1))
        at, number, ended = footer.next, footer.number + 1, footer.end
    if not ended:
        gaps.append(Gap(at, None, number, None))
    return gaps


def start_of(spans: Sequence[Span]) -> Position:
    """The position of the first row of a task."""
    return Position(0, spans[0].first, spans[0].offset) if spans else Position(0, 0, None)
