"""The options of a job, checked.

Where in the flow: `plan` makes them from the arguments of `embed_files`.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nomicbert import __version__
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import OnError, OnNull

MOST_TASKS = 99_999


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the rows of a job and how they are cut into parts.

    Attributes:
        field: name of the field that holds the text.
        columns: names of the fields that are carried along; None for all, () for none.
        input_format: of all inputs; None to recognise each.
        part_rows: rows of a part at most.
        part_seconds: a part is closed this long after its first vectors.
        task: (i, n): the i-th of n tasks, from 1; None for one process.
        on_error: what a row that cannot be used does: fail, or go to the file of rejected rows.
        on_null: what a null text is: an error, an empty text, or a row that is skipped.
        restart: delete the parts of the job that is there, and begin anew.
    """

    field: str = "text"
    columns: Sequence[str] | None = None
    input_format: InputFormat | None = None
    part_rows: int = 65_536
    part_seconds: float = 60.0
    task: tuple[int, int] | None = None
    on_error: OnError = "fail"
    on_null: OnNull = "error"
    restart: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises: TypeError, ValueError: the message names the argument.
        """
        if _whole("part_rows", self.part_rows) < 1:
            raise ValueError(f"part_rows must be at least 1, not {self.part_rows}")
        if not self.part_seconds > 0:
            raise ValueError(f"part_seconds must be above 0, not {self.part_seconds}")
        if isinstance(self.columns, str):
            raise TypeError(f"columns must be a list of names, not the string {self.columns!r}")
        for name, values in (("on_error", OnError), ("on_null", OnNull)):
            if (value := getattr(self, name)) not in get_args(values):
                *others, last = map(repr, get_args(values))
                raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")
        index, count = self.task or (1, 1)
        if not 1 <= _whole("task", index) <= _whole("task", count) <= MOST_TASKS:
            raise ValueError(
                f"task must be (i, n) with 1 <= i <= n <= {MOST_TASKS}, not {self.task}"
            )
        if self.restart and self.task is not None:
            raise ValueError(
                "restart deletes the parts of all tasks, so it cannot be given with task: delete "
                f"the folder, or begin anew once without task {index}/{count}"
            )

    @property
    def want(self) -> dict[str, Any]:
        """What decides the vectors of a job, but for inputs and model; JSON values.

        `on_error` is none of it: a job that has failed at a row may go on without such rows.
        """
        return {
            "field": self.field,
            "columns": None if self.columns is None else list(self.columns),
            "on_null": self.on_null,
            "version of nomicbert": __version__,
        }


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from error
