"""The checkpoint of a Ray job: a folder with the ids of written rows, and with the job's settings.

Where in the flow: `ray_data` opens it before a job starts. Ray writes `rows/`, one file of ids per
file of rows: first as pending, then the rows, then it renames the ids; after a crash it deletes
the rows of pending ids. It compares nothing else, so `job.json` guards against another job, whose
rows would be taken for written.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from nomicbert import __version__

SETTINGS = "job.json"
ROWS = "rows"
# Keywords that no value of a vector depends on; the token is a secret too.
NO_MATTER = {"token", "cache_dir", "local_files_only", "batch_size", "batch_tokens"}


def open_checkpoint(place: str, job: Mapping[str, Any], check: Callable[[], object]) -> str:
    """Begin a checkpoint, or go on with it; the folder for Ray's files.

    Args:
        place: a folder or URL of a filesystem of pyarrow: s3, gs, abfs, file.
        job: the settings that decide the rows.
        check: called before a new checkpoint begins; what it raises, leaves no trace.

    Raises: ValueError: the folder belongs to another job, or to none.
    """
    if "://" in place and "?" in place:
        raise ValueError(
            f"checkpoint {place}: Ray takes no options in it; set AWS_ENDPOINT_URL and others in "
            "the environment of all machines"
        )
    place = place.rstrip("/") if "://" in place else os.path.abspath(place)
    try:
        system, folder = fs.FileSystem.from_uri(place)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"checkpoint {place}: {error}") from error
    want = json.loads(json.dumps(_plain({"nomicbert": __version__, **job})))
    path = f"{folder}/{SETTINGS}"
    if system.get_file_info(path).type is fs.FileType.File:
        _compare(place, _read(system, path, place), want)
        return f"{place}/{ROWS}"
    there = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    if any(entry.base_name != f"{SETTINGS}.tmp" for entry in there):
        raise ValueError(f"checkpoint {place} holds files of something else: name a new folder")
    check()
    system.create_dir(folder, recursive=True)
    with system.open_output_stream(f"{path}.tmp") as file:
        file.write(json.dumps(want, indent=2, sort_keys=True).encode())
    system.move(f"{path}.tmp", path)
    return f"{place}/{ROWS}"


def _read(system: Any, path: str, place: str) -> dict[str, Any]:
    with system.open_input_stream(path) as file:
        content = file.read()
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"checkpoint {place}: {SETTINGS} is damaged ({error}): begin with a new checkpoint and "
            "a new output folder"
        ) from error
    return found


def _compare(place: str, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    differ = [
        f"{name} was {json.dumps(have.get(name))} and is {json.dumps(want.get(name))}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if differ:
        raise ValueError(
            f"checkpoint {place} is of another job: {'; '.join(differ)}. Go on with the settings "
            "it had, or begin with a new checkpoint and a new output folder"
        )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON: without those that are not given, arrays as hashes."""
    return {
        name: _value(value)
        for name, value in settings.items()
        if value is not None and name not in NO_MATTER
    }


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        numbers = np.ascontiguousarray(value, dtype=np.float32)
        return f"sha256 {hashlib.sha256(numbers.tobytes()).hexdigest()}"
    return str(value)  # a dtype of torch


def check_ids(batches: Iterable[pa.Table], id_column: str) -> None:
    """Refuse ids by which rows cannot be told apart.

    Ray compares ids and nothing else: of two rows with one id, it would drop the second after a
    crash.

    Args:
        batches: of all rows, with the ids; they are held in memory.
        id_column: the ids.

    Raises: ValueError: neither whole numbers nor strings, a null, or one id twice.
    """
    tables = [*batches]
    if not tables:
        return
    ids = pa.concat_tables(tables)[id_column]
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    if not any(kind(ids.type) for kind in kinds):
        raise ValueError(
            f"the ids in column {id_column!r} must be whole numbers or strings, not {ids.type}"
        )
    if ids.null_count:
        raise ValueError(
            f"{ids.null_count} of {len(ids)} ids in column {id_column!r} are null: each row needs "
            "one"
        )
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = repeated[0].as_py()
        raise ValueError(
            f"{len(repeated)} ids in column {id_column!r} are not unique, {first['values']!r} is "
            f"there {first['counts']} times: a resumed job would lose rows"
        )
