"""Reads and replaces the tuned launch table of this machine.

The file is replaced atomically, so a reader finds the old table or the new one. Rows of sizes that
were not measured this time are kept. In addition to the settings, each row stores its time and the
version of Triton, and the table stores where and when it was measured.
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
    """Rows of the shipped table of an architecture, for elements of `size` bytes."""
    return [row for row in launch.read_table(launch.shipped(arch)) if row.bytes == size]


def path_of(arch: str) -> Path:
    """Path of the tuned table of an architecture."""
    return launch.tuned_folder() / f"{arch}.json"


def read_tuned(arch: str, triton: str) -> list[RawRow]:
    """Read the rows written by earlier runs, as stored; empty without a table.

    Raises: ValueError: the file exists but is not a table, or has a row that cannot be launched.
    """
    path = path_of(arch)
    if not path.is_file():
        return []
    launch.read_table(path)  # refuses what is not a table
    rows: list[RawRow] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    others = sorted({str(row.get("triton", "?")) for row in rows} - {triton})
    if others:
        logger.warning(
            "%s has rows measured with triton %s, but this is triton %s: they stay in use unless "
            "they are measured again",
            path,
            " and ".join(others),
            triton,
        )
    return rows


def check_writable(arch: str) -> None:
    """Create the folder and check that it is writable, before hours of measuring.

    Raises: OSError.
    """
    with _temporary_file(path_of(arch)):
        pass


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Create an empty file in the folder of `path`; delete it at the end unless it was moved."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        why = (
            f"cannot write the launch table ({error.strerror}): set NOMICBERT_LAUNCH to a writable "
            "folder"
        )
        raise OSError(error.errno or errno.EIO, why, str(path)) from error
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write(arch: str, rows: Sequence[RawRow], about: Mapping[str, str]) -> Path:
    """Replace the table of an architecture, and have the next launch read it.

    Args:
        arch: the architecture.
        rows: as stored.
        about: metadata of the table; `launch` does not read it.

    Raises: OSError.
    """
    path = path_of(arch)
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    body = ",\n".join(json.dumps(row) for row in rows)
    with _temporary_file(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f'{{{head}"rows": [\n{body}\n]}}\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    launch.table.cache_clear()
    return path


def raw_row(result: Result, size: int, settings: Settings, us: float | None, triton: str) -> RawRow:
    """One row in its stored form."""
    problem = result.problem
    row: RawRow = {"kernel": problem.kernel, "bytes": size, "exactly": dict(problem.exactly)}
    if problem.up_to is not None:
        row["up_to"] = {"rows": problem.up_to}
    return {**row, **settings.fields, "us": us, "shipped_us": result.shipped_us, "triton": triton}


def group_of(kernel: str, size: int, exactly: Mapping[str, int]) -> tuple[object, ...]:
    """Key of the rows of one kernel and one weight size."""
    return kernel, size, tuple(sorted(exactly.items()))


def merge(
    results: Sequence[Result], earlier: Sequence[RawRow], size: int, triton: str
) -> list[RawRow]:
    """Build the rows of the new table.

    A row applies to all sizes up to its limit that no earlier row covers. So if a larger limit has
    better settings, the shipped ones of the smaller limits are written too. Where nothing better
    was found nothing is written, so that later shipped tables take effect.

    Args:
        results: of this run, grouped by weight, with ascending limits.
        earlier: rows of the existing table.
        size: bytes per element.
        triton: version of Triton.
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
