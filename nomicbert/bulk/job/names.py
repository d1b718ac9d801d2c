"""The names of the files in a job's folder.

    _manifest.json                    what the job is, written once
    .lock, .lock-TTTTT                one writer at a time: of the folder, of a task of several
    part-TTTTT-KKKKKK.parquet         rows with their vectors; task, running number
    _rejected-TTTTT-KKKKKK.jsonl      rows that the part of this number leaves out

Names that begin with "." or "_" are ignored by Parquet readers that are given the folder.
"""

import re
from typing import NamedTuple

MANIFEST = "_manifest.json"
LOCK = ".lock"

_OWN = re.compile(r"(part|_rejected)-(\d{5})-(\d{6,})\.(parquet|jsonl)")


class Name(NamedTuple):
    """What the name of a part or of a file of rejected rows says.

    Attributes:
        task: index of the task.
        number: running number in the task.
        is_part: a part, not rejected rows.
    """

    task: int
    number: int
    is_part: bool


def part_name(task: int, number: int) -> str:
    """The file of a part."""
    return f"part-{task:05d}-{number:06d}.parquet"


def reject_name(task: int, number: int) -> str:
    """The file of the rows that a part leaves out."""
    return f"_rejected-{task:05d}-{number:06d}.jsonl"


def prefixes(task: int) -> tuple[str, str]:
    """Of the names of a task's files."""
    return f"part-{task:05d}-", f"_rejected-{task:05d}-"


def lock_name(task: int) -> str:
    """The lock of one task of several."""
    return f"{LOCK}-{task:05d}"


def read_name(name: str) -> Name | None:
    """The inverse of `part_name` and `reject_name`; None for any other name."""
    if (found := _OWN.fullmatch(name)) is None:
        return None
    task, number, is_part = int(found[2]), int(found[3]), found[1] == "part"
    own = part_name(task, number) if is_part else reject_name(task, number)
    return Name(task, number, is_part) if name == own else None


def is_visible(name: str) -> bool:
    """Whether a Parquet reader that is given the folder opens this file."""
    return name[:1] not in (".", "_")
