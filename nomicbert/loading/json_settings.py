"""Read a checkpoint's JSON settings files; errors name the file and the key.

Used for config.json and for the files of sentence-transformers and of the tokenizer.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nomicbert.errors import ConfigError
from nomicbert.loading.plain_files import SETTINGS_LIMIT, read_file

# No size, count or length of a model is larger. Products of two fit 64 bits.
LARGEST = 2**31 - 1


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: ConfigError: the file is missing, not UTF-8, not JSON, not an object, or refused by
        `plain_files`.
    """
    value = _parse(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of objects in a JSON file; raises as `read_json` does."""
    value = _parse(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(f"{path} must hold a JSON list of objects")
    return value


def _parse(path: Path) -> Any:
    content = read_file(path, SETTINGS_LIMIT, ConfigError)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error about one of the file's settings name the file, if it does not."""
    try:
        yield
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error


class Settings:
    """One settings file. A setting may have several keys; if several are given they must agree."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw = raw
        self.path = path

    def get(self, *names: str, default: Any = None) -> Any:
        """The value under any of these keys; null counts as absent; two values must be equal."""
        found = {name: self.raw[name] for name in names if self.raw.get(name) is not None}
        if len(set(map(repr, map(_plain, found.values())))) > 1:
            stated = " but ".join(f"{name} = {value!r:.80}" for name, value in found.items())
            raise ConfigError(f"{self.path} contradicts itself: {stated}. Correct one of them.")
        if found:
            return _plain(next(iter(found.values())))
        if default is None:
            raise ConfigError(f"{self.path} lacks {' (or '.join(names)}{')' * (len(names) - 1)}")
        return default

    def size(self, *names: str, default: int | None = None) -> int:
        """A whole number; 2048.0 is accepted, because real checkpoints contain such values."""
        name, value = self._number(names, default)
        if value % 1:  # inf % 1 is NaN, which is true
            raise ConfigError(f"{self.path}: {name} must be a whole number, not {value!r}")
        if abs(value) > LARGEST:
            raise ConfigError(
                f"{self.path}: {name} = {value!r:.40} is too large, the maximum is {LARGEST}"
            )
        return int(value)

    def number(self, *names: str, default: float | None = None) -> float:
        """A number."""
        name, value = self._number(names, default)
        try:
            # a float even for 0: a strict reader of the saved file would refuse an int
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{self.path}: {name} = {value!r:.40} is too large") from error

    def _number(self, names: tuple[str, ...], default: float | None) -> tuple[str, int | float]:
        """The number and the key that it is under."""
        value = self.get(*names, default=default)
        name = next((name for name in names if self.raw.get(name) is not None), names[0])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.path}: {name} must be a number, not {value!r:.80}")
        return name, value

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean; the string "false" is refused, because Python would treat it as true."""
        value = self.get(name, default=default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path}: {name} must be true or false, not {value!r:.80}")
        return value

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse any key of `neutral` whose value is not one of those that change nothing."""
        for name, allowed in neutral.items():
            value = self.raw.get(name)
            if value is not None and value not in allowed:
                wanted = " or ".join(map(repr, (*allowed, None)))
                raise ConfigError(
                    f"{self.path}: {name} = {value!r:.80} is not supported, only {wanted} is"
                )


def _plain(value: Any) -> Any:
    """The value, with 1000.0 turned into 1000 so that both compare equal."""
    if isinstance(value, float) and value.is_integer() and not isinstance(value, bool):
        return int(value)
    return value


def inside(folder: Path, name: Any, stated_in: Path) -> Path:
    """Resolve a path named in a settings file; it must stay inside the checkpoint folder.

    Raises: ConfigError: not a string, absolute, contains "..", or no file can have it.
    """
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"{stated_in} names the path {name!r:.80}, which leaves its folder")
    if not nameable(name):
        raise ConfigError(f"{stated_in} names the path {name!r:.80}, which no file can have")
    return folder / name


def nameable(name: str) -> bool:
    """Whether a file can have this name: no NUL, no lone surrogate, not too long."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) < 1024 and max(map(len, encoded.split(b"/"))) < 256


def present(path: Path) -> bool:
    """Whether a folder lists this file, readable or not: a broken link is no missing file."""
    return os.path.lexists(path)


def optional(path: Path) -> Settings:
    """Read an optional settings file; empty if the folder does not list it."""
    return Settings(read_json(path) if present(path) else {}, path)
