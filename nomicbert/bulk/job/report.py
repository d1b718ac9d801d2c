"""What a job has done, and what a check of its folder has found, for the caller."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BulkReport:
    """The rows of a task after a run.

    Attributes:
        folder: of the parts.
        rows: with vectors, in all parts of the task.
        made: of them, by this run.
        kept: of them, by earlier runs.
        skipped: rows without a text.
        rejected: rows that could not be used, which are in the files of rejected rows.
        truncated: rows whose text was cut.
        tokens: of all rows.
        broken: vectors with NaN or infinity.
        first_broken: input and line or row (from 1) of the first of them; empty if there is none.
        parts: number of files.
        width: values of a vector.
        dtype: of its values.
        seconds: that this run took, without loading a model.
    """

    folder: str
    rows: int
    made: int
    kept: int
    skipped: int
    rejected: int
    truncated: int
    tokens: int
    broken: int
    first_broken: str
    parts: int
    width: int
    dtype: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a folder holds.

    Attributes:
        folder: that was read.
        tasks: number of tasks.
        parts: number of files.
        rows: with vectors.
        skipped: rows without a text.
        rejected: rows that could not be used.
        truncated: rows whose text was cut.
        tokens: of all rows.
        broken: vectors with NaN or infinity.
        first_broken: source and number (from 1) of the first of them; empty if there is none.
        complete: whether every task has ended, without a gap.
        compared: whether rows were compared with the inputs; if not, `problems` tells why.
        problems: what is wrong, at most 100.
        problem_count: their number.
    """

    folder: str
    tasks: int
    parts: int
    rows: int
    skipped: int
    rejected: int
    truncated: int
    tokens: int
    broken: int
    first_broken: str
    complete: bool
    compared: bool
    problems: tuple[str, ...]
    problem_count: int

    @property
    def ok(self) -> bool:
        """Whether the job is complete, nothing is wrong, and all vectors are finite."""
        return self.complete and not self.problem_count and not self.broken
