"""The table of this machine: reading what is there, and putting what was measured in its place.

It is written in one step, so that a reader finds the old table or the new one. Rows of sizes that
were not measured this time stay. Beside what `launch` reads, a row says how long it took and under
which triton, and the table where and when.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nomicbert_kernels import launch
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning.search import Result

logger = logging.getLogger(__name__)

RawRow = dict[str, Any]


def shipped_rows(arch: str, size: int) -> list[Row]:
    """Rows of the table that is shipped for an architecture, for elements of `size` bytes."""
    return [row for row in launch.read_table(launch.shipped(arch)) if row.bytes == size]


def path_of(arch: str) -> Path:
    """Where this machine's table for an architecture lies."""
    return launch.tuned_folder() / f"{arch}.json"


def read_tuned(arch: str, triton: str) -> list[RawRow]:
    """The rows that earlier runs have written, as they are stored; none where there is no table.

    Raises: ValueError: the file is there and is no table.
    """
    path = path_of(arch)
    if not path.is_file():
        return []
    try:
        rows: list[RawRow] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        launch.read_table(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no launch table ({error!r}): remove it") from error
    others = sorted({str(row.get("triton", "?")) for row in rows} - {triton})
    if others:
        logger.warning(
            "%s holds rows that were measured with triton %s, and this is %s: they are read all "
            "the same; those that are not measured now stay",
            path,
            " and ".join(others),
            triton,
        )
    return rows


def check_writable(arch: str) -> None:
    """Make the folder, and refuse one that cannot be written before hours of measuring.

    Raises: OSError.
    """
    with _beside(path_of(arch)):
        pass


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, gone in the end unless it has been moved."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch(exist_ok=False)
    except OSError as error:
        why = f"cannot write the launch table ({error.strerror}): name a folder in NOMICBERT_LAUNCH"
        raise OSError(error.errno or errno.EIO, why, str(path)) from error
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def write(arch: str, rows: Sequence[RawRow], about: Mapping[str, str]) -> Path:
    """Put a table in place of the one that is there, and have the next launch read it.

    Args:
        arch: whose table.
        rows: as they are stored.
        about: what the table says of itself; `launch` does not read it.

    Raises: OSError.
    """
    path = path_of(arch)
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    body = ",\n".join(json.dumps(row) for row in rows)
    with _beside(path) as beside:
        with beside.open("w", encoding="utf-8") as file:
            file.write(f'{{{head}"rows": [\n{body}\n]}}\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    launch.table.cache_clear()
    return path


def raw_row(result: Result, size: int, settings: Settings, us: float | None, triton: str) -> RawRow:
    """One row as it is stored."""
    problem = result.problem
    row: RawRow = {"kernel": problem.kernel, "bytes": size, "exactly": dict(problem.exactly)}
    if problem.up_to is not None:
        row["up_to"] = {"rows": problem.up_to}
    if settings.library:
        row["library"] = True
    return {**row, **settings.keywords, "us": us, "shipped_us": result.shipped_us, "triton": triton}


def group_of(kernel: str, size: int, exactly: Mapping[str, int]) -> tuple[object, ...]:
    """What rows of one kernel and one size of its weight have in common."""
    return kernel, size, tuple(sorted(exactly.items()))


def merge(
    results: Sequence[Result], earlier: Sequence[RawRow], size: int, triton: str
) -> list[RawRow]:
    """The rows of the new table.

    A row stands for all sizes up to its limit that no row before it takes. So where a larger limit
    has found better settings, the shipped ones of the smaller limits are written too; where nothing
    better was found, nothing is, and a newer shipped table will be followed.

    Args:
        results: of this run; those of one weight lie together, limits rising.
        earlier: rows of the table that is there.
        size: bytes of an element.
        triton: the version that was measured with.
    """
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        key = group_of(result.problem.kernel, size, result.problem.exactly)
        groups.setdefault(key, []).append(result)
    rows: list[RawRow] = []
    for group in groups.values():
        better = [place for place, result in enumerate(group) if result.chosen]
        for result in group[: better[-1] + 1] if better else ():
            if result.chosen:
                rows.append(raw_row(result, size, result.chosen, result.best_us, triton))
            elif result.shipped_us is not None:
                rows.append(raw_row(result, size, result.shipped, result.shipped_us, triton))
    stay = [
        row
        for row in earlier
        if group_of(row["kernel"], row["bytes"], row.get("exactly", {})) not in groups
    ]
    return rows + stay
