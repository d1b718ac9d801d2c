"""The folder of an export: it appears when it is whole, or takes an earlier export's place.

Where in the flow: `run` fills it. Until the end all files are in a hidden folder beside it, which
an error or a signal removes.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nomicbert.errors import ExportError

# Beside the settings: what was exported. It lists the files that an overwriting export removes.
RECORD = "nomicbert_export.json"
# How errors of the libraries in Rust end, which are no OSError.
RUST_ERROR = re.compile(r"\(os error (\d+)\)$")


def refuse_to_replace(target: Path, overwrite: bool) -> None:
    """Accept a path where nothing is, an empty folder, or with `overwrite` an earlier export.

    Raises: ExportError: anything else, above all a folder with files of others.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise ExportError(f"{target} is a file or a link: choose another name")
    place = target.resolve()
    if place in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(place):
        raise ExportError(
            f"{target} cannot be replaced: it is the current folder, one around it, or a mount "
            "point: name a new folder in it"
        )
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"{target} exists: choose another folder, or overwrite it (--overwrite)")
    known = _recorded(target)
    if not known:
        raise ExportError(
            f"{target} is not overwritten: it has no {RECORD} that lists its files, so it is no "
            "earlier export"
        )
    strange = sorted({*_files(target)} - known)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ExportError(
            f"{target} is not overwritten, because it holds files that no earlier export has "
            f"written: {strange[0]}{more}. Move them away, or choose another folder"
        )


def _recorded(target: Path) -> set[str]:
    """The files that an earlier export has written, by its own record; none without one."""
    try:
        record: Any = json.loads((target / RECORD).read_text("utf-8"))
        return {RECORD, *map(str, record["contents"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def _files(folder: Path) -> Iterator[str]:
    """Everything in a folder that is no folder itself, by its name within it."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


@contextlib.contextmanager
def shown_whole(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a new folder that takes the target's place at the end, or is removed by an error.

    Folders around the target are made at the end too.

    Args:
        target: has passed `refuse_to_replace`, and must again at the end.
        overwrite: as there.

    Raises: OSError: no folder can be made there. ExportError: the target has appeared meanwhile.
    """
    place = target.resolve()
    home = next(folder for folder in place.parents if folder.exists())
    if not home.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(home))
    try:
        hidden = tempfile.TemporaryDirectory(dir=home, prefix=f".{place.name}-")
    except OSError as error:
        error.filename = str(target)
        raise
    with hidden:
        part, old = Path(hidden.name, "new"), Path(hidden.name, "old")
        part.mkdir()
        yield part
        refuse_to_replace(target, overwrite)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if place.exists():
                place.rename(old)
            part.rename(place)
        except BaseException:  # a signal too: the earlier export is not lost
            if old.exists() and not place.exists():
                old.rename(place)
            raise


@contextlib.contextmanager
def written_to(target: Path) -> Iterator[None]:
    """Let errors of writing in this block name the target: a full disk names no file.

    Raises: OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(target)
        raise
    except Exception as error:  # the libraries in Rust raise nothing narrower
        found = RUST_ERROR.search(str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(target)) from error


def record(part: Path, facts: Mapping[str, Any]) -> None:
    """Write the record of an export, with the names of all files that are in the folder by now."""
    content = {**facts, "contents": sorted(_files(part))}
    (part / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
