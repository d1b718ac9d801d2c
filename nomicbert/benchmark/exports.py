"""Cache of models exported for other runtimes.

A folder's name contains a hash of the checkpoint's files and the exporters' versions, so a change
of either creates a new folder. Old folders are not removed automatically.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nomicbert.benchmark.peers import Setting

# Libraries involved in all exports.
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
    """Folder of an export in the cache; exports it if missing.

    It appears under its name only when complete. An interrupted export leaves a ".part" folder,
    which the next attempt removes.

    Args:
        setting: the checkpoint and the cache.
        name: of the form, such as "onnx-int8".
        libraries: distributions that export it, in addition to torch and transformers.
        make: writes the export into an empty folder.
        given: other inputs of the export, part of the hash.
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
    """Hash of the checkpoint's files (name, size, modification time) and the versions."""
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
