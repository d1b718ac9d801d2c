"""Models that were exported for other runtimes, kept so that they are made once.

A folder's name says what it was made from: a checkpoint that changed under its name, or another
version of what exports it, has another folder. Old ones stay until somebody removes them.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nomicbert.benchmark.peers import Setting

# What all exports pass through.
ALWAYS = ("torch", "transformers")
# In Setting.loaded: whether this process made an export, which takes more memory than running it.
MADE = "made an export"


def kept(
    setting: Setting,
    name: str,
    libraries: Sequence[str],
    make: Callable[[Path], None],
    given: object = "",
) -> Path:
    """The folder of an export in the cache; made if it is not there.

    It appears under its name when it is whole: what is stopped half-way leaves a ".part" folder,
    which the next try removes.

    Args:
        setting: the checkpoint and the cache.
        name: of the form, such as "onnx-int8".
        libraries: distributions that make it, beside torch and transformers.
        make: writes into the empty folder that it is given.
        given: what else it is made from.
    """
    place = setting.cache / f"{name}-{_key(setting, libraries, given)}"
    if not place.is_dir():
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(place)
        setting.loaded[MADE] = True
    return place


def _key(setting: Setting, libraries: Sequence[str], given: object) -> str:
    """Of the checkpoint's files, by name, size and time of change, and the versions."""
    facts: list[object] = [given]
    cache = setting.cache.resolve()
    for folder in dict.fromkeys((setting.folder, setting.encoder)):
        for path in sorted(folder.rglob("*")):
            # the cache may lie in the checkpoint's folder
            if path.is_file() and cache not in path.resolve().parents:
                found = path.stat()
                facts.append((str(path.relative_to(folder)), found.st_size, found.st_mtime_ns))
    for library in (*ALWAYS, *libraries):
        try:
            facts.append((library, version(library)))
        except PackageNotFoundError:
            facts.append((library, None))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
