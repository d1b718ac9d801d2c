"""The footer of a part: what it holds, and where its rows lie in the inputs.

Where in the flow: `parts` writes it into the key-value metadata of the Parquet file, `resume` and
`check` read it back. Footers are the only record of progress: a part that has its final name was
whole and on the disk before.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from nomicbert.bulk.inputs.rows import Position
from nomicbert.bulk.job.folder import Folder

KEY = b"nomicbert"
VERSION = 1


class Damaged(ValueError):
    """A part is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a part says of itself.

    Attributes:
        run: id of its job.
        task: index of its task.
        number: running number in the task.
        start: position of its first row, or of a skipped row before it.
        next: position behind its last row; where the next part starts.
        rows: rows with vectors.
        skipped: rows without a text.
        rejected: rows that cannot be used, which are in the reject file.
        truncated: rows whose text was cut.
        tokens: of all its rows.
        size: bytes of the inputs that its rows took; an estimate for compressed inputs.
        broken: vectors with NaN or infinity.
        first_broken: the row of the first of them, for messages.
        end: whether the task ends with it.
    """

    run: str
    task: int
    number: int
    start: Position
    next: Position
    rows: int = 0
    skipped: int = 0
    rejected: int = 0
    truncated: int = 0
    tokens: int = 0
    size: int = 0
    broken: int = 0
    first_broken: str = ""
    end: bool = False

    def metadata(self) -> dict[bytes, bytes]:
        """The entry of the Parquet file."""
        return {KEY: json.dumps({"version": VERSION, **asdict(self)}).encode()}


def read_footer(folder: Folder, name: str) -> Footer:
    """Read the footer of a part.

    Raises:
        Damaged: not a whole Parquet file.
        ValueError: not one of a job.
        OSError: reading failed.
    """
    with folder.open(name) as file:
        return footer_of(_metadata(file, f"{folder.name}: {name}"), f"{folder.name}: {name}")


def footer_of(found: Any, where: str) -> Footer:
    """The footer in the pq.FileMetaData of a part.

    Args:
        found: the metadata.
        where: name of the file, for errors.

    Raises: ValueError: it has none, or one that contradicts the file.
    """
    raw = (found.metadata or {}).get(KEY)
    if raw is None:
        raise ValueError(f"{where} was not written by a job: move it to another folder")
    try:
        said = json.loads(raw)
        if said.pop("version") != VERSION:
            raise ValueError(f"{where} was written by another version of nomicbert")
        footer = Footer(
            **{**said, "start": Position(*said["start"]), "next": Position(*said["next"])}
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} has a footer that nomicbert does not read: {error!r}") from error
    if footer.rows != found.num_rows:
        raise Damaged(
            f"{where} is damaged: its footer states {footer.rows:,} rows, and there are "
            f"{found.num_rows:,}: {ADVICE}"
        )
    return footer


ADVICE = "delete it to embed its rows again"


def _metadata(file: BinaryIO, where: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise Damaged(f"{where} is damaged ({_first(error)}): {ADVICE}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # of the file system
        raise Damaged(f"{where} is damaged ({_first(error)}): {ADVICE}") from error


def _first(error: BaseException) -> str:
    """The first sentence of pyarrow's message, which may be long."""
    return str(error).split("\n")[0].split(". ")[0]
