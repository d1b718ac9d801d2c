"""What a job has done, for the caller."""

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
    parts: int
    width: int
    dtype: str
    seconds: float
